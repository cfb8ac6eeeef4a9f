// The list of runs: filter, all, none, by norm.
import { div, el } from "./dom.js";

/** Norm and seed as the folder of a run tells them, EXPERIMENT/NORM-SEED/NUMBER: for runs that are not loaded yet. */
export function guess(name) {
  const found = /(?:^|\/)([A-Za-z][\w+]*)-(\d+)(?:\/|$)/.exec(name);
  return { norm: found ? found[1] : "other runs", seed: found ? Number(found[2]) : null };
}

/** The list. `changed(names)` receives the names of the chosen runs. */
export class RunPicker {
  constructor(changed) {
    this.changed = changed;
    this.filter = el("input", {
      type: "search",
      placeholder: "Filter, for example BatchNorm",
      "aria-label": "Filter runs",
      oninput: () => this.sift(),
    });
    this.count = el("span", { class: "nz-soft", "aria-live": "polite" });
    this.list = div("nz-runs");
    const all = (on) => () =>
      this.set(
        this.boxes.filter(({ row }) => !row.hidden).map(({ name }) => name),
        on,
      );
    this.node = div(
      "nz-picker",
      el("h2", {}, "Runs"),
      this.filter,
      div(
        "nz-controls",
        el("button", { type: "button", onclick: all(true) }, "All"),
        el("button", { type: "button", onclick: all(false) }, "None"),
        this.count,
      ),
      this.list,
    );
    this.boxes = [];
    this.heads = [];
  }

  /** Shows runs: [{name, norm, seed, color}]. */
  show(runs, chosen) {
    const shown = JSON.stringify(runs);
    if (shown === this.shown) return this.mark(chosen); // keeps the focus
    this.shown = shown;
    this.boxes = [];
    this.heads = [...new Set(runs.map((run) => run.norm))].map((norm) =>
      this.norm(
        norm,
        runs.filter((run) => run.norm === norm),
      ),
    );
    this.list.replaceChildren(...this.heads.map((head) => head.node));
    this.mark(chosen);
    this.sift();
  }

  norm(norm, runs) {
    const names = runs.map((run) => run.name);
    const box = el("input", { type: "checkbox", onchange: () => this.set(names, box.checked) });
    const rows = runs.map((run) => this.run(run));
    const head = el(
      "label",
      { class: "nz-norm" },
      box,
      el("i", { class: "nz-dot", style: `background:${runs[0].color}` }),
      norm,
      el("small", {}, runs.length > 1 ? `${runs.length} runs` : ""),
    );
    return { box, names, rows, node: div("", head, ...rows) };
  }

  run({ name, seed }) {
    const box = el("input", { type: "checkbox", onchange: () => this.set([name], box.checked) });
    const row = el(
      "label",
      { class: "nz-run", title: name },
      box,
      el("span", {}, seed === null ? "" : `seed ${seed}`),
      el("small", {}, el("bdi", { dir: "ltr" }, name)),
    );
    this.boxes.push({ name, box, row });
    return row;
  }

  set(names, on) {
    const chosen = new Set(this.boxes.filter(({ box, name }) => box.checked && !names.includes(name)).map(({ name }) => name));
    if (on) names.forEach((name) => chosen.add(name));
    this.mark(chosen);
    this.changed([...chosen]);
  }

  mark(chosen) {
    for (const { name, box } of this.boxes) box.checked = chosen.has(name);
    for (const { box, names } of this.heads) {
      const on = names.filter((name) => chosen.has(name)).length;
      box.checked = on === names.length;
      box.indeterminate = on > 0 && on < names.length;
    }
    this.count.textContent = `${chosen.size} of ${this.boxes.length}`;
  }

  /** Hides the runs whose name does not hold every word of the filter. */
  sift() {
    const words = this.filter.value.toLowerCase().split(/\s+/);
    for (const { name, row } of this.boxes) row.hidden = !words.every((word) => name.toLowerCase().includes(word));
    for (const { node, rows } of this.heads) node.hidden = rows.every((row) => row.hidden);
  }
}
