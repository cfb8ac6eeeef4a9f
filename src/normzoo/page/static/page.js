// The page: takes choices, and draws the views.
import { Bar } from "./bar.js";
import { groupsOf, stepsOf } from "./data.js";
import { div, el, svg } from "./dom.js";
import { layerView } from "./layer.js";
import { layersView } from "./layers.js";
import { landscapeView } from "./landscape.js";
import { moveMarkers } from "./lines.js";
import { RunPicker } from "./picker.js";
import { evaluationView, profilesView, shiftView } from "./profiles.js";
import { Runs } from "./runs.js";
import { saveCsv, savePng, saveSvg } from "./save.js";
import { State } from "./state.js";
import { DASHES, colourNumbers, currentTheme, lineColour, watchTheme } from "./theme.js";
import { tooltipBox } from "./tooltip.js";
import { verdictsView } from "./verdicts.js";

const VIEWS = [verdictsView, profilesView, layersView, layerView, evaluationView, shiftView, landscapeView];
const POLL = 5000; // ms between two looks at a live source

/**
 * What views read: runs and groups (those chosen), steps (all of them), step (that of the slider), layer (the pinned one), state, theme, width
 * (of the view, in pixels), more (how many runs a view shows at least). A view has id, title, about, byStep (whether it depends on the step),
 * draw(page) -> elements, csv(page) -> rows.
 */
class Page {
  constructor(element, source) {
    Object.assign(this, { state: new State(), runs: [], groups: [], steps: [], more: 0, waiting: new Set(), theme: currentTheme() });
    this.store = new Runs(source, this.state, (text) => this.say(text));
    this.picker = new RunPicker((names) => this.choose(names));
    this.bar = new Bar(this);
    this.sections = VIEWS.map((view) => this.section(view));
    this.status = el("p", { class: "nz-status", role: "status" }, "Loading runs…");
    this.main = el("main", { class: "nz-main" }, this.bar.node, this.status, ...this.sections.map((section) => section.node));
    const nav = el("nav", { "aria-label": "Views" }, el("ol", {}, ...this.sections.map((section, i) => this.link(section, i))));
    const side = el("aside", { class: "nz-side" }, el("h1", {}, "Normalization"), nav, this.picker.node);
    this.root = div("nz", side, this.main, tooltipBox());
    element.replaceChildren(this.root);
    watchTheme(() => this.draw());
    new ResizeObserver(() => this.width !== this.room() && this.draw()).observe(this.main);
  }

  /** Jumps to a view. A link with a "#" would replace the state in the URL. */
  link({ view, node }, i) {
    const show = () => {
      node.focus({ preventScroll: true }); // Tab continues from there
      node.scrollIntoView();
    };
    return el("li", {}, el("button", { type: "button", onclick: show }, `${i + 1} ${view.title}`));
  }

  section(view) {
    const body = div("nz-body");
    const name = `normzoo-${view.id}`;
    const names = () => this.groups.map((group) => ({ text: group.label, swatch: this.swatch(group) }));
    const save = (kind, act) => el("button", { type: "button", "aria-label": `Save ${view.title} as ${kind}`, onclick: act }, kind);
    const buttons = div(
      "nz-save",
      save("SVG", () => saveSvg(name, body, names(), this.theme)),
      save("PNG", () => savePng(name, body, names(), this.theme)),
      save("CSV", () => saveCsv(name, view.csv(this))),
    );
    const head = div("nz-head", el("h2", {}, view.title), el("p", {}, view.about), buttons);
    return { view, body, node: el("section", { id: `nz-${view.id}`, "aria-label": view.title, tabindex: -1 }, head, body) };
  }

  say(text) {
    this.status.textContent = text;
    this.status.hidden = !text;
  }

  async refresh() {
    try {
      if (!(await this.store.look()) && !this.status.textContent) return;
      await this.store.load();
      this.arrange();
    } catch (error) {
      this.say(`The runs could not be read: ${error.message}`);
    }
  }

  async choose(names) {
    this.store.choose(names);
    this.state.save();
    await this.store.load();
    this.arrange();
  }

  /** Names, colours and groups follow all runs, so that they stay when the choice changes. */
  arrange() {
    this.chosen = this.store.chosen();
    this.all = this.store.all();
    this.colours = colourNumbers([...new Set(this.all.map((run) => run.norm))].sort());
    this.groups = groupsOf(this.store.ready(), this.colours)
      .map((group) => ({ ...group, runs: group.runs.filter((run) => this.chosen.has(run.name)) }))
      .filter((group) => group.runs.length);
    this.runs = this.groups.flatMap((group) => group.runs);
    this.steps = stepsOf(this.runs);
    this.draw();
  }

  /** Whether there are runs at all. */
  get any() {
    return this.store.known.length > 0;
  }

  color(group) {
    return lineColour(group.colour, this.theme);
  }

  /** A piece of the group's line. */
  swatch(group) {
    const dashes = DASHES[group.dash % DASHES.length];
    const line = { x1: 0, x2: 24, y1: 5, y2: 5, stroke: this.color(group), "stroke-width": 4, "stroke-dasharray": dashes };
    return svg("svg", { width: 24, height: 10, "aria-hidden": "true" }, svg("line", line));
  }

  room() {
    const style = getComputedStyle(this.main);
    return this.main.clientWidth - parseFloat(style.paddingLeft) - parseFloat(style.paddingRight);
  }

  /** The layers to choose from. Pinned is the one chosen, that of the first verdict, or the first. */
  findLayers() {
    const ofTables = (run) => Object.values(run.tables).flatMap((table) => table.layers);
    const ofRun = (run) => (run.network.length ? run.network.map((layer) => layer.name) : ofTables(run));
    const names = new Set(this.runs.flatMap(ofRun));
    if (this.state.layer !== null) names.add(this.state.layer);
    const blamed = this.runs.flatMap((run) => run.verdicts).find((verdict) => names.has(verdict.layer));
    this.layer = this.state.layer ?? blamed?.layer ?? [...names][0] ?? null;
    return [...names];
  }

  draw() {
    this.theme = currentTheme();
    this.root.dataset.theme = this.theme.name;
    this.width = this.room();
    const layers = this.findLayers();
    this.bar.show(layers, this.layer, this.state.rows, this.groups);
    this.step = this.bar.showStep(this.steps, this.state);
    this.drawSections(this.sections);
    if (this.all) this.listRuns();
  }

  listRuns() {
    const number = (norm) => this.colours.get(norm);
    const sorted = [...this.all].sort((a, b) => number(a.norm) - number(b.norm));
    this.picker.show(
      sorted.map(({ name, norm, seed }) => ({ name, norm, seed, color: lineColour(number(norm), this.theme) })),
      this.chosen,
    );
  }

  /** Draws what is in sight at once, and the rest after `wait` ms without another change. */
  drawSections(sections, wait = 60) {
    clearTimeout(this.later);
    const inSight = ({ node }) => node.getBoundingClientRect().top < innerHeight && node.getBoundingClientRect().bottom > 0;
    const now = sections.filter(inSight);
    this.waiting = new Set([...this.waiting, ...sections].filter((section) => !now.includes(section)));
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
    this.later = setTimeout(next, wait);
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
    this.step = this.bar.showStep(this.steps, this.state);
    this.drawSections(
      this.sections.filter(({ view }) => view.byStep),
      250,
    );
    for (const { body } of this.sections) moveMarkers(body, this.step);
    clearTimeout(this.saving);
    this.saving = setTimeout(() => this.state.save(), 200); // browsers limit how often the URL may change
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
