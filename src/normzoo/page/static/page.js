// The page: loads runs, keeps what is chosen, and draws the views.
import { el, svg } from "./dom.js";
import { before, groupsOf, stepsOf } from "./data.js";
import { layerView } from "./layer.js";
import { layersView } from "./layers.js";
import { landscapeView } from "./landscape.js";
import { moveMarkers } from "./lines.js";
import { RunPicker, guess } from "./picker.js";
import { evaluationView, profilesView, shiftView } from "./profiles.js";
import { saveCsv, savePng, saveSvg } from "./save.js";
import { State } from "./state.js";
import { DASHES, colourNumbers, currentTheme, lineColour, watchTheme } from "./theme.js";
import { tooltipBox } from "./tooltip.js";
import { verdictsView } from "./verdicts.js";

const VIEWS = [verdictsView, profilesView, layersView, layerView, evaluationView, shiftView, landscapeView];
const AT_FIRST = 12; // runs shown until the user chooses: 200 would take long to load
const ROLES = { weighted: "layers with weights", norm: "norms", all: "all layers" };
const POLL = 5000; // ms between two looks at a live source

class Page {
  constructor(element, source) {
    Object.assign(this, { source, state: new State(), known: [], loaded: new Map(), runs: [], groups: [], steps: [], more: 0, playing: null });
    this.theme = currentTheme();
    this.picker = new RunPicker((names) => this.choose(names));
    this.sections = VIEWS.map((view) => this.section(view));
    this.build(element);
    watchTheme(() => this.draw());
    this.observer = new ResizeObserver(() => this.width !== this.room() && this.draw());
    this.observer.observe(this.main);
  }

  build(element) {
    const show = (node) => {
      node.focus({ preventScroll: true }); // Tab goes on from there
      node.scrollIntoView();
    };
    const jump = ({ view, node }, i) => el("li", {}, el("button", { type: "button", onclick: () => show(node) }, `${i + 1} ${view.title}`));
    this.status = el("p", { class: "nz-status", role: "status" }, "Loading runs…");
    this.slider = el("input", { type: "range", id: "nz-step", min: 0, value: 0, oninput: () => this.move(Number(this.slider.value)) });
    this.output = el("output", { for: "nz-step" });
    this.play = el("button", { type: "button", class: "nz-play", "aria-label": "Play the steps", title: "Play the steps", onclick: () => this.playOrStop() }, "▶");
    this.layers = el("select", { id: "nz-pin", onchange: () => this.change({ layer: this.layers.value }) });
    this.roles = el("select", { id: "nz-rows", onchange: () => this.change({ rows: this.roles.value }) }, ...Object.entries(ROLES).map(([role, text]) => el("option", { value: role }, text)));
    this.legend = el("div", { class: "nz-legend" });
    const field = (id, text, ...controls) => el("div", { class: "nz-field" }, el("label", { for: id }, text), ...controls);
    const bar = el("header", { class: "nz-bar" },
      el("div", { class: "nz-controls" }, field("nz-step", "Step", this.play, this.slider, this.output), field("nz-pin", "Pinned layer", this.layers),
        field("nz-rows", "Depth charts of", this.roles)), this.legend);
    this.main = el("main", { class: "nz-main" }, bar, this.status, ...this.sections.map((section) => section.node));
    this.root = el("div", { class: "nz" }, el("aside", { class: "nz-side" }, el("h1", {}, "Normalization"), el("nav", { "aria-label": "Views" }, el("ol", {}, ...this.sections.map(jump))), this.picker.node), this.main, tooltipBox());
    element.replaceChildren(this.root);
  }

  section(view) {
    const body = el("div", { class: "nz-body" });
    const name = `normzoo-${view.id}`;
    const names = () => this.groups.map((group) => ({ text: group.label, swatch: this.swatch(group) }));
    const save = (kind, act) => el("button", { type: "button", "aria-label": `Save ${view.title} as ${kind}`, onclick: act }, kind);
    const node = el("section", { id: `nz-${view.id}`, "aria-label": view.title, tabindex: -1 },
      el("div", { class: "nz-head" }, el("h2", {}, view.title), el("p", {}, view.about),
        el("div", { class: "nz-save" }, save("SVG", () => saveSvg(name, body, names(), this.theme)), save("PNG", () => savePng(name, body, names(), this.theme)), save("CSV", () => saveCsv(name, view.csv(this))))), body);
    return { view, node, body };
  }

