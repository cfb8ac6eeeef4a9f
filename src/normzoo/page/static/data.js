// Runs, groups of seeds, and rows of tables.
import { Extent } from "./scale.js";
import { lineRound } from "./theme.js";

/** The runs of one norm that differ in their seed only. */
export class Group {
  constructor(norm, colour) {
    Object.assign(this, { norm, colour, label: norm, dash: 0, runs: [] });
  }
}

const caches = new WeakMap();

/** Computes once per run: reading 200 runs again at every step of the slider would take seconds. */
function cached(run, key, compute) {
  if (!caches.has(run)) caches.set(run, new Map());
  const cache = caches.get(run);
  if (!cache.has(key)) cache.set(key, compute());
  return cache.get(key);
}

function structure(run) {
  return run.network.map((layer) => layer.name).join("\n") || Object.values(run.tables)[0]?.layers.join("\n");
}

/** A group for each arm of a comparison. The best arm of a norm has a solid line. */
function groupsOfArms(runs, colours, arms) {
  const groups = arms.map((arm) => {
    const same = arms.filter((other) => other.norm === arm.norm);
    const order = [...same.filter((other) => other.best), ...same.filter((other) => !other.best)];
    const dash = lineRound(colours.get(arm.norm)) + order.indexOf(arm);
    const mine = new Set(arm.runs);
    const group = new Group(arm.norm, colours.get(arm.norm));
    return Object.assign(group, { arm, label: arm.name, dash, runs: runs.filter((run) => mine.has(run.name)) });
  });
  return groups.filter((group) => group.runs.length).sort((a, b) => a.colour - b.colour);
}

/**
 * Groups runs by the arms of a comparison; those of none by norm, experiment and network. A second run of the same seed is no new seed: it gets a
 * group. `colours`: norm -> number.
 */
export function groupsOf(runs, colours, arms = []) {
  const known = new Set(arms.flatMap((arm) => arm.runs));
  const others = runs.filter((run) => !known.has(run.name));
  return [...groupsOfArms(runs, colours, arms), ...groupsOfRuns(others, colours)];
}

function groupsOfRuns(runs, colours) {
  const groups = new Map();
  for (const run of runs) {
    const base = [run.norm, run.experiment, structure(run)].join("\0");
    let again = 0;
    while (groups.get(`${base}\0${again}`)?.runs.some((other) => other.seed === run.seed)) again += 1;
    const key = `${base}\0${again}`;
    if (!groups.has(key)) groups.set(key, new Group(run.norm, colours.get(run.norm)));
    groups.get(key).runs.push(run);
  }
  return named([...groups.values()].sort((a, b) => a.colour - b.colour));
}

/** Adds what tells apart groups of one norm: the experiment, the depth, the folder. */
function named(groups) {
  const depth = (run) => `${run.network.filter((layer) => layer.role === "weighted").length} layers`;
  const folder = (run) => run.name.split("/").slice(-2).join("/");
  for (const differs of [(run) => run.experiment, depth, folder]) {
    for (const label of new Set(groups.map((group) => group.label))) {
      const alike = groups.filter((group) => group.label === label);
      const parts = alike.map((group) => differs(group.runs[0]));
      if (new Set(parts).size > 1) alike.forEach((group, i) => (group.label += ` · ${parts[i]}`));
    }
  }
  for (const group of groups) group.dash = lineRound(group.colour) + groups.filter((other) => other.norm === group.norm).indexOf(group);
  return groups;
}

/** The groups of each panel of small charts: those of one norm, or one group each where there is one norm. */
export function panelsOf(groups) {
  const norms = [...new Set(groups.map((group) => group.norm))];
  if (norms.length < 2) return groups.map((group) => ({ title: group.label, groups: [group] }));
  return norms.map((norm) => ({ title: norm, groups: groups.filter((group) => group.norm === norm) }));
}

/** A run in words. */
export function runLabel(run, group) {
  return run.seed === null ? group.label : `${group.label} seed ${run.seed}`;
}

/** The first seed of every group, then the second: so that what shows few runs shows each norm. */
export function inTurns(groups) {
  const longest = Math.max(0, ...groups.map((group) => group.runs.length));
  return Array.from({ length: longest }, (_, i) =>
    groups.filter((group) => i < group.runs.length).map((group) => ({ group, run: group.runs[i] })),
  ).flat();
}

/** Indices of the rows of a table that a profile shows. Rows of single units, LAYER/UNIT, only for "every". */
function rowsOf(run, table, role) {
  const roles = new Map(run.network.map((layer) => [layer.name, layer.role]));
  const names = new Set(table.layers);
  if (role === "every") return [...table.layers.keys()];
  const isUnit = (name) => /\/\d+$/.test(name) && names.has(name.slice(0, name.lastIndexOf("/")));
  const layers = table.layers.map((_, i) => i).filter((i) => !isUnit(table.layers[i]));
  const chosen = layers.filter((i) => roles.get(table.layers[i]) === role);
  return role !== "all" && chosen.length ? chosen : layers;
}

