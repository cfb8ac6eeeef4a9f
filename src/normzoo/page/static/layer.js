// The page of one layer: histogram over steps, percentiles, batch against running statistics, gamma and beta.
import { before, ownLayer, runLabel, series } from "./data.js";
import { columns, el, grid } from "./dom.js";
import { histogramChart, histograms } from "./histogram.js";
import { someRuns, stepRange } from "./layers.js";
import { lineChart } from "./lines.js";
import { why } from "./profile.js";
import { Extent } from "./scale.js";

/** A line per group over steps, with a band between two metrics or around the middle. */
function overSteps(page, { title, unit, monitor, middle, band }, width) {
  const extent = new Extent();
  const [from, to] = stepRange(page);
  const lines = page.groups.flatMap((group) => {
    const run = group.runs[0];
    const all = [middle, ...band.metrics].map((metric) => series(run, monitor, metric));
    if (all.some((one) => !one)) return [];
    const name = ownLayer(page, run, all[0].layers);
    const at = all[0].layers.indexOf(name);
    if (at < 0) return [];
    const points = all[0].steps.flatMap((step, i) => {
      if (step < from || step > to) return [];
      const [y, ...others] = all.map((one) => one.values[i]?.[at] ?? null);
      if (y === null) return [];
      const [low, high] = band.around ? [y - others[0], y + others[0]] : others;
      [y, low, high].forEach((value) => extent.add(value));
      return [{ x: step, y, low, high, name }];
    });
    return [{ label: runLabel(run, group), color: page.color(group), dash: group.dash, thin: true, edges: true, points }];
  });
  const finite = lines.map((line) => ({
    ...line,
    points: line.points.filter((point) => Number.isFinite(point.low) && Number.isFinite(point.high)),
  }));
  return lineChart(
    {
      title,
      unit,
      width,
      height: 250,
      series: finite,
      extent,
      xRange: [from, to],
      xTitle: "step",
      overSteps: true,
      tight: true,
      tipTitle: (step) => `step ${step}`,
      empty: why(page, monitor, middle),
    },
    page.theme,
  );
}

const BANDS = [
  {
    title: "Input of the nonlinearity",
    unit: "median, band from 15 % to 85 %",
    monitor: "ActivationPercentiles",
    middle: "input_p50",
    band: { metrics: ["input_p15", "input_p85"] },
  },
  {
    title: "Scale γ over steps",
    unit: "mean and deviation over channels",
    monitor: "RunningStatistics",
    middle: "gamma_mean",
    band: { metrics: ["gamma_std"], around: true },
  },
  {
    title: "Shift β over steps",
    unit: "mean and deviation over channels",
    monitor: "RunningStatistics",
    middle: "beta_mean",
    band: { metrics: ["beta_std"], around: true },
  },
];

/** Channels of the layer's norm at the step of the slider; null without. */
function channelsAt(page, run) {
  const name = ownLayer(page, run, Object.keys(run.channels));
  const table = name ? run.channels[name] : null;
  const at = table ? Math.max(0, before(table.steps, page.step)) : -1;
  const column = (metric) => table.metrics.indexOf(metric);
  if (!table?.steps.length || ["batch_mean", "batch_var", "running_mean", "running_var"].some((metric) => column(metric) < 0)) return null;
  const pick = (metric) => table.values[at].map((channel) => channel[column(metric)]);
  return {
    name,
    step: table.steps[at],
    batch: [pick("batch_mean"), pick("batch_var")],
    running: [pick("running_mean"), pick("running_var")],
  };
}

