// The bar at the top: step, layer, rows of the depth charts, and who is who.
import { before } from "./data.js";
import { div, el } from "./dom.js";

const ROLES = { weighted: "layers with weights", norm: "norms", all: "all layers" };
const TICK = 120; // ms per step while playing

/** The bar of a page, which tells the page what the user chooses. */
export class Bar {
  constructor(page) {
    this.page = page;
    const option = ([role, text]) => el("option", { value: role }, text);
    const play = {
      type: "button",
      class: "nz-play",
      "aria-label": "Play the steps",
      title: "Play the steps",
      onclick: () => this.playOrStop(),
    };
    this.slider = el("input", { type: "range", id: "nz-step", min: 0, value: 0, oninput: () => page.move(Number(this.slider.value)) });
    this.output = el("output", { for: "nz-step" });
    this.play = el("button", play, "▶");
    this.layers = el("select", { id: "nz-pin", onchange: () => page.change({ layer: this.layers.value }) });
    this.roles = el(
      "select",
      { id: "nz-rows", onchange: () => page.change({ rows: this.roles.value }) },
      ...Object.entries(ROLES).map(option),
    );
    this.legend = div("nz-legend");
    const field = (id, text, ...controls) => div("nz-field", el("label", { for: id }, text), ...controls);
    const step = field("nz-step", "Step", this.play, this.slider, this.output);
    const controls = div(
      "nz-controls",
      step,
      field("nz-pin", "Pinned layer", this.layers),
      field("nz-rows", "Depth charts of", this.roles),
    );
    this.node = el("header", { class: "nz-bar" }, controls, this.legend);
    this.timer = null;
  }

  /** Shows the step of the state, or the last; returns it. */
  showStep(steps, state) {
    const last = Math.max(0, steps.length - 1);
    const at = state.step === null ? last : Math.max(0, before(steps, state.step));
    const step = steps[at] ?? 0;
    this.slider.max = last;
    this.slider.value = at;
    this.slider.setAttribute("aria-valuetext", `step ${step}`);
    this.output.textContent = steps.length ? `${step} of ${steps[last]}` : "none";
    return step;
  }

  /** Shows the layers to pin, the one that is pinned, the role of the rows and the groups. */
  show(layers, pinned, role, groups) {
    this.layers.replaceChildren(...layers.map((name) => el("option", { value: name, selected: name === pinned }, name)));
    this.roles.value = role ?? "weighted";
    const seeds = (group) => el("small", {}, group.runs.length > 1 ? `${group.runs.length} seeds` : "");
    this.legend.replaceChildren(...groups.map((group) => el("span", {}, this.page.swatch(group), group.label, seeds(group))));
  }

  /** Moves through all steps, from the first if the last is shown. */
  playOrStop() {
    if (this.timer !== null) return this.stop();
    this.play.textContent = "❚❚";
    const last = () => Number(this.slider.max);
    let at = Number(this.slider.value) >= last() ? 0 : Number(this.slider.value);
    this.timer = setInterval(() => {
      this.page.move(at);
      at += 1;
      if (at > last()) this.stop();
    }, TICK);
  }

  stop() {
    clearInterval(this.timer);
    this.timer = null;
    this.play.textContent = "▶";
  }
}
