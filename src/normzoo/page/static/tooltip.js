// One tooltip for all charts.
import { div, el } from "./dom.js";

const box = el("div", { class: "nz-tip", role: "status", hidden: true });

/** The element that shows the tooltip; the page adds it once. */
export function tooltipBox() {
  return box;
}

/** Shows a title and lines {color, name, text} beside a point of the window. */
export function showTip(x, y, title, lines) {
  const most = 14; // 200 runs would fill the screen
  const rest = lines.length - most;
  box.replaceChildren(
    el("strong", {}, title),
    ...lines
      .slice(0, most)
      .map((line) =>
        div(
          "nz-tip-line",
          el("i", { style: `background:${line.color ?? "transparent"}` }),
          el("span", {}, line.name),
          el("b", {}, line.text),
        ),
      ),
    rest > 0 ? el("small", {}, `and ${rest} more`) : "",
  );
  box.hidden = false;
  const { width, height } = box.getBoundingClientRect();
  box.style.left = `${Math.max(4, x + 16 + width > innerWidth ? x - width - 12 : x + 16)}px`;
  box.style.top = `${Math.max(4, Math.min(y + 12, innerHeight - height - 4))}px`;
}

export function hideTip() {
  box.hidden = true;
}
