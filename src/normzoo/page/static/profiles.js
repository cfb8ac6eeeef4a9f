// The views of depth charts: the story, evaluation, internal covariate shift.
import { columns, div, el, grid } from "./dom.js";
import { NO_SHIFT, profile, profileCsv, samplesAt } from "./profile.js";
import { format } from "./scale.js";

const FLOW = { title: "Gradient of the layer's output", unit: "L2 norm", monitor: "GradientFlow", metric: "flow_norm" };
const GAP = {
  title: "Running against batch statistics",
  unit: "gap, in running standard deviations",
  monitor: "RunningStatistics",
  metric: "running_gap",
};
const DRIFT = {
  title: "Drift of the input since step 0",
  unit: "W2, in deviations at step 0",
  monitor: "CovariateShift",
  metric: "drift_w2",
  leaveOutInput: true,
};
const STEP = {
  title: "Move since the last sample",
  unit: "W2, in deviations",
  monitor: "CovariateShift",
  metric: "step_w2",
  leaveOutInput: true,
};
const DEPTH = { title: "Distance from the network's input", unit: "W2, in deviations", monitor: "CovariateShift", metric: "depth_w2" };
const ICS = {
  title: "Internal covariate shift by gradients",
  unit: "‖G − G′‖ / ‖G‖",
  monitor: "InternalCovariateShift",
  metric: "ics_relative",
};
const VALIDATION = {
  title: "Validation against training",
  unit: "W2, in deviations; grey: up to twice the noise floor",
  monitor: "CovariateShift",
  metric: "val_w2",
  floor: "val_w2_floor",
};
const TEST = { ...VALIDATION, title: "Test against training", metric: "test_w2", floor: "test_w2_floor" };

const STORY = [
  FLOW,
  DRIFT,
  DEPTH,
  GAP,
  {
    title: "Width of the input's 15-85 % band",
    unit: "of nonlinearities, in units of the input",
    monitor: "ActivationPercentiles",
    metric: "input_width",
  },
  ICS,
  VALIDATION,
  TEST,
];

/** The three that compare runs. */
export const MONITORS = [FLOW, DRIFT, GAP];

const SHIFTS = [
  {
    heading: "Over time",
    text: "Has the distribution of a layer's input moved since step 0? Expect a rise with depth without a norm, and a small, level line where a norm holds the input of the next layer. The network's input is left out: it is data.",
    charts: [DRIFT, STEP],
  },
  {
    heading: "Over depth",
    text: "How far is a layer's distribution from that of the network's input, and how much does each block change it? Expect growth with depth, unless a norm or a saturating activation resets the scale.",
    charts: [
      DEPTH,
      { title: "From input to output of each block", unit: "W2, in deviations", monitor: "CovariateShift", metric: "block_w2" },
    ],
  },
  {
    heading: "By gradients",
    text: "How much does the update of the layers below change a layer's gradient? It is often larger with BatchNorm than without a norm: Santurkar et al. (2018) found this, and it is expected.",
    charts: [
      ICS,
      {
        title: "Cosine of the two gradients",
        unit: "G · G′ / ‖G‖ ‖G′‖; 1: same direction",
        monitor: "InternalCovariateShift",
        metric: "ics_cosine",
      },
    ],
  },
];

export const profilesView = {
  id: "depth",
  title: "Depth profiles",
  about:
    "Each line is a norm, or one setting of it; the band spans its seeds. Layers run from the input at the left to the output at the right. Click a layer to pin it. In the drift, the network's input is left out: it is data.",
  byStep: true,
  draw(page) {
    const fit = columns(page.width, 300, 4);
    return [grid(fit, ...STORY.map((chart) => profile(page, chart, fit.width)))];
  },
  csv: (page) => profileCsv(page, STORY),
};

/** How many layers of each norm lie above twice the noise floor, in any of its seeds. */
function floorSentences(page, chart) {
  const floors = samplesAt(page, chart, chart.floor);
  return page.groups.flatMap((group) => {
    const samples = samplesAt(page, chart).filter((sample) => sample.group === group);
    const layers = samples.flatMap(({ run, layers: names, values }) =>
      names.flatMap((name, i) => {
        const floor = floors.find((sample) => sample.run === run)?.values[i];
        return values[i] === null || !(floor >= 0) ? [] : [{ name, value: values[i], floor }];
      }),
    );
    if (!layers.length) return [];
    const worst = layers.reduce((most, layer) => (layer.value / layer.floor > most.value / most.floor ? layer : most));
    const above = new Set(layers.filter(({ value, floor }) => value > NO_SHIFT * floor).map(({ name }) => name)).size;
    const seeds = group.runs.length > 1 ? `, ${group.runs.length} seeds` : "";
    const text = above
      ? `${above} of ${samples[0].layers.length} layers above twice the noise floor, most ${worst.name}: ${format(worst.value)}, floor ${format(worst.floor)}.`
      : "all layers within twice the noise floor.";
    return [el("li", {}, el("i", { class: "nz-dot", style: `background:${page.color(group)}` }), `${group.label}${seeds}: ${text}`)];
  });
}

export const evaluationView = {
  id: "evaluation",
  title: "Train, validation, test by depth",
  about:
    "Distance between a layer's input in training and in evaluation, at equal weights. The noise floor is what two samples of one distribution differ by on average; up to twice as much is no shift.",
  byStep: true,
  draw(page) {
    const fit = columns(page.width, 420, 2);
    const notes = (chart) => el("ul", { class: "nz-notes" }, ...floorSentences(page, chart));
    return [grid(fit, ...[VALIDATION, TEST].map((chart) => div("", profile(page, chart, fit.width, 280), notes(chart))))];
  },
  csv: (page) => profileCsv(page, [VALIDATION, TEST]),
};

export const shiftView = {
  id: "shift",
  title: "Internal covariate shift",
  about: "Three definitions that answer three questions.",
  byStep: true,
  draw(page) {
    const fit = columns(page.width, 300, 3);
    const part = ({ heading, text, charts }) =>
      div("nz-aligned", el("h3", {}, heading), el("p", {}, text), ...charts.map((chart) => profile(page, chart, fit.width, 235)));
    return [grid(fit, ...SHIFTS.map(part))];
  },
  csv: (page) =>
    profileCsv(
      page,
      SHIFTS.flatMap((one) => one.charts),
    ),
};