  /** Looks for new and changed runs, and loads those that are chosen. */
  async refresh() {
    try {
      const known = await this.source.runs();
      const changed = new Map(known.map((run) => [run.name, run.version]));
      for (const { name, version } of this.known) if (changed.get(name) !== version) this.loaded.delete(name);
      const same = JSON.stringify(known) === JSON.stringify(this.known);
      this.known = known;
      if (!same || this.status.textContent) await this.load();
    } catch (error) {
      this.say(`The runs could not be read: ${error.message}`);
    }
  }

  chosen() {
    const names = this.known.map((run) => run.name);
    if (this.state.shown) return new Set(names.filter((name) => this.state.shown.includes(name)));
    if (this.state.hidden.length || names.length <= AT_FIRST) return new Set(names.filter((name) => !this.state.hidden.includes(name)));
    const norms = names.map((name) => guess(name).norm);
    const turn = (i) => norms.slice(0, i).filter((norm) => norm === norms[i]).length;
    const inTurn = [...names.keys()].sort((a, b) => turn(a) - turn(b)); // the first run of every norm comes first
    return new Set(inTurn.slice(0, AT_FIRST).map((i) => names[i]));
  }

  choose(names) {
    const hidden = this.known.map((run) => run.name).filter((name) => !names.includes(name));
    const short = hidden.length < names.length && (hidden.length > 0 || this.known.length <= AT_FIRST);
    Object.assign(this.state, short ? { hidden, shown: null } : { hidden: [], shown: names });
    this.state.save();
    this.load();
  }

  async load() {
    const chosen = this.chosen();
    const missing = [...chosen].filter((name) => !this.loaded.has(name));
    if (missing.length && !this.runs.length) this.say(`Loading ${missing.length === 1 ? missing[0] : `${missing.length} runs`}…`);
    const failed = [];
    await Promise.all(missing.map(async (name) => {
      try {
        this.loaded.set(name, await this.source.run(name));
      } catch (error) {
        failed.push(`${name} could not be read: ${error.message}`);
      }
    }));
    this.say(failed.join(" "));
    this.arrange();
  }

  say(text) {
    this.status.textContent = text;
    this.status.hidden = !text;
  }

  /** Names, colours and groups follow all runs, so that they stay when the choice changes. */
  arrange() {
    const chosen = this.chosen();
    const listed = this.known.map(({ name }) => ({ ...guess(name), ...this.loaded.get(name), name }));
    this.colours = colourNumbers([...new Set(listed.map((run) => run.norm))].sort());
    const groups = groupsOf(this.known.map(({ name }) => this.loaded.get(name)).filter(Boolean), this.colours);
    this.groups = groups.map((group) => ({ ...group, runs: group.runs.filter((run) => chosen.has(run.name)) })).filter((group) => group.runs.length);
    this.runs = this.groups.flatMap((group) => group.runs);
    this.steps = stepsOf(this.runs);
    this.chosenNow = chosen;
    this.listed = listed.sort((a, b) => this.colours.get(a.norm) - this.colours.get(b.norm));
    this.draw();
  }

  color(group) {
    return lineColour(group.colour, this.theme);
  }

  /** A piece of the group's line. */
  swatch(group) {
    const line = { x1: 0, x2: 24, y1: 5, y2: 5, stroke: this.color(group), "stroke-width": 4, "stroke-dasharray": DASHES[group.dash % DASHES.length] };
    return svg("svg", { width: 24, height: 10, "aria-hidden": "true" }, svg("line", line));
  }

  /** The layer of the layer's page: the one pinned, the one of the first verdict, or the first. */
  findLayer() {
    const names = new Set(this.runs.flatMap((run) => (run.network.length ? run.network.map((layer) => layer.name) : Object.values(run.tables).flatMap((table) => table.layers))));
    if (this.state.layer !== null) names.add(this.state.layer);
    this.layer = this.state.layer ?? this.runs.flatMap((run) => run.verdicts).find((verdict) => names.has(verdict.layer))?.layer ?? [...names][0] ?? null;
    this.layers.replaceChildren(...[...names].map((name) => el("option", { value: name, selected: name === this.layer }, name)));
  }

