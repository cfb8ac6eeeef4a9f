// Curves over steps: a line per arm, a band over its seeds.
import { BIG, timesOf } from "./compared.js";
import { band, before, median, panelsOf } from "./data.js";
import { columns, grid } from "./dom.js";
import { lineChart } from "./lines.js";
import { why } from "./profile.js";
import { Extent, format } from "./scale.js";

const BEYOND = [100, 10]; // times the median value, and times the median of the first ones: larger values are cut
const LOSSES = ["train/loss", "train_loss", "loss", "train_loss_step", "train/loss_step"];
const MOST_LINES = 6; // in one chart; more get a panel for each norm that has several

/** The finite part of a scalar, up to its first value that is none: {steps, values, ended: whether there was one}. */
function finite(run, tag) {
  const { steps, values } = run.scalars[tag] ?? { steps: [], values: [] };
  const end = values.findIndex((value) => !Number.isFinite(value));
  return end < 0 ? { steps, values, ended: false } : { steps: steps.slice(0, end), values: values.slice(0, end), ended: true };
}

/** The value at a step, between two points on the line through them; null outside of the curve. */
function valueAt({ steps, values }, step) {
  const at = before(steps, step);
  if (at < 0 || (at === steps.length - 1 && steps[at] < step)) return null;
  if (steps[at] === step) return values[at];
  return values[at] + ((step - steps[at]) / (steps[at + 1] - steps[at])) * (values[at + 1] - values[at]);
}

function groupCurve(page, group, tag) {
  const curves = group.runs.map((run) => finite(run, tag)).filter((curve) => curve.steps.length);
  const steps = [...new Set(curves.flatMap((curve) => curve.steps))].sort((a, b) => a - b);
  const points = steps.map((x) => {
    const values = curves.map((curve) => valueAt(curve, x)).filter((value) => value !== null);
    return { x, ...band(values), name: values.length < group.runs.length ? `${values.length} of ${group.runs.length} seeds` : "" };
  });
  return { label: group.label, color: page.color(group), dash: group.dash, points, plain: true };
}

/** A cross where a run diverged. */
function endMarks(page, group, tag) {
  const failures = new Map((group.arm?.failures ?? []).map((failure) => [failure.run, failure]));
  return group.runs.flatMap((run) => {
    const curve = finite(run, tag);
    const failure = failures.get(run.name);
    if (!curve.ended && failure?.kind !== "diverged") return [];
    const last = curve.steps.length - 1;
    return [
      { x: failure?.step ?? run.scalars[tag]?.steps[last + 1] ?? 0, y: last < 0 ? null : curve.values[last], color: page.color(group) },
    ];
  });
}

/** The extents of all curves: of steps, and of values up to `most`. Where one explodes, the others must remain legible. */
function curveExtents(lines, target) {
  const points = lines.flatMap((line) => line.points);
  const [x, y] = [new Extent(), new Extent()];
  const size = (some) => Math.abs(median(some.map((point) => point.y)) ?? 0);
  const first = lines.flatMap((line) => line.points.slice(0, 1));
  const most = Math.max(BEYOND[0] * size(points), BEYOND[1] * size(first));
  for (const point of points) {
    x.add(point.x);
    [point.low, point.high].filter((value) => value <= most).forEach((value) => y.add(value));
  }
  if (target !== null) y.add(target);
  return { x, y, cut: points.some((point) => point.high > most) ? most : null };
}

function targetLine(page, target, x) {
  const points = [x.min, x.max].map((place) => ({ x: place, y: target, low: target, high: target }));
  return { label: "target", color: page.theme.soft, dash: 1, thin: true, points };
}

/** The chart of a metric for some groups, or the reason why there is none. The axes are those of all groups. */
function curveChart(page, { tag, target, times }, { title, groups }, width) {
  const lines = page.groups.map((group) => groupCurve(page, group, tag));
  const marks = new Map(page.groups.map((group) => [group, endMarks(page, group, tag)]));
  const { x, y, cut } = curveExtents(lines, target);
  [...marks.values()].flat().forEach((mark) => x.add(mark.x));
  const mine = lines.filter((_, i) => groups.includes(page.groups[i]));
  const spec = {
    title: [tag, times > 1 ? "%" : "", title].filter(Boolean).join(", "),
    times,
    unit: `median, least to greatest seed${cut === null ? "" : `; cut at ${format(cut)}`}`,
    width,
    height: 340,
    font: title ? BIG - 1 : BIG,
    series: x.empty ? [] : [...mine, ...(target === null ? [] : [targetLine(page, target, x)])],
    marks: groups.flatMap((group) => marks.get(group)),
    extent: y,
    xRange: [x.min, x.max],
    xTitle: "step (updates of the weights)",
    tight: true,
    markTitle: "diverged",
    below: [...marks.values()].flat().some((mark) => mark.y === null),
    tipTitle: (step) => `step ${step}`,
    empty: page.runs.length ? `The chosen runs have no values of ${tag} yet.` : why(page),
  };
  return lineChart(spec, page.theme);
}

/** The metric that validation measures, with its target, and the training loss. */
function metricsOf({ comparison, runs }) {
  const { chosen_by: chosenBy, target } = comparison;
  const loss = LOSSES.find((tag) => runs.some((run) => run.scalars[tag])) ?? LOSSES[0];
  return [
    { tag: chosenBy ?? "val/loss", target, times: timesOf(comparison) },
    { tag: loss, target: null, times: 1 },
  ];
}

export const curvesView = {
  id: "curves",
  title: "Curves with seed bands",
  about:
    "A line is a setting, its band spans the seeds. A cross ends a run that diverged; from there on the band spans those that are left.",
  shows: (page) => Boolean(page.comparison),
  draw(page) {
    const each = panelsOf(page.groups);
    const many = page.groups.length > MOST_LINES && each.length < page.groups.length;
    const panels = many ? each : [{ title: "", groups: page.groups }];
    const least = panels.length > 1 ? 300 : 420;
    const fit = columns(page.width, least, panels.length > 1 ? Math.min(3, panels.length) : 2);
    const draw = (metric) => panels.map((panel) => curveChart(page, metric, panel, fit.width));
    const charts = metricsOf(page).map(draw);
    return panels.length > 1 ? charts.map((row) => grid(fit, ...row)) : [grid(fit, ...charts.flat())];
  },
  csv(page) {
    const tags = metricsOf(page).map(({ tag }) => tag);
    const rows = page.groups.flatMap((group) =>
      tags.flatMap((tag) =>
        groupCurve(page, group, tag).points.map(({ x, y, low, high }) => [group.label, group.norm, tag, x, y, low, high]),
      ),
    );
    return [["arm", "norm", "metric", "step", "median", "low", "high"], ...rows];
  },
};