function channelChart(page, { run, group, data }, width) {
  const extent = new Extent();
  const order = [...data.running[0].keys()].sort((a, b) => data.running[0][a] - data.running[0][b]);
  const line = ([means, variances], text, color, dash) => ({
    label: text,
    color,
    dash,
    thin: true,
    edges: true,
    points: order.flatMap((channel, i) => {
      const [y, deviation] = [means[channel], Math.sqrt(variances[channel])];
      if (y === null || !Number.isFinite(y) || !Number.isFinite(deviation)) return [];
      [y - deviation, y + deviation].forEach((value) => extent.add(value));
      return [{ x: i, y, low: y - deviation, high: y + deviation, name: `channel ${channel}` }];
    }),
  });
  const lines = [line(data.batch, "batch", page.color(group), 0), line(data.running, "running", page.theme.ink, 1)];
  return lineChart(
    {
      title: `${runLabel(run, group)}, step ${data.step}`,
      unit: "mean ± deviation; coloured: batch, dashed: running",
      width,
      height: 250,
      series: lines,
      extent,
      xRange: [0, Math.max(1, order.length - 1)],
      tight: true,
      xTitle: "channel, by running mean",
      tipTitle: (i) => `${data.name}, place ${i + 1} of ${order.length}`,
      empty: "No finite statistics at this step.",
    },
    page.theme,
  );
}

/** Charts of the runs that have data, and one sentence on the others. */
function perRun(page, read, chart, width, sentence) {
  const found = new Map(page.runs.map((run) => [run, read(page, run)]));
  const groups = page.groups.map((group) => ({ ...group, runs: group.runs.filter((run) => found.get(run)) }));
  const charts = someRuns(
    { ...page, groups, showMore: (count) => page.showMore(count) },
    ({ run, group }) => chart(page, { run, group, data: found.get(run) }, width),
    3,
  );
  const without = page.groups.filter((group) => group.runs.some((run) => !found.get(run)));
  return [
    ...charts,
    without.length ? el("p", { class: "nz-empty" }, ...without.map((group) => el("span", {}, `${group.label}: ${sentence(group)}`))) : "",
  ];
}

const LEFT_OUT = "left out of a report of more than 12 runs; a report of fewer has it.";
const noHistogram = ({ runs }) =>
  runs.some((run) => run.left_out) ? LEFT_OUT : "no histogram of this layer or of the nonlinearity after it.";
const noChannels = ({ norm, runs }) => {
  if (norm === "NoNorm") return "no norm in this run: there are no running statistics.";
  return runs.some((run) => run.left_out) ? LEFT_OUT : "its norm keeps no running statistics, or no detail was sampled.";
};

function drawAll(page, parts) {
  const fit = columns(page.width, 300, 3);
  return parts.flatMap(([title, draw]) => [el("h3", {}, title), grid(fit, ...draw(fit.width))]);
}

export const layerView = {
  id: "layer",
  title: "A layer's page",
  about: "The pinned layer, with the nonlinearity and the norm that belong to it. Brighter: more of the values (logarithmic).",
  byStep: true,
  draw(page) {
    if (!page.layer)
      return [
        el("p", { class: "nz-empty" }, page.runs.length ? "No monitor wrote a table in these runs: there is no layer to show." : why(page)),
      ];
    return [
      el("p", { class: "nz-pinned" }, page.layer),
      ...drawAll(page, [
        ["Inputs of the nonlinearity over steps", (width) => perRun(page, histograms, histogramChart, width, noHistogram)],
        ["Percentiles, scale and shift", (width) => BANDS.map((band) => overSteps(page, band, width))],
        ["Batch against running statistics, per channel", (width) => perRun(page, channelsAt, channelChart, width, noChannels)],
      ]),
    ];
  },
  csv(page) {
    const head = ["monitor", "metric", "run", "norm", "seed", "step", "layer", "value"];
    const rows = page.runs.flatMap((run) =>
      BANDS.flatMap(({ monitor, middle, band }) =>
        [middle, ...band.metrics].flatMap((metric) => {
          const all = series(run, monitor, metric);
          const at = all ? all.layers.indexOf(ownLayer(page, run, all.layers)) : -1;
          return at < 0
            ? []
            : all.steps.map((step, i) => [monitor, metric, run.name, run.norm, run.seed, step, all.layers[at], all.values[i][at]]);
        }),
      ),
    );
    return [head, ...rows];
  },
};
