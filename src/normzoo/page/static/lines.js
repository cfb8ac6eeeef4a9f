// A line chart as one SVG element: axes, lines with bands, hover by pointer and arrow keys.
import { svg } from "./dom.js";
import { cross, ring, whisker } from "./marks.js";
import { Scale, format } from "./scale.js";
import { DASHES } from "./theme.js";
import { hideTip, showTip } from "./tooltip.js";

const FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif";
const SIZE = 11; // of the font, px
const CHARACTER = 6.1; // mean width of a character at that size
const GUTTER = 30; // pixels for the marks without a value, at a size of 14

/** Text in a chart. */
export function label(x, y, text, theme, attributes = {}, ...children) {
  return svg("text", { x, y, fill: theme.soft, "font-size": SIZE, ...attributes }, text, ...children);
}

/** An empty figure with its title and unit. The title of a chart too narrow for it is cut, and whole in its tooltip. */
export function figure(spec, theme) {
  const { width, height, title, unit } = spec;
  const f = (spec.font ?? SIZE) / SIZE;
  const cut = (text, size) => (text.length * size > width - 8 ? `${text.slice(0, Math.floor((width - 8) / size) - 1)}…` : text);
  return svg(
    "svg",
    {
      class: "nz-figure",
      width,
      height,
      viewBox: `0 0 ${width} ${height}`,
      "font-family": FONT,
      role: "img",
      tabindex: 0,
      "aria-label": `${title}. ${unit ?? ""}`,
    },
    svg("rect", { width, height, fill: theme.back }),
    svg("text", { x: 4, y: 15 * f, fill: theme.ink, "font-size": 13 * f, "font-weight": 600 }, svg("title", {}, title), cut(title, 7 * f)),
    label(4, 30 * f, cut(unit ?? "", 5.7 * f), theme, { "font-size": SIZE * f }, svg("title", {}, unit ?? "")),
  );
}

/** Says in the middle of a figure why it is empty. */
export function sayWhy(node, spec, theme) {
  const words = spec.empty.split(" ");
  const lines = [""];
  for (const word of words) {
    if ((lines[lines.length - 1] + word).length * 6.3 > spec.width - 40) lines.push("");
    lines[lines.length - 1] += `${word} `;
  }
  const text = label(0, 0, "", theme, { "text-anchor": "middle", "font-size": 12 });
  lines.forEach((line, i) =>
    text.append(svg("tspan", { x: spec.width / 2, y: spec.height / 2 + 8 + 16 * (i - (lines.length - 1) / 2) }, line)),
  );
  node.append(text);
  return node;
}

/** Places of x with a text: those given, as far as there is room, or round ones. */
function xTicks(x, spec, f) {
  const room = (spec.xLabels ? 44 : 55) * f;
  if (!spec.xTicks) return x.ticks(Math.max(2, Math.floor((x.to - x.from) / room)));
  let last = -Infinity;
  return spec.xTicks.filter((tick) => x.pixel(tick) - last >= room && (last = x.pixel(tick)));
}

function drawAxes(node, x, y, spec, theme) {
  const [left, right, top, bottom] = [x.from, x.to, y.to, y.from + y.gutter];
  const f = (spec.font ?? SIZE) / SIZE;
  const size = { "font-size": SIZE * f };
  for (const tick of y.ticks(5)) {
    const at = Math.round(y.pixel(tick)) + 0.5;
    node.append(
      svg("line", { x1: left, x2: right, y1: at, y2: at, stroke: theme.grid }),
      label(left - 6, at + 4, y.label(tick), theme, { "text-anchor": "end", ...size }),
    );
  }
  const whole = spec.whole || spec.xLabels;
  const tickText = (tick) => spec.xLabels?.[tick] ?? (spec.xTicks && tick >= 1e-5 && tick < 1e6 ? String(tick) : x.label(tick));
  for (const tick of xTicks(x, spec, f).filter((tick) => !whole || Number.isInteger(tick)))
    node.append(label(x.pixel(tick), bottom + 16 * f, tickText(tick), theme, { "text-anchor": "middle", ...size }));
  node.append(
    svg("line", { x1: left, x2: right, y1: bottom + 0.5, y2: bottom + 0.5, stroke: theme.soft }),
    label((left + right) / 2, bottom + 32 * f, spec.xTitle, theme, { "text-anchor": "middle", ...size }),
  );
  if (y.gutter) node.append(label(left - 12, bottom - 9, spec.markTitle, theme, { "text-anchor": "end", fill: theme.bad, ...size }));
  if (spec.overSteps) node.append(stepMarker(x, top, bottom, theme));
}

