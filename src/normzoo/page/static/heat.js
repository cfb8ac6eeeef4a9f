// A heatmap: cells drawn on a canvas, one pixel high and as wide as on the screen, inside an SVG with axes.
import { el, shorten, svg } from "./dom.js";
import { figure, label, sayWhy, stepMarker } from "./lines.js";
import { Scale, format } from "./scale.js";
import { BOTH_SIDES, SEQUENTIAL } from "./theme.js";
import { hideTip, showTip } from "./tooltip.js";

/** The colours for an extent: logarithmic over three decades of positive values, two-sided if both signs occur. */
export class ColourScale {
  constructor(extent, theme) {
    const signed = !extent.empty && extent.min < 0 && extent.max > 0;
    const reach = Math.max(Math.abs(extent.min), extent.max);
    this.colours = signed ? BOTH_SIDES : SEQUENTIAL;
    this.extent = extent;
    this.theme = theme;
    if (extent.empty) this.scale = new Scale("linear", 0, 1, 0, 1);
    else if (signed) this.scale = new Scale("linear", -reach, reach, 0, 1);
    else if (extent.spans(3)) this.scale = new Scale("log", extent.positive, extent.max, 0, 1);
    else this.scale = new Scale("linear", extent.min, extent.max, 0, 1);
  }

  colour(value) {
    if (value === null || Number.isNaN(value)) return this.theme.none;
    if (!Number.isFinite(value)) return this.theme.bad;
    return this.colours[Math.round(this.scale.fraction(value) * 255)];
  }

  /** The bar that explains the colours. */
  legend(width, unit) {
    const theme = this.theme;
    const node = figure({ width, height: 62, title: unit, unit: "" }, theme);
    node.setAttribute("tabindex", -1);
    if (!this.extent.empty) {
      const bar = Math.min(340, width - 210);
      const picture = el("canvas", { width: 256, height: 1 });
      const context = picture.getContext("2d");
      this.colours.forEach((colour, i) => {
        context.fillStyle = colour;
        context.fillRect(i, 0, 1, 1);
      });
      node.append(svg("image", { href: picture.toDataURL(), x: 20, y: 26, width: bar, height: 12, preserveAspectRatio: "none" }));
      const axis = new Scale(this.scale.kind, this.scale.min, this.scale.max, 20, 20 + bar);
      for (const tick of axis.ticks(6)) node.append(label(axis.pixel(tick), 54, axis.label(tick), theme, { "text-anchor": "middle" }));
    }
    [
      ["infinite", theme.bad],
      ["no value", theme.none],
    ].forEach(([text, fill], i) => {
      const x = Math.min(340, width - 210) + 44 + i * 76;
      node.append(svg("rect", { x, y: 26, width: 12, height: 12, fill }), label(x + 17, 36, text, theme));
    });
    return node;
  }
}

/** Left edge of each sample in pixels, and the right edge of the last: halfway between steps. */
function edges(steps, x) {
  const middle = steps.slice(1).map((step, i) => (step + steps[i]) / 2);
  return [x.min, ...middle, x.max].map((step) => Math.round(x.pixel(step) - x.from));
}

function paint(spec, x, columns) {
  const picture = el("canvas", { width: Math.round(x.to - x.from), height: spec.rows });
  const context = picture.getContext("2d");
  const at = edges(
    columns.map((i) => spec.steps[i]),
    x,
  );
  columns.forEach((column, i) => {
    for (let row = 0; row < spec.rows; row++) {
      context.fillStyle = spec.colour(column, row);
      context.fillRect(at[i], row, Math.max(1, at[i + 1] - at[i]), 1);
    }
  });
  return picture.toDataURL();
}

function rowLabels(node, spec, y, room, theme) {
  if (spec.scale) {
    const axis = new Scale(spec.scale.kind, spec.scale.min, spec.scale.max, y.bottom, y.top, spec.scale.unit);
    for (const tick of axis.ticks(5)) node.append(label(room - 6, axis.pixel(tick) + 4, axis.label(tick), theme, { "text-anchor": "end" }));
    return;
  }
  const height = (y.bottom - y.top) / spec.rows;
  const every = Math.ceil(12 / height);
  for (let row = 0; row < spec.rows; row += every) {
    const pinned = spec.names[row] === spec.pinned;
    node.append(
      label(room - 6, y.top + (row + 0.5) * height + 4, shorten(spec.names[row], Math.floor((room - 8) / (pinned ? 6.9 : 6.1))), theme, {
        "text-anchor": "end",
        ...(pinned && { fill: theme.ink, "font-weight": 700 }),
      }),
    );
  }
}

