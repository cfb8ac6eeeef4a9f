// Dots with whiskers, one row per arm: mean and interval over seeds.
import { BIG, failureCount, interval, seedCount } from "./compared.js";
import { shorten, svg } from "./dom.js";
import { figure, label, sayWhy } from "./lines.js";
import { cross } from "./marks.js";
import { Scale } from "./scale.js";

const ROW = 38;
const LETTER = 8.8; // mean width of a bold character at 14 px

/**
 * The range of the axis. An interval of two seeds can be a hundred times as long as what was measured: it is cut, at most once that far on each side.
 */
function axisRange(arms, mode) {
  const values = arms.flatMap((arm) => arm.values).filter(Number.isFinite);
  const [least, most] = [Math.min(...values), Math.max(...values)];
  const span = most - least || Math.abs(most) * 0.1 || 1;
  const ends = arms.flatMap(({ low, high }) => [low, high]).filter(Number.isFinite);
  let from = Math.max(least - span, Math.min(...ends, least));
  let to = Math.min(most + span, Math.max(...ends, most));
  if (mode === "max" && least >= 0 && most <= 1) [from, to] = [Math.max(0, from), Math.min(1, to)];
  const air = (to - from || span) * 0.04;
  return [from - air, to + air];
}

/** A whisker; an arrow at an end that lies outside of the axis. */
function wideWhisker(node, arm, x, y, color) {
  if (arm.low === null) return;
  const [left, right] = [x.pixel(arm.low), x.pixel(arm.high)];
  node.append(svg("line", { class: "nz-whisker", x1: left, x2: right, y1: y, y2: y, stroke: color, "stroke-width": 2.5 }));
  const end = (at, out, way) =>
    svg("path", {
      d: out ? `M${at - 7 * way} ${y - 6}L${at} ${y}L${at - 7 * way} ${y + 6}` : `M${at} ${y - 6}v12`,
      stroke: color,
      fill: "none",
      "stroke-width": 2,
    });
  node.append(end(left, arm.low < x.min, -1), end(right, arm.high > x.max, 1));
}

function armRow(node, arm, x, y, { color, theme, room, width, write }) {
  const text = (at, said, attributes) => node.append(label(at, y + 5, said, theme, { "font-size": BIG, fill: theme.ink, ...attributes }));
  text(room - 12, shorten(arm.name, Math.floor((room - 16) / LETTER)), { "text-anchor": "end", "font-weight": 600 });
  for (const value of arm.values.filter(Number.isFinite))
    node.append(svg("circle", { cx: x.pixel(value), cy: y - 11, r: 2.6, fill: color, opacity: 0.55 }));
  if (arm.mean === null) {
    node.append(cross(x.from + 8, y, theme.bad));
    text(x.from + 22, failureCount(arm) || "no result yet", { fill: theme.bad });
    return;
  }
  wideWhisker(node, arm, x, y, color);
  node.append(
    svg("circle", { class: "nz-mean", cx: x.pixel(arm.mean), cy: y, r: 6, fill: color, stroke: theme.back, "stroke-width": 1.5 }),
  );
  const seeds = seedCount(arm);
  text(width - 4, `${write(arm.mean)}${arm.low === null ? "" : ` (${interval(arm, write)})`}`, {
    "text-anchor": "end",
    y: y - 2,
    "font-weight": 600,
  });
  text(
    width - 4,
    [seeds === 1 ? "1 seed: no interval" : `${seeds} seeds${arm.low === null ? ", all equal" : ""}`, failureCount(arm)]
      .filter(Boolean)
      .join(", "),
    {
      "text-anchor": "end",
      y: y + 15,
      fill: arm.failures.length ? theme.bad : theme.soft,
    },
  );
}

/** The chart. `spec`: title, unit, width, arms, mode, baseline (an arm or undefined), color(arm), write(value), times (of the axis), xTitle, empty. */
export function whiskerChart(spec, theme) {
  const { arms, width } = spec;
  const top = 58;
  const none = !arms.some((arm) => arm.mean !== null || arm.failures.length);
  const height = top + (none ? 1 : arms.length) * ROW + 58;
  const node = figure({ ...spec, height, font: BIG }, theme);
  if (none) return sayWhy(node, { ...spec, height }, theme);
  const longest = Math.max(...arms.map((arm) => arm.name.length));
  const room = Math.min(longest * LETTER + 28, width * (width > 800 ? 0.42 : 0.34));
  const right = arms.some((arm) => arm.low !== null) ? 210 : 150;
  const [from, to] = arms.some((arm) => arm.mean !== null) ? axisRange(arms, spec.mode) : [0, 1];
  const x = Object.assign(new Scale("linear", from, to, room, width - right), { times: spec.times });
  const bottom = top + arms.length * ROW;
  for (const tick of x.ticks(Math.max(2, Math.floor((x.to - x.from) / 90)))) {
    const at = x.pixel(tick);
    node.append(
      svg("line", { x1: at, x2: at, y1: top, y2: bottom, stroke: theme.grid }),
      label(at, bottom + 20, x.label(tick), theme, { "text-anchor": "middle", "font-size": BIG }),
    );
  }
  const mean = spec.baseline?.mean ?? null;
  if (mean !== null && mean >= from && mean <= to)
    node.append(
      svg("line", { x1: x.pixel(mean), x2: x.pixel(mean), y1: top - 4, y2: bottom, stroke: theme.soft, "stroke-dasharray": "4 3" }),
    );
  node.append(label((x.from + x.to) / 2, bottom + 42, spec.xTitle, theme, { "text-anchor": "middle", "font-size": BIG }));
  arms.forEach((arm, i) => armRow(node, arm, x, top + (i + 0.5) * ROW + 4, { ...spec, color: spec.color(arm), theme, room }));
  return node;
}
