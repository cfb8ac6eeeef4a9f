// Saves a view as SVG, PNG or CSV.
import { el, svg } from "./dom.js";

function download(name, blob) {
  const link = el("a", { href: URL.createObjectURL(blob), download: name });
  document.body.append(link);
  link.click();
  link.remove();
  setTimeout(() => URL.revokeObjectURL(link.href), 10000);
}

function cell(value) {
  if (value === null || value === undefined) return "";
  if (typeof value === "number") {
    if (!Number.isFinite(value)) return value > 0 ? "inf" : "-inf";
    return String(Number.isInteger(value) ? value : Number(value.toPrecision(5))); // a report has no more digits
  }
  return /[",\n\r]/.test(value) ? `"${value.replaceAll('"', '""')}"` : value;
}

/** Rows of a table as a file. */
export function saveCsv(name, rows) {
  download(`${name}.csv`, new Blob([rows.map((row) => row.map(cell).join(",")).join("\r\n"), "\r\n"], { type: "text/csv" }));
}

/** Lines of the text of an element, broken where the browser broke them. */
function textLines(node) {
  const lines = new Map();
  const walker = document.createTreeWalker(node, NodeFilter.SHOW_TEXT);
  const range = document.createRange();
  while (walker.nextNode()) {
    const text = walker.currentNode;
    if (text.parentElement.closest("button:not(.nz-sort)")) continue;
    for (const word of text.data.matchAll(/\S+\s*/g)) {
      range.setStart(text, word.index);
      range.setEnd(text, word.index + word[0].trimEnd().length);
      const box = range.getBoundingClientRect();
      if (!box.width) continue;
      const style = getComputedStyle(text.parentElement);
      const key = `${Math.round(box.bottom)} ${style.color} ${style.fontSize} ${style.fontWeight}`;
      if (!lines.has(key)) lines.set(key, { x: box.left, y: box.bottom - box.height * 0.22, words: [], style });
      lines.get(key).words.push(word[0].trimEnd());
    }
  }
  return [...lines.values()];
}

/** A view as one SVG element: its charts and its text at their places, and who is who. Lists that scroll are shown whole. */
export function compose(view, names, theme) {
  view.classList.add("nz-whole");
  const whole = drawnAgain(view, names, theme);
  view.classList.remove("nz-whole");
  return whole;
}

/** Names side by side, in as many rows as they need: {names with x and y, height}. */
function placed(names, width) {
  let [x, y] = [4, 9];
  const all = names.map((one) => {
    const room = one.text.length * 8 + 50;
    if (x > 4 && x + room > width) [x, y] = [4, y + 21];
    x += room;
    return { ...one, x: x - room, y };
  });
  return { names: all, height: names.length ? y + 21 : 6 };
}

function drawnAgain(view, names, theme) {
  const frame = view.getBoundingClientRect();
  const legend = placed(names, frame.width);
  const head = legend.height;
  const [width, height] = [Math.ceil(Math.max(frame.width, view.scrollWidth)), Math.ceil(frame.height + head)];
  const whole = svg(
    "svg",
    {
      xmlns: "http://www.w3.org/2000/svg",
      width,
      height,
      viewBox: `0 0 ${width} ${height}`,
      "font-family": "system-ui, -apple-system, 'Segoe UI', Roboto, Arial, sans-serif",
    },
    svg("rect", { width, height, fill: theme.back }),
  );
  for (const { text, swatch, x, y } of legend.names) {
    swatch.setAttribute("x", x);
    swatch.setAttribute("y", y);
    whole.append(swatch, svg("text", { x: x + 30, y: y + 10, "font-size": 14, fill: theme.ink }, text));
  }
  for (const chart of view.querySelectorAll("svg.nz-figure")) {
    const box = chart.getBoundingClientRect();
    const copy = chart.cloneNode(true);
    for (const [name, value] of Object.entries({ x: box.left - frame.left, y: box.top - frame.top + head })) copy.setAttribute(name, value);
    whole.append(copy);
  }
  for (const node of view.querySelectorAll("h3, p, li, th, td")) {
    for (const { x: left, y: top, words, style } of textLines(node)) {
      whole.append(
        svg(
          "text",
          {
            x: left - frame.left,
            y: top - frame.top + head,
            fill: style.color,
            "font-size": style.fontSize,
            "font-weight": style.fontWeight,
          },
          words.join(" "),
        ),
      );
    }
  }
  return whole;
}

/** A picture as an SVG file. */
export function saveSvg(name, picture) {
  download(`${name}.svg`, new Blob([new XMLSerializer().serializeToString(picture)], { type: "image/svg+xml" }));
}

/** A picture as a PNG file, with two pixels per pixel of the page. */
export async function savePng(name, whole) {
  const [width, height] = ["width", "height"].map((side) => Number(whole.getAttribute(side)));
  const picture = new Image();
  picture.src = `data:image/svg+xml;charset=utf-8,${encodeURIComponent(new XMLSerializer().serializeToString(whole))}`;
  await picture.decode();
  const factor = Math.min(2, 16000 / height); // browsers draw no larger canvas
  const canvas = el("canvas", { width: width * factor, height: height * factor });
  canvas.getContext("2d").drawImage(picture, 0, 0, canvas.width, canvas.height);
  const bytes = atob(canvas.toDataURL("image/png").split(",")[1]); // toBlob waits until the browser is idle, for seconds
  download(`${name}.png`, new Blob([Uint8Array.from(bytes, (letter) => letter.charCodeAt(0))], { type: "image/png" }));
}