/** The line at the step of the slider; `moveMarkers` places it. */
export function stepMarker(x, top, bottom, theme) {
  return svg("line", {
    class: "nz-marker",
    y1: top,
    y2: bottom,
    stroke: theme.ink,
    "stroke-dasharray": "3 3",
    "pointer-events": "none",
    "data-from": x.from,
    "data-to": x.to,
    "data-min": x.min,
    "data-max": x.max,
  });
}

/** Moves the marks of the step in all charts over steps of `body`. */
export function moveMarkers(body, step) {
  for (const marker of body.querySelectorAll(".nz-marker")) {
    const [from, to, min, max] = ["from", "to", "min", "max"].map((key) => Number(marker.dataset[key]));
    const place = from + ((step - min) / (max - min)) * (to - from);
    marker.setAttribute("visibility", step >= min && step <= max ? "visible" : "hidden");
    for (const end of ["x1", "x2"]) marker.setAttribute(end, place);
  }
}

function path(points, x, y, key) {
  return points.map((point, i) => `${i ? "L" : "M"}${x.pixel(point.x).toFixed(1)} ${y.pixel(point[key]).toFixed(1)}`).join("");
}

/** The scale of one line: its points may lie a few pixels beside their places, so that whiskers do not cover each other. */
function dodged(x, { dodge }) {
  return dodge ? { pixel: (value) => x.pixel(value) + dodge } : x;
}

/** Crosses at {x, y, color, dodge, text}; those without y lie below the axis. */
function drawMarks(node, marks, x, y, theme) {
  for (const mark of marks) {
    const [px, py] = [dodged(x, mark).pixel(mark.x), mark.y === null ? y.from + y.gutter - 13 : y.pixel(mark.y)];
    node.append(cross(px, py, mark.color));
    if (mark.text) node.append(label(px + 7, py + 5, mark.text, theme, { "font-size": 12 }));
  }
}

function drawLine(node, one, wide, y, theme) {
  const x = dodged(wide, one);
  const all = one.points.filter((point) => point.y !== null);
  const off = (point) => !Number.isFinite(point.y) || (y.kind === "log" && point.y <= 0); // has a mark of its own at the edge
  const points = all.filter((point) => !off(point));
  if (one.whiskers) {
    for (const { x: place, low, high } of points.filter((point) => point.low !== point.high))
      node.append(whisker(x.pixel(place), y.pixel(low), y.pixel(high), one.color));
  } else if (points.some((point) => point.low !== point.high)) {
    const shape = path(points, x, y, "high") + path([...points].reverse(), x, y, "low").replace("M", "L");
    node.append(svg("path", { d: `${shape}Z`, fill: one.color, opacity: one.edges ? 0.13 : 0.2 }));
    for (const edge of one.edges ? ["low", "high"] : [])
      node.append(svg("path", { d: path(points, x, y, edge), fill: "none", stroke: one.color, opacity: 0.5 }));
  }
  node.append(
    svg("path", {
      d: path(points, x, y, "y"),
      fill: "none",
      stroke: one.color,
      "stroke-width": one.thin ? 1.2 : 2,
      "stroke-dasharray": DASHES[one.dash % DASHES.length],
      "stroke-linejoin": "round",
    }),
  );
  for (const point of all) {
    const [px, py] = [x.pixel(point.x), y.pixel(point.y)];
    if (!Number.isFinite(point.y)) {
      const up = point.y > 0 ? -1 : 1;
      node.append(
        svg("path", { d: `M${px - 5} ${py - 4 * up}h10L${px} ${py + 4 * up}Z`, fill: theme.bad }),
        label(px, py - up * 14, "∞", theme, { fill: theme.bad, "text-anchor": "middle", "font-weight": 700 }),
      );
    } else if (!one.thin && !one.plain && all.length <= 40) {
      const hollow = off(point) || point.hollow;
      const r = one.whiskers ? 4.5 : all.length > 24 ? 1.8 : 2.6;
      node.append(
        svg("circle", { cx: px, cy: py, r, fill: hollow ? theme.back : one.color, stroke: one.color, "stroke-width": hollow ? 2 : 1 }),
      );
    }
    if (point.ring) node.append(ring(px, py, theme.ink));
  }
}

