// The view with a heatmap of layers x steps for each run.
import { columns, div, el, grid } from "./dom.js";
import { inTurns, runLabel, series } from "./data.js";
import { ColourScale, heatmap, valueLine } from "./heat.js";
import { why } from "./profile.js";
import { Extent } from "./scale.js";

/** Steps that all charts over steps share: those of the runs, or those the user zoomed to. */
export function stepRange(page) {
  const steps = page.steps;
  return page.state.zoom ?? [steps[0] ?? 0, steps[steps.length - 1] ?? 1];
}

/** The first runs of a view, each norm among them, and a button for more. */
export function someRuns(page, draw, at = 6) {
  const runs = inTurns(page.groups);
  const shown = Math.max(at, page.more);
  const left = runs.length - shown;
  const button = el(
    "button",
    { type: "button", onclick: () => page.showMore(shown + 12) },
    left > 12 ? `Show 12 of ${left} more runs` : `Show ${left} more ${left > 1 ? "runs" : "run"}`,
  );
  return [...runs.slice(0, shown).map(draw), left > 0 ? button : null].filter(Boolean);
}

/** Pixels for the names of rows. */
export function labelRoom(names, width) {
  return Math.min(Math.max(40, ...names.map((name) => name.length * 6.9 + 10)), width * 0.36);
}

function chosen(page) {
  const known = page.runs.flatMap((run) =>
    Object.entries(run.tables).flatMap(([monitor, table]) => table.metrics.map((metric) => `${monitor} ${metric}`)),
  );
  const wanted = [page.state.metric, "GradientFlow flow_norm"].find((one) => known.includes(one)) ?? known[0];
  return wanted ? wanted.split(" ") : [null, null];
}

function picker(page, monitor, metric) {
  const tables = new Map();
  for (const run of page.runs)
    for (const [name, table] of Object.entries(run.tables)) tables.set(name, new Set([...(tables.get(name) ?? []), ...table.metrics]));
  const option = (name, one) => el("option", { value: `${name} ${one}`, selected: name === monitor && one === metric }, one);
  return el(
    "select",
    { id: "nz-metric", onchange: (event) => page.change({ metric: event.target.value }) },
    ...[...tables].map(([name, metrics]) => el("optgroup", { label: name }, ...[...metrics].map((one) => option(name, one)))),
  );
}

/** Rows with at least one value. */
function filled(run, monitor, metric) {
  const all = series(run, monitor, metric, "every");
  if (!all) return null;
  const kept = all.layers.map((_, i) => i).filter((i) => all.values.some((row) => row[i] !== null));
  return {
    steps: all.steps,
    layers: kept.map((i) => all.layers[i]),
    values: all.values.map((row) => kept.map((i) => row[i])),
    extent: all.extent,
    unit: all.unit,
  };
}

function runHeatmap(page, run, group, data, colours, width) {
  const rows = data ? data.layers.length : 0;
  return heatmap(
    {
      title: runLabel(run, group),
      unit: run.name,
      width,
      height: 80 + Math.min(320, Math.max(120, rows * 17)),
      steps: data?.steps ?? [],
      range: stepRange(page),
      rows,
      names: data?.layers,
      room: data && labelRoom(data.layers, width),
      colour: (column, row) => colours.colour(data.values[column][row]),
      tip: (column, row) => [`step ${data.steps[column]}`, [valueLine(page.color(group), data.layers[row], data.values[column][row])]],
      pick: (row) => page.change({ layer: data.layers[row] }),
      zoom: (range) => page.change({ zoom: range }),
      pinned: page.layer,
      empty: why({ ...page, runs: [run] }, ...chosen(page)),
    },
    page.theme,
  );
}

export const layersView = {
  id: "heatmap",
  title: "Layers × steps",
  about:
    "One colour scale for all runs. Drag to zoom in on steps, double-click to see all, click a layer to pin it; arrow keys, Enter and Escape do the same.",
  draw(page) {
    const [monitor, metric] = chosen(page);
    if (!metric) return [el("p", { class: "nz-empty" }, page.runs.length ? "No monitor wrote a table in these runs." : why(page))];
    const data = new Map(page.runs.map((run) => [run, filled(run, monitor, metric)]));
    const extent = new Extent();
    for (const one of data.values()) if (one) extent.merge(one.extent);
    const colours = new ColourScale(extent, page.theme);
    const unit = [...data.values()].find(Boolean)?.unit ?? "";
    const fit = columns(page.width, 400, 3);
    const draw = ({ run, group }) => runHeatmap(page, run, group, data.get(run), colours, fit.width);
    return [
      div(
        "nz-controls",
        el("label", { for: "nz-metric" }, "Metric"),
        picker(page, monitor, metric),
        el("span", { class: "nz-soft" }, unit),
        page.state.zoom &&
          el("button", { type: "button", onclick: () => page.change({ zoom: null }) }, `Steps ${page.state.zoom.join(" to ")}: show all`),
      ),
      div("", colours.legend(page.width, `${metric}${colours.scale.kind === "log" ? ", logarithmic" : ""}`)),
      grid(fit, ...someRuns(page, draw)),
    ];
  },
  csv(page) {
    const [monitor, metric] = chosen(page);
    const [from, to] = stepRange(page);
    const rows = page.runs.flatMap((run) => {
      const data = metric && filled(run, monitor, metric);
      return (data?.steps ?? []).flatMap((step, i) =>
        step < from || step > to
          ? []
          : data.layers.map((layer, k) => [monitor, metric, run.name, run.norm, run.seed, step, layer, data.values[i][k]]),
      );
    });
    return [["monitor", "metric", "run", "norm", "seed", "step", "layer", "value"], ...rows];
  },
};
