// All arms of a comparison as a table that sorts, and chooses the runs of the views below.
import { axisName, bestArms, failureTexts, interval, metricName, settingText, timesOf, writer } from "./compared.js";
import { div, el } from "./dom.js";
import { format } from "./scale.js";

const signed = (write) => (value) => (value > 0 ? "+" : "") + write(value);

function differenceText({ difference, norm }, baseline, write) {
  if (difference) return signed(write)(difference.mean);
  return norm === baseline ? "baseline" : "none";
}

function targetText({ steps_to_target: found }) {
  if (!found?.of) return "none";
  if (found.median === null) return found.reached ? `reached by ${found.reached} of ${found.of}` : "not reached";
  return `${format(found.median)}${found.reached < found.of ? `, ${found.reached} of ${found.of}` : ""}`;
}

const msText = ({ step_ms: ms }) => (ms === null ? "none" : String(Number(ms.toPrecision(3))));

/** The columns: {id, head, text(arm), below(arm): a second line, key(arm): what sorts, number (aligns right), first: 1 if the least comes first}. */
function columnsOf(comparison) {
  const { axes, baseline, mode, target, arms } = comparison;
  const write = writer(comparison);
  const settings = axes.map((axis) => ({
    id: axis,
    head: axisName(axis, axes),
    text: (arm) => settingText(arm.settings[axis]),
    key: (arm) => arm.settings[axis] ?? null,
    number: arms.every((arm) => typeof arm.settings[axis] === "number"),
  }));
  const timed = arms.some((arm) => arm.step_ms !== null);
  const all = [
    ...(settings.length ? settings : [{ id: "name", head: "runs", text: (arm) => arm.name, key: (arm) => arm.name }]),
    {
      id: "mean",
      head: metricName(comparison),
      text: (arm) => write(arm.mean),
      below: (arm) => interval(arm, write),
      key: (arm) => arm.mean,
      number: true,
      first: mode === "min" ? 1 : -1,
    },
    {
      id: "finished",
      head: "finished",
      text: (arm) => `${arm.finished} of ${arm.planned}`,
      key: (arm) => arm.finished,
      number: true,
      first: -1,
    },
    {
      id: "difference",
      head: `difference to ${baseline}${comparison.share ? ", points" : ""}`,
      text: (arm) => differenceText(arm, baseline, write),
      below: (arm) => interval(arm.difference, signed(write)),
      key: (arm) => arm.difference?.mean ?? null,
      number: true,
      first: mode === "min" ? 1 : -1,
    },
    target !== null && {
      id: "target",
      head: `steps to ${format(target * timesOf(comparison))}${comparison.share ? " %" : ""}`,
      text: targetText,
      key: (arm) => arm.steps_to_target?.median ?? null,
      number: true,
    },
    timed && { id: "time", head: "ms per step", text: msText, key: (arm) => arm.step_ms, number: true },
    arms.some((arm) => arm.failures.length) && {
      id: "failures",
      head: "failures",
      text: (arm) => failureTexts(arm).join("\n"),
      key: (arm) => arm.failures.length,
      first: -1,
    },
  ];
  return all.filter(Boolean);
}

/** The arms in the order that the user chose; those without a value are last in both directions. */
function sorted(comparison, columns, [id, way] = []) {
  const column = columns.find((one) => one.id === id);
  if (!column) return comparison.arms;
  const known = (arm) => column.key(arm) !== null;
  const compare = (a, b) => (typeof a === "number" && typeof b === "number" ? a - b : String(a).localeCompare(String(b)));
  return [
    ...comparison.arms.filter(known).sort((a, b) => way * compare(column.key(a), column.key(b))),
    ...comparison.arms.filter((arm) => !known(arm)),
  ];
}

function head(page, column) {
  const [id, way] = page.state.sort ?? [];
  const mine = id === column.id;
  const sort = () => page.change({ sort: [column.id, mine ? -way : (column.first ?? 1)] });
  const order = way > 0 ? "ascending" : "descending";
  return el(
    "th",
    { scope: "col", "aria-sort": mine ? order : "none", class: column.number && "nz-number" },
    el("button", { type: "button", class: "nz-sort", onclick: sort }, column.head, mine ? (way > 0 ? " ▲" : " ▼") : ""),
  );
}

