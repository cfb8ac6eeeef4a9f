// What the rules found, in words, at the top.
import { div, el } from "./dom.js";
import { runLabel } from "./data.js";
import { format } from "./scale.js";

const RULES = {
  vanishing: "Vanishing gradient",
  exploding: "Exploding gradient",
  non_finite: "Not finite",
  dead: "Dead units",
  saturated: "Saturated",
  running_lag: "Running statistics lag",
  shift: "Shift in evaluation",
  not_learning: "Does not learn",
};

/** The last value of a scalar, such as val/accuracy. */
function last(run, tag) {
  const values = run.scalars[tag]?.values ?? [];
  return values.length ? `${tag} ${format(values[values.length - 1])}` : null;
}

/** How far a run is. Steps count from 0, so its last one has the number `steps` - 1, and an evaluation after it `steps`. */
function progress(run) {
  const done = run.last_step + 1 >= run.steps ? run.steps : run.last_step;
  const steps = run.steps ? `${done} of ${run.steps} steps` : `step ${run.last_step}`;
  return [run.finished ? steps : `${steps}, not finished`, last(run, "train/loss"), last(run, "val/accuracy")].filter(Boolean).join(" · ");
}

function line(page, verdict) {
  const go = () => page.change({ step: verdict.step, layer: verdict.layer ?? page.state.layer });
  return el(
    "li",
    {},
    el("span", { class: "nz-rule" }, RULES[verdict.rule] ?? verdict.rule),
    el("span", {}, `${verdict.text} `, el("em", {}, verdict.remedy)),
    el("button", { type: "button", onclick: go, title: "Moves the slider there and pins the layer" }, `Show step ${verdict.step}`),
  );
}

/** What is said of a run without a verdict: healthy only if the rules have looked at all of it. */
function unblamed(run) {
  if (run.judged !== false) return el("span", { class: "nz-healthy" }, "Healthy: no rule found anything wrong.");
  return el("span", {}, run.finished ? "No rule looked at this run." : "No verdict so far.");
}

function card(page, group, run) {
  const healthy = !run.verdicts.length;
  return el(
    "article",
    { class: "nz-verdict", style: `border-left-color:${page.color(group)}` },
    el("h3", {}, runLabel(run, group), healthy ? unblamed(run) : null, el("small", {}, progress(run))),
    healthy ? null : el("ul", {}, ...run.verdicts.map((verdict) => line(page, verdict))),
  );
}

export const verdictsView = {
  id: "verdicts",
  title: "Verdicts",
  about: "",
  draw(page) {
    if (!page.runs.length)
      return [
        el(
          "p",
          { class: "nz-empty" },
          page.any
            ? "No run is chosen: choose one in the list of runs."
            : "No runs: nothing was found here. Train with the monitors on, and open the page again.",
        ),
      ];
    const runs = page.groups.flatMap((group) => group.runs.map((run) => ({ group, run })));
    const ill = ({ run }) => Math.min(1, run.verdicts.length); // those with a finding come first
    return [div("nz-verdicts", ...runs.sort((a, b) => ill(b) - ill(a)).map(({ group, run }) => card(page, group, run)))];
  },
  csv(page) {
    const fields = ["rule", "layer", "step", "value", "threshold", "text", "remedy"];
    return [
      ["run", "norm", "seed", ...fields],
      ...page.runs.flatMap((run) =>
        run.verdicts.map((verdict) => [run.name, run.norm, run.seed, ...fields.map((field) => verdict[field])]),
      ),
    ];
  },
};
