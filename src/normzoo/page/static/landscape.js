// The loss along the gradient, over eta x step.
import { columns, div, el, grid } from "./dom.js";
import { band, before, runLabel } from "./data.js";
import { ColourScale, heatmap, valueLine } from "./heat.js";
import { someRuns, stepRange } from "./layers.js";
import { lineChart } from "./lines.js";
import { Extent, format } from "./scale.js";

const LOSS = { key: "loss", title: "Loss after a step of size η", unit: "loss at the weights − η · gradient" };
const CHANGE = { key: "gradient_change", title: "Change of the gradient after a step of size η", unit: "L2 distance of the gradients" };

function extentOf(runs, key) {
  const extent = new Extent();
  for (const run of runs) run.landscape?.[key]?.flat().forEach((value) => extent.add(value));
  return extent;
}

function surface(page, run, group, colours, width) {
  const { steps = [], eta = [], loss = [] } = run.landscape ?? {};
  const row = (i) => eta.length - 1 - i; // the largest eta on top
  return heatmap(
    {
      title: runLabel(run, group),
      unit: "loss, over η (up) and step",
      width,
      height: 80 + Math.max(120, eta.length * 17),
      steps,
      range: stepRange(page),
      rows: eta.length,
      names: eta.map((_, i) => `η ${format(eta[row(i)])}`),
      room: 66,
      colour: (column, i) => colours.colour(loss[column][row(i)]),
      tip: (column, i) => [`step ${steps[column]}`, [valueLine(page.color(group), `η ${format(eta[row(i)])}`, loss[column][row(i)])]],
      zoom: (range) => page.change({ zoom: range }),
      empty: "No curve of the landscape in this run: the monitor LossLandscape was off.",
    },
    page.theme,
  );
}

/** The curve of each norm at the step of the slider, with a band over its seeds. */
function curve(page, { key, title, unit }, width) {
  const lines = page.groups.flatMap((group) => {
    const samples = group.runs.flatMap(({ landscape }) => {
      const at = landscape ? before(landscape.steps, page.step) : -1;
      return at < 0 || !landscape[key]?.[at] ? [] : [{ eta: landscape.eta, values: landscape[key][at], step: landscape.steps[at] }];
    });
    if (!samples.length) return [];
    const points = samples[0].eta.map((_, i) => ({
      x: i,
      ...band(samples.map(({ values }) => values[i] ?? null)),
      name: `step ${samples[0].step}`,
    }));
    return [{ label: group.label, color: page.color(group), dash: group.dash, points: points.filter((point) => point.y !== null) }];
  });
  const eta = page.runs.find((run) => run.landscape).landscape.eta.map(format);
  return lineChart(
    {
      title,
      unit,
      width,
      height: 260,
      series: lines,
      extent: extentOf(page.runs, key),
      xRange: [0, eta.length - 1],
      xLabels: eta,
      xTitle: "η, size of the step",
      tipTitle: (i) => `η ${eta[i]}`,
      empty: "No landscape was sampled up to this step.",
    },
    page.theme,
  );
}

export const landscapeView = {
  id: "landscape",
  title: "Loss landscape",
  about: "The loss along the gradient of one batch: the flatter over η, the larger the learning rate that the network takes.",
  byStep: true,
  draw(page) {
    if (!page.runs.some((run) => run.landscape))
      return [
        el(
          "p",
          { class: "nz-empty" },
          page.runs.length ? "No curve of the landscape in these runs: the monitor LossLandscape was off." : "No run is chosen.",
        ),
      ];
    const colours = new ColourScale(extentOf(page.runs, "loss"), page.theme);
    const [wide, small] = [columns(page.width, 420, 2), columns(page.width, 300, 4)];
    return [
      grid(wide, ...[LOSS, CHANGE].map((one) => curve(page, one, wide.width))),
      div("", colours.legend(page.width, `loss${colours.scale.kind === "log" ? ", logarithmic" : ""}`)),
      grid(small, ...someRuns(page, ({ run, group }) => surface(page, run, group, colours, small.width))),
    ];
  },
  csv(page) {
    const rows = page.runs.flatMap((run) =>
      (run.landscape?.steps ?? []).flatMap((step, i) =>
        run.landscape.eta.map((eta, k) => [
          run.name,
          run.norm,
          run.seed,
          step,
          eta,
          run.landscape.loss[i][k],
          run.landscape.gradient_change?.[i]?.[k] ?? null,
        ]),
      ),
    );
    return [["run", "norm", "seed", "step", "eta", "loss", "gradient_change"], ...rows];
  },
};