function tipLines(spec, place) {
  const write = (value) => format(value * (spec.times ?? 1));
  return spec.series.flatMap((one) => {
    if (!one.points.length || one.quiet) return [];
    const point = one.points.reduce((best, other) => (Math.abs(other.x - place) < Math.abs(best.x - place) ? other : best));
    if (point.y === null) return [{ color: one.color, name: one.label, text: point.name }];
    const spread = point.low !== point.high ? ` (${write(point.low)} to ${write(point.high)})` : "";
    return [{ color: one.color, name: [one.label, point.name].filter(Boolean).join(": "), text: write(point.y) + spread }];
  });
}

/** Hover with the pointer, or with the arrow keys once the chart has the focus; Enter or a click picks. */
function addHover(node, spec, x, y, theme) {
  const places = [...new Set(spec.series.flatMap((one) => one.points.map((point) => point.x)))].sort((a, b) => a - b);
  const line = svg("line", { y1: y.to, y2: y.from, stroke: theme.soft, visibility: "hidden" });
  node.append(line);
  let at = -1;
  const show = (index) => {
    at = Math.max(0, Math.min(places.length - 1, index));
    const [box, pixel] = [node.getBoundingClientRect(), x.pixel(places[at])];
    for (const end of ["x1", "x2"]) line.setAttribute(end, pixel);
    line.setAttribute("visibility", "visible");
    showTip(box.left + pixel, box.top + y.to, spec.tipTitle(places[at]), tipLines(spec, places[at]));
  };
  const hide = () => {
    line.setAttribute("visibility", "hidden");
    hideTip();
  };
  node.addEventListener("pointermove", (event) => {
    const pixel = event.clientX - node.getBoundingClientRect().left;
    const away = places.map((place) => Math.abs(x.pixel(place) - pixel));
    show(away.indexOf(Math.min(...away)));
  });
  node.addEventListener("pointerleave", hide);
  node.addEventListener("blur", hide);
  node.addEventListener("click", () => at >= 0 && spec.pick?.(places[at]));
  node.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: -1, ArrowRight: 1 }[event.key];
    if (move) show(at < 0 ? (move > 0 ? 0 : places.length - 1) : at + move);
    else if (event.key === "Enter" && at >= 0) spec.pick?.(places[at]);
    else return;
    event.preventDefault();
  });
}

/**
 * A line chart. `spec`: title, unit, width, height, xTitle, xRange [from, to], whole (x has whole numbers only), xLabels (names of the places
 * 0, 1, ... of x), xKind ("log"), xTicks (places with a text), extent (of y), times (as large
 * as the values are those that are shown), tight (a linear axis need not reach to 0), overSteps (x is the step),
 * series, marks (crosses), markTitle (what those without y are) and below (whether there is room for these), font (11 px if not given), empty (why
 * there is nothing), tipTitle(x), pick(x). A series: {label, color, dash, thin, plain (no dots), quiet (no tooltip), edges (of the band are drawn), whiskers (instead
 * of a band), dodge, points [{x, y, low, high, name, ring, hollow}]}.
 */
export function lineChart(spec, theme) {
  const node = figure(spec, theme);
  const marks = spec.marks ?? [];
  if (!marks.length && !spec.series.some((one) => one.points.some((point) => point.y !== null))) return sayWhy(node, spec, theme);
  const f = (spec.font ?? SIZE) / SIZE;
  const gutter = (spec.below ?? marks.some((mark) => mark.y === null)) ? GUTTER : 0;
  const y = Object.assign(Scale.around(spec.extent, spec.height - 40 * f - gutter, 42 * f, spec.tight), { gutter, times: spec.times ?? 1 });
  const widest = Math.max(...y.ticks(5).map((tick) => y.label(tick).length), gutter && spec.markTitle.length);
  const [from, to] = spec.xRange;
  const x = new Scale(
    spec.xKind ?? "linear",
    from,
    to === from ? from + 1 : to,
    Math.max(34, widest * CHARACTER * f + 12),
    spec.width - 14,
  );
  drawAxes(node, x, y, spec, theme);
  for (const one of spec.series) drawLine(node, one, x, y, theme);
  drawMarks(node, marks, x, y, theme);
  addHover(node, spec, x, y, theme);
  return node;
}
