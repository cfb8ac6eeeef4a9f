// The result against a setting that is a number, such as the learning rate: a line per norm.
import { BIG, axisName, failureCount, metricName, numericAxes, seedCount, settingText, timesOf } from "./compared.js";
import { div, el } from "./dom.js";
import { lineChart } from "./lines.js";
import { Extent, format } from "./scale.js";
import { lineRound } from "./theme.js";

const MOST_COLOURED = 8; // in colour; of more, those with a chosen run
const DODGE = 15; // pixels between the points of two norms at one place

function chosenAxis(page) {
  const axes = numericAxes(page.comparison);
  return axes.includes(page.state.axis) ? page.state.axis : (axes.find((axis) => axis.endsWith(".lr")) ?? axes[0]);
}

/** Arms that differ in the axis only, as [{norm, label, arms, quiet: whether the line is grey}]; the grey ones first. */
function linesOf({ comparison: { arms, axes }, chosen }, axis) {
  const lines = new Map();
  for (const arm of arms.filter((one) => Number.isFinite(one.settings[axis]))) {
    const others = axes
      .filter((other) => other !== axis && other !== "norm")
      .map((other) => `${axisName(other, axes)} ${settingText(arm.settings[other])}`);
    const label = [arm.norm, ...others].join(", ");
    if (!lines.has(label)) lines.set(label, { norm: arm.norm, label, arms: [] });
    lines.get(label).arms.push(arm);
  }
  const isChosen = (line) => line.arms.some((arm) => arm.runs.some((name) => chosen.has(name)));
  const sorted = (line) => line.arms.sort((a, b) => a.settings[axis] - b.settings[axis]);
  return [...lines.values()]
    .map((line) => ({ ...line, quiet: lines.size > MOST_COLOURED && !isChosen(line), arms: sorted(line) }))
    .sort((a, b) => b.quiet - a.quiet);
}

function point(arm, axis) {
  const values = arm.values.filter(Number.isFinite);
  const seeds = `${seedCount(arm)} of ${arm.planned} seeds`;
  const name = [seeds, failureCount(arm), arm.best ? "best" : ""].filter(Boolean).join(", ");
  const range = values.length ? { low: Math.min(...values), high: Math.max(...values) } : { low: null, high: null };
  return { x: arm.settings[axis], y: arm.mean, ...range, name, ring: arm.best && arm.mean !== null, hollow: values.length < arm.planned };
}

/** Dashes tell apart lines of one norm, and norms of one colour. */
function dashOf(page, others, { norm, label }) {
  return lineRound(page.colours.get(norm)) + others.findIndex((one) => one.label === label);
}

function greyLine(page, { label, arms }, axis) {
  const points = arms.map(({ mean, settings }) => ({ x: settings[axis], y: mean, low: mean, high: mean }));
  return { label, color: page.theme.none, dash: 0, thin: true, quiet: true, points };
}

function colouredLine(page, line, lines, axis) {
  const [i, count] = [lines.indexOf(line), lines.length];
  const others = lines.filter((one) => one.norm === line.norm);
  return {
    label: line.label,
    color: page.normColor(line.norm),
    dash: dashOf(page, others, line),
    dodge: (i - (count - 1) / 2) * Math.min(DODGE, 60 / count),
    whiskers: true,
    points: line.arms.map((arm) => point(arm, axis)),
  };
}

function settingChart(page, axis) {
  const { comparison } = page;
  const all = linesOf(page, axis);
  const lines = all.filter((line) => !line.quiet);
  const grey = all.filter((line) => line.quiet).map((line) => greyLine(page, line, axis));
  const coloured = lines.map((line) => colouredLine(page, line, lines, axis));
  const series = [...grey, ...coloured];
  const extent = new Extent();
  for (const { points } of series) for (const { low, high } of points) [low, high].forEach((value) => extent.add(value));
  const marks = lines.flatMap((line, i) =>
    line.arms
      .filter((arm) => arm.failures.length)
      .map((arm) => {
        const [count, { color, dodge }] = [arm.failures.length, coloured[i]];
        return { x: arm.settings[axis], y: null, color, dodge, text: count < arm.planned ? String(count) : "" };
      }),
  );
  const places = [...new Set(series.flatMap((one) => one.points.map(({ x }) => x)))].sort((a, b) => a - b);
  const log = places[0] > 0 && places[places.length - 1] / places[0] >= 8;
  const name = axisName(axis, comparison.axes);
  return lineChart(
    {
      title: `${metricName(comparison)} against ${name}`,
      unit: `mean, least to greatest seed; ring: best of its norm; hollow: some seeds missing${grey.length ? "; grey: not chosen" : ""}`,
      times: timesOf(comparison),
      width: page.width,
      height: 420,
      font: BIG,
      series,
      marks,
      markTitle: "diverged",
      extent,
      tight: true,
      xKind: log ? "log" : "linear",
      xRange: log ? padded(places.map(Math.log10)).map((exponent) => 10 ** exponent) : padded(places),
      xTicks: places,
      xTitle: `${name}${name === axis ? "" : `, ${axis}`}${log ? " (logarithmic)" : ""}`,
      tipTitle: (x) => `${name} ${format(x)}`,
      empty: "No run has finished yet.",
      pick: (x) => page.choose(comparison.arms.filter((arm) => arm.settings[axis] === x).flatMap((arm) => page.runsOf(arm))),
    },
    page.theme,
  );
}

function padded(places) {
  const air = (places[places.length - 1] - places[0]) * 0.06;
  return [places[0] - air, places[places.length - 1] + air];
}

function axisPicker(page, axis) {
  const axes = numericAxes(page.comparison);
  if (axes.length < 2) return null;
  const option = (one) => el("option", { value: one, selected: one === axis }, one);
  const select = el("select", { id: "nz-axis", onchange: (event) => page.change({ axis: event.target.value }) }, ...axes.map(option));
  return div("nz-controls", el("label", { for: "nz-axis" }, "Setting"), select);
}

export const settingView = {
  id: "setting",
  title: "Sensitivity to a setting",
  about:
    "A norm that tolerates many values of a setting has a wide, flat top. A cross at the bottom: runs diverged or failed there. Click a place to see its runs below.",
  early: true,
  shows: (page) => Boolean(page.comparison) && numericAxes(page.comparison).length > 0,
  names(page) {
    const lines = linesOf(page, chosenAxis(page)).filter((line) => !line.quiet);
    const alike = ({ norm }) => lines.filter((line) => line.norm === norm);
    return lines.map((line) => ({ label: line.label, norm: line.norm, dash: dashOf(page, alike(line), line) }));
  },
  draw(page) {
    const axis = chosenAxis(page);
    const names = this.names(page).map((one) => el("span", {}, page.swatch(one), one.label));
    return [axisPicker(page, axis), div("nz-legend", ...names), settingChart(page, axis)];
  },
  csv(page) {
    const axis = chosenAxis(page);
    const rows = linesOf(page, axis).flatMap(({ label, norm, arms }) =>
      arms.flatMap((arm) =>
        arm.seeds.map((seed, i) => [label, norm, axis, arm.settings[axis], seed, page.comparison.metric, arm.values[i], String(arm.best)]),
      ),
    );
    return [["line", "norm", "setting", "value", "seed", "metric", "result", "best"], ...rows];
  },
};
