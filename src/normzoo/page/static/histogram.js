// The histogram of a layer over steps, as a heatmap.
import { median, ownLayer, runLabel } from "./data.js";
import { heatmap } from "./heat.js";
import { stepRange } from "./layers.js";
import { Scale, format } from "./scale.js";
import { SEQUENTIAL } from "./theme.js";

const ROWS = 72; // of the histogram over steps

/** A value axis for histograms of all steps: symmetric-logarithmic if the last samples are far wider than most. */
function valueScale(low, high) {
  const finite = (values) => values.filter(Number.isFinite);
  const [lows, highs] = [finite(low), finite(high)];
  if (!lows.length || !highs.length) return null;
  const reach = median([...lows, ...highs].map(Math.abs)) || 1;
  const [min, max] = [Math.min(...lows), Math.max(...highs)];
  const wide = Math.max(-min, max) > 30 * reach;
  return new Scale(wide ? "symlog" : "linear", min, max > min ? max : min + 1, 0, ROWS, wide ? 10 ** Math.round(Math.log10(reach)) : 1);
}

/** Spreads the bins of one sample over the rows of the common axis, as parts of all values. */
function spread(scale, low, high, counts) {
  const rows = new Float64Array(ROWS);
  const total = counts.reduce((sum, count) => sum + count, 0) || 1;
  counts.forEach((count, i) => {
    if (!count) return;
    const [from, to] = [i, i + 1].map((edge) => scale.pixel(low + ((high - low) * edge) / counts.length));
    const last = Math.min(ROWS - 1, Math.floor(to));
    for (let row = Math.min(ROWS - 1, Math.floor(from)); row <= last; row++) {
      const part = to > from ? (Math.min(to, row + 1) - Math.max(from, row)) / (to - from) : 1;
      rows[row] += (count / total) * Math.max(0, part);
    }
  });
  return rows;
}

/** The histograms of a layer: {name, steps, scale, parts: steps x rows}; null without any. */
export function histograms(page, run) {
  const all = Object.values(run.histograms)[0];
  const name = all ? ownLayer(page, run, all.layers) : null;
  if (!name) return null;
  const at = all.layers.indexOf(name);
  const scale = valueScale(
    all.low.map((row) => row[at]),
    all.high.map((row) => row[at]),
  );
  if (!scale) return null;
  const usable = (i) => Number.isFinite(all.low[i][at]) && Number.isFinite(all.high[i][at]);
  const parts = all.steps.map((_, i) => (usable(i) ? spread(scale, all.low[i][at], all.high[i][at], all.counts[i][at]) : null));
  return { name, steps: all.steps, scale, parts };
}

export function histogramChart(page, { run, group, data }, width) {
  const colour = (part) => SEQUENTIAL[part > 0 ? Math.round(255 * Math.max(0, Math.min(1, 1 + Math.log10(part * 4) / 3))) : 0];
  const edge = (row) => format(data.scale.value(row));
  const share = (part) => (part ? `${(100 * part).toFixed(1)} % of the values` : "none");
  return heatmap(
    {
      title: runLabel(run, group),
      unit: `input of ${data.name}`,
      width,
      height: 260,
      steps: data.steps,
      range: stepRange(page),
      rows: ROWS,
      scale: data.scale,
      room: 52,
      colour: (column, row) => (data.parts[column] ? colour(data.parts[column][ROWS - 1 - row]) : page.theme.none),
      tip: (column, row) => [
        `step ${data.steps[column]}`,
        [
          {
            name: `${edge(ROWS - 1 - row)} to ${edge(ROWS - row)}`,
            text: data.parts[column] ? share(data.parts[column][ROWS - 1 - row]) : "no finite value",
          },
        ],
      ],
      zoom: (range) => page.change({ zoom: range }),
      empty: "No sample in these steps.",
    },
    page.theme,
  );
}
