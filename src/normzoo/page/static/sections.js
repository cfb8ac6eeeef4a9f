// The views of a page, one below the other: their heads, when they are drawn, and as pictures.
import { div, el } from "./dom.js";
import { moveMarkers } from "./lines.js";
import { compose, saveCsv, savePng, saveSvg } from "./save.js";
import { LIGHT, currentTheme } from "./theme.js";

/** The sections of the views of a page. */
export class Sections {
  constructor(page, views) {
    Object.assign(this, { page, node: div(""), links: el("ol", {}), shown: [], waiting: new Set() });
    this.all = views.map((view) => this.section(view));
  }

  /** Shows the views that have something of their kind, and their links. */
  show() {
    const shown = this.all.filter(({ view }) => view.shows?.(this.page) ?? this.page.hasTables);
    if (shown.length === this.shown.length && shown.every((section, i) => section === this.shown[i])) return;
    this.shown = shown;
    this.node.replaceChildren(...shown.map((section) => section.node));
    this.links.replaceChildren(...shown.map((section, i) => this.link(section, i)));
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
    const save = (kind, act) => el("button", { type: "button", "aria-label": `Save ${view.title} as ${kind}`, onclick: act }, kind);
    const buttons = div(
      "nz-save",
      save("SVG", () => saveSvg(name, this.picture(section))),
      save("PNG", () => savePng(name, this.picture(section))),
      save("CSV", () => saveCsv(name, view.csv(this.page))),
    );
    const head = div("nz-head", el("h2", {}, view.title), el("p", {}, view.about), buttons);
    const section = { view, body, node: el("section", { id: `nz-${view.id}`, "aria-label": view.title, tabindex: -1 }, head, body) };
    return section;
  }

  /** A view as a picture for a slide or a paper: on white. */
  picture(section) {
    const { page } = this;
    const { view, body } = section;
    const names = (view.names?.(page) ?? page.groups).map((one) => ({ text: one.label, swatch: page.swatch(one, LIGHT) }));
    if (page.theme === LIGHT) return compose(body, names, LIGHT);
    this.paint(section, LIGHT);
    const picture = compose(body, names, LIGHT);
    this.paint(section, currentTheme());
    return picture;
  }

  paint(section, theme) {
    this.page.theme = theme;
    this.page.root.dataset.theme = theme.name;
    this.drawOne(section);
  }

  /** Draws those in sight at once, and the rest after `wait` ms without another change. */
  draw(which = () => true, wait = 60) {
    clearTimeout(this.later);
    const inSight = ({ node }) => node.getBoundingClientRect().top < innerHeight && node.getBoundingClientRect().bottom > 0;
    const wanted = this.shown.filter(which);
    const now = wanted.filter(inSight);
    this.waiting = new Set([...this.waiting, ...wanted].filter((section) => !now.includes(section)));
    now.forEach((section) => this.drawOne(section));
    this.page.main.setAttribute("aria-busy", true);
    const next = () => {
      const [section] = this.waiting;
      this.page.main.setAttribute("aria-busy", Boolean(section));
      if (!section) return;
      this.waiting.delete(section);
      this.drawOne(section);
      this.later = setTimeout(next, 0);
    };
    this.later = setTimeout(next, wait);
  }

  /** Stops drawing until `draw`: what is shown is about to change. */
  hold() {
    clearTimeout(this.later);
    this.page.main.setAttribute("aria-busy", true);
  }

  /** Draws some at once. */
  drawNow(which) {
    for (const section of this.shown.filter(which)) this.drawOne(section);
  }

  /** Replaces the charts of a view, and keeps the focus where it was. */
  drawOne({ view, body }) {
    const stops = () => [...body.querySelectorAll("button, select, input, svg[tabindex='0']")];
    const at = stops().indexOf(document.activeElement);
    body.replaceChildren(...view.draw(this.page).filter(Boolean));
    moveMarkers(body, this.page.step);
    if (at >= 0) stops()[at]?.focus({ preventScroll: true });
  }

  /** Moves the marks of the step in all charts. */
  mark(step) {
    for (const { body } of this.shown) moveMarkers(body, step);
  }
}
