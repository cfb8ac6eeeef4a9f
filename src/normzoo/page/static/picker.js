// The list of runs: filter, all, none, by norm or by arm.
import { div, el } from "./dom.js";

/** Norm and seed as the folder of a run tells them, EXPERIMENT/NUMBER-NORM-SEED or NORM-SEED/NUMBER: for runs that are not loaded yet. */
export function guess(name) {
  const found = /(?:^|\/)(?:\d+-)?([A-Za-z][\w+]*)-(\d+)(?:\/|$)/.exec(name);
  return { norm: found ? found[1] : "other runs", seed: found ? Number(found[2]) : null };
}

const MANY = 12; // more runs are listed by their groups, which open

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
    this.open = new Set(); // names of the groups whose runs are listed
  }

  /** Shows runs: [{name, group: the name of its norm or arm, seed, color}]. */
  show(runs, chosen) {
    const shown = JSON.stringify(runs);
    if (shown === this.shown) return this.mark(chosen); // keeps the focus
    this.shown = shown;
    this.boxes = [];
    const many = runs.length > MANY;
    const group = (name) => runs.filter((run) => run.group === name);
    this.heads = [...new Set(runs.map((run) => run.group))].map((name) => this.group(name, group(name), many));
    this.list.replaceChildren(...this.heads.map((head) => head.node));
    this.mark(chosen);
    this.sift();
  }

  group(name, runs, many) {
    const names = runs.map((run) => run.name);
    const box = el("input", { type: "checkbox", onchange: () => this.set(names, box.checked) });
    const rows = runs.map((run) => this.run(run));
    const list = el("div", { hidden: many && !this.open.has(name) }, ...rows);
    const head = el(
      "label",
      { class: "nz-norm", title: name },
      box,
      el("i", { class: "nz-dot", style: `background:${runs[0].color}` }),
      el("span", {}, name),
      el("small", {}, runs.length > 1 ? (many ? `× ${runs.length}` : `${runs.length} runs`) : ""),
    );
    return { box, names, rows, node: div("", many ? div("nz-fold", this.opener(name, list), head) : head, list) };
  }

  /** The button that opens the runs of a group. */
  opener(name, list) {
    const press = () => {
      list.hidden = !list.hidden;
      if (list.hidden) this.open.delete(name);
      else this.open.add(name);
      show();
    };
    const button = el("button", { type: "button", onclick: press });
    const show = () => {
      button.textContent = list.hidden ? "▸" : "▾";
      button.setAttribute("aria-expanded", !list.hidden);
      button.setAttribute("aria-label", `${list.hidden ? "List" : "Hide"} the runs of ${name}`);
    };
    show();
    return button;
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