  showBar() {
    const last = Math.max(0, this.steps.length - 1);
    const at = this.state.step === null ? last : Math.max(0, before(this.steps, this.state.step));
    this.step = this.steps[at] ?? 0;
    this.slider.max = last;
    this.slider.value = at;
    this.slider.setAttribute("aria-valuetext", `step ${this.step}`);
    this.output.textContent = this.steps.length ? `${this.step} of ${this.steps[last]}` : "none";
    this.roles.value = this.state.rows ?? "weighted";
  }

  room() {
    const style = getComputedStyle(this.main);
    return this.main.clientWidth - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight);
  }

  /** Draws what is in sight at once and the rest right after. */
  draw() {
    this.theme = currentTheme();
    this.root.dataset.theme = this.theme.name;
    this.width = this.room();
    this.findLayer();
    this.showBar();
    this.legend.replaceChildren(...this.groups.map((group) => el("span", {}, this.swatch(group), group.label, el("small", {}, group.runs.length > 1 ? `${group.runs.length} seeds` : ""))));
    this.drawSections(this.sections);
    if (this.listed) this.picker.show(this.listed.map(({ name, norm, seed }) => ({ name, norm, seed, color: this.color({ colour: this.colours.get(norm) }) })), this.chosenNow);
  }

  drawSections(sections) {
    clearTimeout(this.later);
    const inSight = ({ node }) => node.getBoundingClientRect().top < innerHeight && node.getBoundingClientRect().bottom > 0;
    const now = sections.filter(inSight);
    this.waiting = new Set([...(this.waiting ?? []), ...sections].filter((section) => !now.includes(section)));
    now.forEach((section) => this.drawSection(section));
    this.main.setAttribute("aria-busy", true);
    const next = () => {
      const [section] = this.waiting;
      this.main.setAttribute("aria-busy", Boolean(section));
      if (!section) return;
      this.waiting.delete(section);
      this.drawSection(section);
      this.later = setTimeout(next, 0);
    };
    this.later = setTimeout(next, 60);
  }

  /** Replaces the charts of a view, and keeps the focus where it was. */
  drawSection({ view, body }) {
    const stops = () => [...body.querySelectorAll("button, select, svg[tabindex='0']")];
    const at = stops().indexOf(document.activeElement);
    body.replaceChildren(...view.draw(this).filter(Boolean));
    moveMarkers(body, this.step);
    if (at >= 0) stops()[at]?.focus({ preventScroll: true });
  }

  /** Takes a choice of the user. */
  change(fields) {
    Object.assign(this.state, fields);
    this.state.save();
    this.draw();
  }

  showMore(count) {
    this.more = count;
    this.draw();
  }

  /** Moves to a step by its number in the list; redraws only what depends on the step. */
  move(at) {
    this.state.step = at >= this.steps.length - 1 ? null : this.steps[at];
    this.showBar();
    this.drawSections(this.sections.filter(({ view }) => view.byStep));
    for (const { body } of this.sections) moveMarkers(body, this.step);
    clearTimeout(this.saving);
    this.saving = setTimeout(() => this.state.save(), 200); // browsers limit how often the URL may change
  }

  playOrStop() {
    const stop = () => {
      clearInterval(this.playing);
      this.playing = null;
      this.play.textContent = "▶";
    };
    if (this.playing !== null) return stop();
    this.play.textContent = "❚❚";
    let at = Number(this.slider.value) >= this.steps.length - 1 ? 0 : Number(this.slider.value);
    this.playing = setInterval(() => {
      this.move(at);
      at += 1;
      if (at >= this.steps.length) stop();
    }, 120);
  }
}

/**
 * Shows the page in an element. `source`: runs() -> Promise of [{name, version}], run(name) -> Promise of one run, live (whether runs() is asked
 * again every few seconds).
 */
export function mount(element, source) {
  const page = new Page(element, source);
  page.refresh();
  if (source.live) setInterval(() => page.refresh(), POLL);
}
