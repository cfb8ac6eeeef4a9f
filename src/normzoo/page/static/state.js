// What the user chose, kept in the URL so that a link or a reload shows the same.

const KEYS = ["step", "metric", "layer", "zoom", "rows", "sort", "axis", "hidden", "shown"];

/** The window whose URL the user sees: TensorBoard's around the page, or this one. */
function host() {
  try {
    const inTensorBoard = window.parent !== window && window.parent.document.querySelector("tb-webapp");
    return inTensorBoard ? window.parent : window;
  } catch {
    return window;
  }
}

/**
 * Fields: step (null: the last), metric "MONITOR metric", layer, zoom [from, to], rows (role), sort [column, 1 or -1], axis (a setting), hidden
 * or shown (names of runs).
 */
export class State {
  constructor() {
    Object.assign(this, { step: null, metric: null, layer: null, zoom: null, rows: null, sort: null, axis: null, hidden: [], shown: null });
    const text = host() === window ? location.hash.slice(1) : (/&p\.normalization\.state=([^&]*)/.exec(host().location.hash)?.[1] ?? "");
    const read = new URLSearchParams(host() === window ? text : decodeURIComponent(text));
    for (const key of KEYS) {
      if (!read.has(key)) continue;
      try {
        this[key] = JSON.parse(read.get(key));
      } catch {
        // a link that was edited by hand: the default shows
      }
    }
  }

  /** Writes the fields that differ from the default. */
  save() {
    const written = new URLSearchParams();
    for (const key of KEYS) {
      if (this[key] !== null && !(key === "hidden" && !this.hidden.length)) written.set(key, JSON.stringify(this[key]));
    }
    const place = host().location;
    const tab = place.hash.replace(/&p\.normalization\.state=[^&]*/, "");
    const hash = host() === window ? written.toString() : `${tab.slice(1)}&p.normalization.state=${encodeURIComponent(written)}`;
    host().history.replaceState(host().history.state, "", `${place.pathname}${place.search}#${hash}`);
  }
}