/** Places of layers in the network among those of their role, and how many there are: a monitor may watch a few. */
function placesOf(run, layers) {
  const roles = new Map(run.network.map((layer) => [layer.name, layer.role]));
  const same = new Set(layers.map((name) => roles.get(name)));
  if (same.size !== 1 || same.has(undefined)) return { places: [...layers.keys()], of: layers.length };
  const order = run.network.filter((layer) => same.has(layer.role)).map((layer) => layer.name);
  return { places: layers.map((name) => order.indexOf(name)), of: order.length };
}

/** Rows of a table whose input is that of the network: their distance from it is 0 in all samples. Such input is data, and no layer moves it. */
function rowsOfData(table) {
  const column = table.metrics.indexOf("depth_w2");
  if (column < 0) return new Set();
  const distances = (row) => table.values.map((sample) => sample[row][column]).filter((value) => value !== null);
  return new Set([...table.layers.keys()].filter((row) => distances(row).length && distances(row).every((value) => value === 0)));
}

/**
 * What a table says of a metric: {steps, layers, places and `of` (see placesOf), values: steps x layers, unit, extent}, without empty steps;
 * null without it. The layers that take the network's input can be left out.
 */
export function series(run, monitor, metric, role = "all", leaveOutInput = false) {
  return cached(run, `${monitor}\0${metric}\0${role}\0${leaveOutInput}`, () => {
    const table = run.tables[monitor];
    const column = table ? table.metrics.indexOf(metric) : -1;
    if (column < 0) return null;
    const names = (indices) => indices.map((i) => table.layers[i]);
    const chosen = rowsOf(run, table, role);
    const { places, of } = placesOf(run, names(chosen));
    const data = leaveOutInput ? rowsOfData(table) : new Set();
    const rows = chosen.filter((row) => !data.has(row));
    const result = {
      steps: [],
      layers: names(rows),
      places: places.filter((_, i) => !data.has(chosen[i])),
      of,
      values: [],
      unit: table.units[column],
      extent: new Extent(),
    };
    table.values.forEach((sample, i) => {
      const row = rows.map((layer) => sample[layer][column]);
      if (row.every((value) => value === null)) return;
      row.forEach((value) => result.extent.add(value));
      result.steps.push(table.steps[i]);
      result.values.push(row);
    });
    return result.steps.length ? result : null;
  });
}

/** Index of the last step that is not after `step`; -1 if all are. */
export function before(steps, step) {
  let [low, high] = [0, steps.length];
  while (low < high) {
    const middle = (low + high) >> 1;
    if (steps[middle] <= step) low = middle + 1;
    else high = middle;
  }
  return low - 1;
}

/** All steps at which a run has a sample, in order. */
export function stepsOf(runs) {
  const steps = new Set();
  for (const run of runs) for (const table of Object.values(run.tables)) table.steps.forEach((step) => steps.add(step));
  return [...steps].sort((a, b) => a - b);
}

/** The layer of a run at the place of `name`: itself, or that of the same relative depth in the network of `other`. */
function sameLayer(run, name, other) {
  const mine = run.network.map((layer) => layer.name);
  const theirs = other ? other.network.map((layer) => layer.name) : [];
  if (mine.includes(name) || !theirs.includes(name) || !mine.length) return name;
  return mine[Math.round((theirs.indexOf(name) / Math.max(1, theirs.length - 1)) * (mine.length - 1))];
}

/** Of `names`, the one that belongs to a layer: itself, the next in the order of the network, or the one before. */
function nearest(run, layer, names) {
  if (names.includes(layer) || !names.length) return names.includes(layer) ? layer : null;
  const order = run.network.map((one) => one.name);
  const at = order.indexOf(layer);
  if (at < 0) return null;
  const known = names.filter((name) => order.includes(name)).sort((a, b) => order.indexOf(a) - order.indexOf(b));
  return known.find((name) => order.indexOf(name) > at) ?? known[known.length - 1] ?? null;
}

/** Of `names`, the one that belongs to the pinned layer in this run. */
export function ownLayer(page, run, names) {
  const other = page.runs.find((one) => one.network.some((layer) => layer.name === page.layer));
  return nearest(run, sameLayer(run, page.layer, other), names);
}

/** Values of several seeds as a point with a band: their median, least and largest finite value. */
export function band(values) {
  const y = median(values);
  const finite = values.filter(Number.isFinite);
  return { y, low: finite.length ? Math.min(...finite) : y, high: finite.length ? Math.max(...finite) : y };
}

/** Middle of the values that are not null; infinities count as largest. */
export function median(values) {
  const sorted = values.filter((value) => value !== null).sort((a, b) => a - b);
  if (!sorted.length) return null;
  const half = sorted.length >> 1;
  return sorted.length % 2 || sorted[half] === sorted[half - 1] ? sorted[half] : (sorted[half - 1] + sorted[half]) / 2;
}
