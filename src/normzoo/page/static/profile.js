// A chart with the depth of the network on x and one line per norm.
import { band, before, series } from "./data.js";
import { lineChart } from "./lines.js";
import { Extent, format } from "./scale.js";

/** A distance of up to this many noise floors is no shift: the floor is the mean over samples of one distribution. */
export const NO_SHIFT = 2;

const EMPTY_RUNS = "No run is chosen: choose one in the list of runs.";

/** Why a chart of a metric shows nothing at this step, in one sentence. */
export function why(page, monitor, metric, leaveOutInput) {
  if (!page.runs.length) return page.waits ? "The chosen runs have not started." : EMPTY_RUNS;
  const found = (...options) => page.runs.map((run) => series(run, monitor, metric, ...options)).filter(Boolean);
  const samples = found();
  if (samples.length && !found("all", leaveOutInput).length) return "All layers here take the network's input, which is data.";
  if (samples.length) return `No value yet at this step: the first is at step ${Math.min(...samples.map((one) => one.steps[0]))}.`;
  const runs = page.runs.length > 1 ? "these runs" : "this run";
  if (monitor === "RunningStatistics" && page.runs.every((run) => run.norm === "NoNorm"))
    return `No norm in ${runs}: there are no running statistics.`;
  if (monitor === "RunningStatistics" && metric.startsWith("running") && page.runs.some((run) => run.tables[monitor]))
    return `The norms of ${runs} keep no running statistics.`;
  if (/^(val|test)_/.test(metric)) return `No ${metric.startsWith("val") ? "validation" : "test"} was measured in ${runs}.`;
  return page.runs.some((run) => run.tables[monitor])
    ? `${monitor} has no values of ${metric} in ${runs}.`
    : `The monitor ${monitor} was off in ${runs}.`;
}

/** The rows of a run that a chart shows. */
function chartSeries(page, run, { monitor, metric, leaveOutInput }) {
  return series(run, monitor, metric, page.state.rows ?? "weighted", leaveOutInput);
}

/** Rows of a chart's metric at the step of the slider, one per run: {group, run, step, layers, places, of, values}. */
export function samplesAt(page, chart, metric = chart.metric) {
  return page.groups.flatMap((group) =>
    group.runs.flatMap((run) => {
      const all = chartSeries(page, run, { ...chart, metric });
      const at = all ? before(all.steps, page.step) : -1;
      return at < 0 ? [] : [{ ...all, group, run, step: all.steps[at], values: all.values[at] }];
    }),
  );
}

/** Networks of one depth share the number of the layer as x; others share the relative depth. */
function depthAxis(samples) {
  const counts = new Set(samples.map((sample) => sample.of));
  const count = Math.max(1, ...counts);
  if (counts.size <= 1) {
    return {
      xTitle: "layer, in order of execution",
      xRange: [1, count],
      x: (i) => i + 1,
      whole: true,
      tipTitle: (x) => `layer ${x} of ${count}`,
    };
  }
  return {
    xTitle: "relative depth (0: first layer, 1: last)",
    xRange: [0, 1],
    x: (i, of) => (of > 1 ? i / (of - 1) : 0),
    tipTitle: (x) => `relative depth ${format(x)}`,
  };
}

function groupLine(group, samples, axis, page) {
  const mine = samples.filter((sample) => sample.group === group);
  if (!mine.length) return [];
  const names = mine[0].layers;
  const late = mine[0].step < page.step && mine[0].step === mine[0].run.last_step ? ` (step ${mine[0].step})` : "";
  const points = names.map((name, i) => ({
    x: axis.x(mine[0].places[i], mine[0].of),
    ...band(mine.map((sample) => sample.values[i] ?? null)),
    name,
  }));
  return [{ label: group.label + late, color: page.color(group), dash: group.dash, points: points.filter((point) => point.y !== null) }];
}

/** Twice the largest noise floor of any run at each depth. */
function floorLine(page, chart, axis) {
  const points = new Map();
  for (const sample of samplesAt(page, chart, chart.floor)) {
    sample.values.forEach((value, i) => {
      const x = axis.x(sample.places[i], sample.of);
      if (value !== null) points.set(x, Math.max(NO_SHIFT * value, points.get(x) ?? 0));
    });
  }
  const line = [...points].sort((a, b) => a[0] - b[0]).map(([x, y]) => ({ x, y, low: 0, high: y, name: "" }));
  return line.length ? [{ label: "twice the noise floor", color: page.theme.soft, dash: 1, thin: true, points: line }] : [];
}

/** The axis stays the same at all steps, so that a move of the slider shows a change; but a floor must be told from 0 at each. */
function wholeExtent(runs, page, chart, lines) {
  const extent = new Extent();
  if (chart.floor) {
    for (const { points } of lines) for (const { y, high } of points) [0, y, high].forEach((value) => extent.add(value));
    return extent;
  }
  for (const run of runs) {
    const all = chartSeries(page, run, chart);
    if (all) extent.merge(all.extent);
  }
  return extent;
}

/** The chart of a metric over depth, at the step of the slider. Its axis is that of all runs of `whole`. */
export function profile(page, chart, width, height = 240, whole = page) {
  const samples = samplesAt(page, chart);
  const axis = depthAxis(samples);
  const lines = page.groups.flatMap((group) => groupLine(group, samples, axis, page));
  const all = [...(chart.floor ? floorLine(page, chart, axis) : []), ...lines];
  const pick = (x) => {
    const point = lines[0]?.points.find((one) => one.x === x) ?? lines.flatMap((line) => line.points).find((one) => one.x === x);
    if (point) page.change({ layer: point.name });
  };
  return lineChart(
    {
      ...chart,
      ...axis,
      width,
      height,
      series: all,
      extent: wholeExtent(whole.runs, page, chart, all),
      empty: why(page, chart.monitor, chart.metric, chart.leaveOutInput),
      pick,
    },
    page.theme,
  );
}

/** Rows of a CSV file: what the charts show. */
export function profileCsv(page, charts) {
  const head = ["monitor", "metric", "run", "norm", "seed", "step", "number", "layer", "value"];
  const rows = charts.flatMap((chart) =>
    [chart.metric, chart.floor]
      .filter(Boolean)
      .flatMap((name) =>
        samplesAt(page, chart, name).flatMap(({ run, step, layers, places, values }) =>
          layers.map((layer, i) => [chart.monitor, name, run.name, run.norm, run.seed, step, places[i] + 1, layer, values[i]]),
        ),
      ),
  );
  return [head, ...rows];
}
