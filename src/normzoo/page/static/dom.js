// Builds elements. Text only enters as text nodes: layer names may hold HTML.

const SVG = "http://www.w3.org/2000/svg";

function fill(node, attributes, children) {
  for (const [name, value] of Object.entries(attributes)) {
    if (name.startsWith("on")) node.addEventListener(name.slice(2), value);
    else if (value === true) node.setAttribute(name, "");
    else if (value !== undefined && value !== null && value !== false) node.setAttribute(name, value);
  }
  node.append(...children.filter((child) => child !== null && child !== undefined));
  return node;
}

/** An HTML element; attributes that start with "on" are listeners. */
export function el(tag, attributes = {}, ...children) {
  return fill(document.createElement(tag), attributes, children);
}

/** A div of a class. */
export function div(name, ...children) {
  return el("div", name ? { class: name } : {}, ...children);
}

/** An SVG element. Colours are attributes, not classes, so that a saved file looks the same without the stylesheet. */
export function svg(tag, attributes = {}, ...children) {
  return fill(document.createElementNS(SVG, tag), attributes, children);
}

/** Children side by side in columns, as `columns` counts them. */
export function grid({ count, width }, ...children) {
  return el("div", { class: "nz-grid", style: `grid-template-columns:repeat(${count},${width}px)` }, ...children);
}

/** Columns of equal width that fill `width`, each at least `least` wide: {count, width}. */
export function columns(width, least, most = 6, gap = 16) {
  const count = Math.max(1, Math.min(most, Math.floor((width + gap) / (least + gap))));
  return { count, width: Math.floor((width - gap * (count - 1)) / count) };
}

/** Shortens text in the middle, where layer names differ least. */
export function shorten(text, length) {
  if (text.length <= length) return text;
  const head = Math.ceil((length - 1) / 3);
  return `${text.slice(0, head)}…${text.slice(text.length - (length - 1 - head))}`;
}
