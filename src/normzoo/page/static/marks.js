// Marks in charts: crosses for what did not end well, whiskers, rings.
import { svg } from "./dom.js";

/** A cross. */
export function cross(x, y, color, size = 5) {
  const d = `M${x - size} ${y - size}l${2 * size} ${2 * size}m0 ${-2 * size}l${-2 * size} ${2 * size}`;
  return svg("path", { class: "nz-cross", d, stroke: color, "stroke-width": 2.5, fill: "none" });
}

/** A whisker from `low` to `high`, pixels. */
export function whisker(x, low, high, color) {
  return svg("path", {
    class: "nz-whisker",
    d: `M${x - 4} ${low}h8m-4 0V${high}m-4 0h8`,
    stroke: color,
    "stroke-width": 1.6,
    fill: "none",
  });
}

/** A ring around a point that is better than others. */
export function ring(x, y, color) {
  return svg("circle", { class: "nz-best", cx: x, cy: y, r: 7.5, fill: "none", stroke: color, "stroke-width": 2 });
}
