// A line chart as one SVG element: axes, lines with bands, hover by pointer and arrow keys.
import { svg } from "./dom.js";
import { Scale, format } from "./scale.js";
import { DASHES } from "./theme.js";
import { hideTip, showTip } from "./tooltip.js";

const FONT = "system-ui, -apple-system, 'Segoe UI', Roboto, 'Helvetica Neue', Arial, sans-serif";
const CHARACTER = 6.1; // mean width of a character at 11 px

/** Text in a chart. */
export function label(x, y, text, theme, attributes = {}) {
  return svg("text", { x, y, fill: theme.soft, "font-size": 11, ...attributes }, text);
}

/** An empty figure with its title and unit. The title of a chart too narrow for it is cut, and whole in its tooltip. */
export function figure(spec, theme) {
  const { width, height, title, unit } = spec;
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
    svg("text", { x: 4, y: 15, fill: theme.ink, "font-size": 13, "font-weight": 600 }, svg("title", {}, title), cut(title, 7)),
    label(4, 30, cut(unit ?? "", 5.7), theme),
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

function drawAxes(node, x, y, spec, theme) {
  const [left, right, top, bottom] = [x.from, x.to, y.to, y.from];
  for (const tick of y.ticks(5)) {
    const at = Math.round(y.pixel(tick)) + 0.5;
    node.append(
      svg("line", { x1: left, x2: right, y1: at, y2: at, stroke: theme.grid }),
      label(left - 6, at + 4, y.label(tick), theme, { "text-anchor": "end" }),
    );
  }
  const whole = spec.whole || spec.xLabels;
  const ticks = x
    .ticks(Math.max(2, Math.floor((right - left) / (spec.xLabels ? 44 : 55))))
    .filter((tick) => !whole || Number.isInteger(tick));
  for (const tick of ticks)
    node.append(label(x.pixel(tick), bottom + 16, spec.xLabels?.[tick] ?? x.label(tick), theme, { "text-anchor": "middle" }));
  node.append(
    svg("line", { x1: left, x2: right, y1: bottom + 0.5, y2: bottom + 0.5, stroke: theme.soft }),
    label((left + right) / 2, bottom + 32, spec.xTitle, theme, { "text-anchor": "middle" }),
  );
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

function drawLine(node, one, x, y, theme) {
  const all = one.points.filter((point) => point.y !== null);
  const off = (point) => !Number.isFinite(point.y) || (y.kind === "log" && point.y <= 0); // has a mark of its own at the edge
  const points = all.filter((point) => !off(point));
  if (points.some((point) => point.low !== point.high)) {
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
    } else if (!one.thin && all.length <= 40) {
      node.append(
        svg("circle", { cx: px, cy: py, r: all.length > 24 ? 1.8 : 2.6, fill: off(point) ? theme.back : one.color, stroke: one.color }),
      );
    }
  }
}

function tipLines(spec, place) {
  return spec.series.flatMap((one) => {
    if (!one.points.length) return [];
    const point = one.points.reduce((best, other) => (Math.abs(other.x - place) < Math.abs(best.x - place) ? other : best));
    const spread = point.low !== point.high ? ` (${format(point.low)} to ${format(point.high)})` : "";
    return [{ color: one.color, name: [one.label, point.name].filter(Boolean).join(": "), text: format(point.y) + spread }];
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
 * 0, 1, ... of x), extent (of y), tight (a linear axis need not reach to 0), overSteps (x is the step), series, empty (why there is nothing),
 * tipTitle(x), pick(x). A series: {label, color, dash, thin, edges (of the band are drawn), points [{x, y, low, high, name}]}.
 */
export function lineChart(spec, theme) {
  const node = figure(spec, theme);
  if (!spec.series.some((one) => one.points.some((point) => point.y !== null))) return sayWhy(node, spec, theme);
  const bottom = spec.height - 40;
  const y = Scale.around(spec.extent, bottom, 42, spec.tight);
  const widest = Math.max(...y.ticks(5).map((tick) => y.label(tick).length));
  const [from, to] = spec.xRange;
  const x = new Scale("linear", from, to === from ? from + 1 : to, Math.max(34, widest * CHARACTER + 12), spec.width - 14);
  drawAxes(node, x, y, spec, theme);
  for (const one of spec.series) drawLine(node, one, x, y, theme);
  addHover(node, spec, x, y, theme);
  return node;
}