/** Drag to zoom, click or Enter to pick, arrow keys to move a cursor, Escape or a double click to see all steps. */
function addPointer(node, spec, x, y, columns, theme) {
  const cursor = svg("rect", { fill: "none", stroke: theme.ink, "stroke-width": 1.5, visibility: "hidden", "pointer-events": "none" });
  const brush = svg("rect", {
    y: y.top,
    height: y.bottom - y.top,
    fill: theme.ink,
    opacity: 0.25,
    visibility: "hidden",
    "pointer-events": "none",
  });
  node.append(brush, cursor);
  const at = edges(
    columns.map((i) => spec.steps[i]),
    x,
  );
  const height = (y.bottom - y.top) / spec.rows;
  let [column, row, start] = [columns.length - 1, 0, null];
  const show = () => {
    const box = node.getBoundingClientRect();
    const place = { x: x.from + at[column], y: y.top + row * height, width: Math.max(2, at[column + 1] - at[column]), height };
    for (const [name, value] of Object.entries({ ...place, visibility: "visible" })) cursor.setAttribute(name, value);
    showTip(box.left + place.x + place.width, box.top + place.y + height, ...spec.tip(columns[column], row));
  };
  const hide = () => {
    cursor.setAttribute("visibility", "hidden");
    hideTip();
  };
  const find = (event) => {
    const box = node.getBoundingClientRect();
    const pixel = event.clientX - box.left - x.from;
    column = Math.max(
      0,
      at.findLastIndex((edge, i) => i < columns.length && edge <= pixel),
    );
    row = Math.max(0, Math.min(spec.rows - 1, Math.floor((event.clientY - box.top - y.top) / height)));
    return Math.max(x.from, Math.min(x.to, event.clientX - box.left));
  };
  node.addEventListener("pointermove", (event) => {
    const pixel = find(event);
    show();
    if (start === null) return;
    brush.setAttribute("x", Math.min(start, pixel));
    brush.setAttribute("width", Math.abs(pixel - start));
    brush.setAttribute("visibility", Math.abs(pixel - start) > 5 ? "visible" : "hidden");
  });
  node.addEventListener("pointerdown", (event) => {
    start = find(event);
    if (event.isTrusted) node.setPointerCapture(event.pointerId);
  });
  node.addEventListener("pointerup", (event) => {
    const [from, to] = [start, find(event)];
    start = null;
    brush.setAttribute("visibility", "hidden");
    if (Math.abs(to - from) > 5) spec.zoom([x.value(Math.min(from, to)), x.value(Math.max(from, to))].map(Math.round));
    else spec.pick?.(row, columns[column]);
  });
  node.addEventListener("pointerleave", hide);
  node.addEventListener("blur", hide);
  node.addEventListener("dblclick", () => spec.zoom(null));
  node.addEventListener("keydown", (event) => {
    const move = { ArrowLeft: [-1, 0], ArrowRight: [1, 0], ArrowUp: [0, -1], ArrowDown: [0, 1] }[event.key];
    if (move) {
      column = Math.max(0, Math.min(columns.length - 1, column + move[0]));
      row = Math.max(0, Math.min(spec.rows - 1, row + move[1]));
      show();
    } else if (event.key === "Enter") spec.pick?.(row, columns[column]);
    else if (event.key === "Escape") spec.zoom(null);
    else return;
    event.preventDefault();
  });
}

/**
 * A heatmap. `spec`: title, unit, width, height, steps, range [first, last step], rows (their number), names (of the rows) or scale (of the y
 * axis), room (pixels for the labels), colour(column, row), tip(column, row) -> [title, lines], pick(row, column), zoom([from, to] or null),
 * pinned (a name), empty (why there is nothing).
 */
export function heatmap(spec, theme) {
  const node = figure(spec, theme);
  const columns = spec.steps.map((_, i) => i).filter((i) => spec.steps[i] >= spec.range[0] && spec.steps[i] <= spec.range[1]);
  if (!columns.length || !spec.rows) return sayWhy(node, spec, theme);
  const y = { top: 38, bottom: spec.height - 38 };
  const [first, last] = spec.range;
  const x = new Scale("linear", first, last === first ? first + 1 : last, spec.room, spec.width - 16);
  node.append(
    svg("image", {
      href: paint(spec, x, columns),
      x: x.from,
      y: y.top,
      width: x.to - x.from,
      height: y.bottom - y.top,
      preserveAspectRatio: "none",
      style: "image-rendering:pixelated",
    }),
  );
  rowLabels(node, spec, y, spec.room, theme);
  for (const tick of x.ticks(Math.max(2, Math.floor((x.to - x.from) / 60))))
    node.append(label(x.pixel(tick), y.bottom + 15, x.label(tick), theme, { "text-anchor": "middle" }));
  node.append(label((x.from + x.to) / 2, y.bottom + 31, "step", theme, { "text-anchor": "middle" }));
  node.append(stepMarker(x, y.top - 3, y.bottom + 3, theme));
  addPointer(node, spec, x, y, columns, theme);
  node.style.touchAction = "pan-y";
  return node;
}

/** A value for a tooltip line. */
export function valueLine(color, name, value) {
  return { color, name, text: format(value) };
}
