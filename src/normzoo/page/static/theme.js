// Colours. The set of Okabe and Ito can be told apart by people with any kind of colour blindness.

export const LIGHT = { name: "light", back: "#ffffff", ink: "#1c1f24", soft: "#646b76", grid: "#e6e8ec", none: "#d3d6db", bad: "#d3162b" };
const DARK = { name: "dark", back: "#1d2025", ink: "#e8eaed", soft: "#a0a7b1", grid: "#343941", none: "#50565f", bad: "#ff4d5e" };
const PALETTE = ["#0072b2", "#d55e00", "#009e73", "#e69f00", "#cc79a7", "#56b4e9", "#8c8c8c"];
const DARK_PALETTE = ["#3f9bdc", "#ee7733", "#22b98d", "#f0b62f", "#dd92ba", "#8fd0f5", "#b0b0b0"];
const USUAL = ["BatchNorm", "NoNorm", "LayerNorm", "GroupNorm", "InstanceNorm", "RMSNorm"];
const VIRIDIS = ["#440154", "#472d7b", "#3b528b", "#2c728e", "#21918c", "#28ae80", "#5ec962", "#addc30", "#fde725"];
const DIVERGING = ["#053061", "#2166ac", "#67a9cf", "#d1e5f0", "#f5f5f5", "#e8d5ae", "#c99a4c", "#8c510a", "#543005"];
export const DASHES = ["", "7 3", "2 2.5", "9 3 2 3", "14 4", "5 2 2 2 2 2"];

function rgb(hex) {
  return [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16));
}

function ramp(stops) {
  const colours = stops.map(rgb);
  return Array.from({ length: 256 }, (_, i) => {
    const place = (i / 255) * (colours.length - 1);
    const [at, part] = [Math.min(Math.floor(place), colours.length - 2), place - Math.min(Math.floor(place), colours.length - 2)];
    return `rgb(${colours[at].map((c, k) => Math.round(c + part * (colours[at + 1][k] - c))).join(",")})`;
  });
}

export const SEQUENTIAL = ramp(VIRIDIS);
export const BOTH_SIDES = ramp(DIVERGING);

/**
 * One number per norm, the same in every view and for every choice of runs: usual norms first, others in order. Of more norms than colours, those of
 * `leading` are first.
 */
export function colourNumbers(norms, leading = []) {
  if (norms.length > PALETTE.length && leading.length) return new Map([...new Set([...leading, ...norms])].map((norm, i) => [norm, i]));
  const numbers = new Map();
  const others = [...new Set(norms)].filter((norm) => !USUAL.includes(norm)).sort();
  const free = [6, ...USUAL.map((norm, i) => (norms.includes(norm) ? -1 : i)).filter((i) => i >= 0)];
  for (const norm of norms) if (USUAL.includes(norm)) numbers.set(norm, USUAL.indexOf(norm));
  others.forEach((norm, i) => numbers.set(norm, i < free.length ? free[i] : PALETTE.length + (i - free.length)));
  return numbers;
}

/** Colour of a norm. More than seven norms repeat the colours, with other dashes. */
export function lineColour(number, theme) {
  const palette = theme.name === "dark" ? DARK_PALETTE : PALETTE;
  return palette[number % palette.length];
}

/** How often the colours were used up before this number. */
export function lineRound(number) {
  return Math.floor(number / PALETTE.length);
}

/** The body of TensorBoard around this page, if any. */
function hostBody() {
  try {
    return window.parent !== window ? window.parent.document.body : null;
  } catch {
    return null; // a page of another origin: its colours cannot be read
  }
}

export function currentTheme() {
  const body = hostBody();
  const dark = body?.querySelector("tb-webapp")
    ? body.classList.contains("dark-mode")
    : body?.classList.contains("dark-mode") || matchMedia("(prefers-color-scheme: dark)").matches;
  return dark ? DARK : LIGHT;
}

/** Calls `changed` when the system's or the host's mode changes. */
export function watchTheme(changed) {
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", changed);
  const body = hostBody();
  if (body) new MutationObserver(changed).observe(body, { attributes: true, attributeFilter: ["class"] });
}
