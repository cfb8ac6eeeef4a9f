// The page: takes choices, and draws the views.
import { armsView } from "./arms.js";
import { Bar } from "./bar.js";
import { leadingArms } from "./compared.js";
import { comparisonView } from "./comparison.js";
import { curvesView } from "./curves.js";
import { groupsOf, stepsOf } from "./data.js";
import { div, el, svg } from "./dom.js";
import { layerView } from "./layer.js";
import { layersView } from "./layers.js";
import { landscapeView } from "./landscape.js";
import { monitorsView } from "./monitors.js";
import { RunPicker } from "./picker.js";
import { evaluationView, profilesView, shiftView } from "./profiles.js";
import { Runs } from "./runs.js";
import { Sections } from "./sections.js";
import { settingView } from "./setting.js";
import { State } from "./state.js";
import { DASHES, colourNumbers, currentTheme, lineColour, watchTheme } from "./theme.js";
import { tooltipBox } from "./tooltip.js";
import { verdictsView } from "./verdicts.js";

const OF_RUNS = [verdictsView, profilesView, layersView, layerView, evaluationView, shiftView, landscapeView];
const VIEWS = [comparisonView, armsView, settingView, curvesView, monitorsView, ...OF_RUNS];
const POLL = 5000; // ms between two looks at a live source

/**
 * What views read: runs and groups (those chosen), steps (all of them), step (that of the slider), layer (the pinned one), state, theme, width
 * (of the view, in pixels), more (how many runs a view shows at least), comparison (or null), waits (whether runs are chosen that have not
 * started). A view has id, title, about, byStep (whether it depends on the step), early (whether it needs no run), shows(page) (whether there is
 * something of its kind at all; if it is left out, whether there are tables), names(page) (the legend of a saved picture), draw(page) -> elements, csv(page) -> rows.
 */
class Page {
  constructor(element, source) {
    Object.assign(this, { state: new State(), runs: [], groups: [], steps: [], more: 0, theme: currentTheme() });
    this.store = new Runs(source, this.state, (text) => this.say(text));
    this.picker = new RunPicker((names) => this.choose(names));
    this.bar = new Bar(this);
    this.sections = new Sections(this, VIEWS);
    this.status = el("p", { class: "nz-status", role: "status" }, "Loading runs…");
    this.main = el("main", { class: "nz-main" }, this.bar.node, this.status, this.sections.node);
    const nav = el("nav", { "aria-label": "Views" }, this.sections.links);
    const side = el("aside", { class: "nz-side" }, el("h1", {}, "Normalization"), nav, this.picker.node);
    this.root = div("nz", side, this.main, tooltipBox());
    element.replaceChildren(this.root);
    watchTheme(() => this.draw());
    new ResizeObserver(() => this.width !== this.room() && this.draw()).observe(this.main);
  }

  say(text) {
    this.status.textContent = text;
    this.status.hidden = !text;
  }

  async refresh() {
    try {
      if (!(await this.store.look()) && !this.status.textContent) return;
      if (this.store.comparison && !this.all) await this.compare();
      await this.store.load();
      this.arrange();
    } catch (error) {
      this.say(`The runs could not be read: ${error.message}`);
    }
  }

  async choose(names) {
    this.sections.hold();
    this.store.choose(names);
    this.state.save();
    await this.store.load();
    this.arrange();
  }

  /** Draws the comparison before the runs are read. */
  async compare() {
    this.prepare();
    this.width = this.room();
    this.root.dataset.theme = this.theme.name;
    this.sections.drawNow(({ view }) => view.early);
    performance.mark("nz-first-picture"); // what a test measures the wait by
    await new Promise((painted) => setTimeout(painted, 0));
  }

  /** Names and colours follow all runs, so that they stay when the choice changes. */
  prepare() {
    this.comparison = this.store.comparison;
    this.chosen = this.store.chosen();
    this.all = this.store.all();
    const norms = [...this.all, ...(this.comparison?.arms ?? [])].map(({ norm }) => norm);
    const leading = this.comparison ? leadingArms(this.comparison).map(({ norm }) => norm) : [];
    this.colours = colourNumbers([...new Set(norms)].sort(), leading);
    this.sections.show();
  }

  arrange() {
    this.prepare();
    this.groups = groupsOf(this.store.ready(), this.colours, this.comparison?.arms)
      .map((group) => ({ ...group, runs: group.runs.filter((run) => this.chosen.has(run.name)) }))
      .filter((group) => group.runs.length);
    this.runs = this.groups.flatMap((group) => group.runs);
    this.waits = this.chosen.size === 0 && this.store.known.length === 0 && Boolean(this.comparison);
    this.steps = stepsOf(this.runs);
    this.draw();
  }

  /** Whether views of monitors have something to show: a comparison may be of runs without tables. */
  get hasTables() {
    const ready = this.store.ready();
    return !this.comparison || !ready.length || ready.some((run) => Object.keys(run.tables).length > 0);
  }

  /** Whether there are runs at all. */
  get any() {
    return this.store.known.length > 0;
  }

  color(group) {
    return this.normColor(group.norm);
  }

  normColor(norm, theme = this.theme) {
    return lineColour(this.colours.get(norm), theme);
  }

  /** The runs of an arm that are here: others have not started. */
  runsOf(arm) {
    return this.store.known.map((run) => run.name).filter((name) => arm.runs.includes(name));
  }

  /** A piece of the line of a group, or of {norm, dash}. */
  swatch({ norm, dash }, theme = this.theme) {
    const dashes = DASHES[dash % DASHES.length];
    const line = { x1: 0, x2: 24, y1: 5, y2: 5, stroke: this.normColor(norm, theme), "stroke-width": 4, "stroke-dasharray": dashes };
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
    this.sections.draw();
    if (this.all) this.listRuns();
  }

  listRuns() {
    const number = (norm) => this.colours.get(norm);
    const sorted = [...this.all].sort((a, b) => number(a.norm) - number(b.norm));
    this.picker.show(
      sorted.map(({ name, norm, arm, seed }) => ({ name, group: arm ?? norm, seed, color: this.normColor(norm) })),
      this.chosen,
    );
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
    this.sections.draw(({ view }) => view.byStep, 250);
    this.sections.mark(this.step);
    clearTimeout(this.saving);
    this.saving = setTimeout(() => this.state.save(), 200); // browsers limit how often the URL may change
  }
}

/**
 * Shows the page in an element. `source`: runs() -> Promise of [{name, version}], run(name) -> Promise of one run, comparison() -> Promise of what
 * compares them or null (may be left out), live (whether runs() and comparison() are asked again every few seconds).
 */
export function mount(element, source) {
  const page = new Page(element, source);
  page.refresh();
  if (source.live) setInterval(() => page.refresh(), POLL);
}