/** Whether an arm is the best of several of its norm. */
function isBest(page, { best, norm, name }) {
  return best && page.comparison.arms.some((other) => other.norm === norm && other.name !== name);
}

function armCell(page, arm, column, i) {
  const text = column.text(arm);
  const classes = [column.number && "nz-number", column.id === "failures" && "nz-failures", text === "none" && "nz-soft"].filter(Boolean);
  const attributes = { class: classes.join(" ") || null, title: text.length > 60 && text };
  const below = column.below?.(arm);
  if (i) return el("td", attributes, text, below ? el("small", { class: "nz-below" }, below) : null);
  const dot = el("i", { class: "nz-dot", style: `background:${page.normColor(arm.norm)}` });
  return el("th", { scope: "row" }, dot, text, isBest(page, arm) ? el("small", { class: "nz-mark" }, "best") : null);
}

function tableRow(page, arm, columns) {
  const mine = page.runsOf(arm);
  const on = mine.filter((name) => page.chosen.has(name)).length;
  const toggle = () =>
    page.choose(on === mine.length ? [...page.chosen].filter((name) => !mine.includes(name)) : [...page.chosen, ...mine]);
  const box = el("input", { type: "checkbox", "aria-label": `Show ${arm.name}`, disabled: !mine.length, onchange: toggle });
  box.checked = mine.length > 0 && on === mine.length;
  box.indeterminate = on > 0 && on < mine.length;
  const only = (event) => event.target === box || !mine.length || String(getSelection()) || page.choose(mine);
  const attributes = {
    class: [isBest(page, arm) && "nz-best-row", !arm.finished && "nz-unfinished"].filter(Boolean).join(" ") || null,
    onclick: only,
  };
  return el("tr", attributes, el("td", {}, box), ...columns.map((column, i) => armCell(page, arm, column, i)));
}

export const armsView = {
  id: "arms",
  title: "All settings",
  about:
    "Click a row to see its runs alone in the views below; tick several to see them together. A heading sorts. Small: 95 % intervals over seeds, of the difference over pairs of one seed. A diverged run is a result without a value.",
  early: true,
  shows: (page) => Boolean(page.comparison),
  names: () => [],
  draw(page) {
    const columns = columnsOf(page.comparison);
    const choose = (text, arms) =>
      el("button", { type: "button", onclick: () => page.choose(arms.flatMap((arm) => page.runsOf(arm))) }, text);
    const rows = sorted(page.comparison, columns, page.state.sort ?? []);
    const table = el(
      "table",
      { class: "nz-table" },
      el("thead", {}, el("tr", {}, el("th", { scope: "col" }, el("small", {}, "show")), ...columns.map((column) => head(page, column)))),
      el("tbody", {}, ...rows.map((arm) => tableRow(page, arm, columns))),
    );
    return [
      div("nz-controls", choose("Show the best of each norm", bestArms(page.comparison)), choose("Show all", page.comparison.arms)),
      div("nz-scroll", table),
    ];
  },
  csv(page) {
    const { axes, arms, metric } = page.comparison;
    const head = [
      "arm",
      ...axes,
      "metric",
      "mean",
      "low",
      "high",
      "finished",
      "planned",
      "best",
      "difference",
      "difference_low",
      "difference_high",
    ];
    const rows = arms.map((arm) => {
      const { mean, low, high } = arm.difference ?? {};
      const known = [arm.name, ...axes.map((axis) => arm.settings[axis]), metric, arm.mean, arm.low, arm.high, arm.finished, arm.planned];
      const target = arm.steps_to_target?.median;
      return [...known, String(arm.best), mean, low, high, arm.difference?.pairs, target, arm.step_ms, failureTexts(arm).join("; ")];
    });
    return [[...head, "pairs", "steps_to_target", "step_ms", "failures"], ...rows];
  },
};
