// Axes and number formats.

const SUPERSCRIPT = { "-": "⁻", 0: "⁰", 1: "¹", 2: "²", 3: "³", 4: "⁴", 5: "⁵", 6: "⁶", 7: "⁷", 8: "⁸", 9: "⁹" };

/** A number as text, with four significant digits. */
export function format(value) {
  if (value === null || value === undefined || Number.isNaN(value)) return "no value";
  if (!Number.isFinite(value)) return value > 0 ? "∞" : "−∞";
  const size = Math.abs(value);
  if (size !== 0 && (size < 1e-3 || size >= 1e5)) return value.toExponential(2).replace("e+", "e");
  return String(Number(value.toPrecision(4)));
}

function power(exponent) {
  return exponent === 0 ? "1" : `10${[...String(exponent)].map((digit) => SUPERSCRIPT[digit]).join("")}`;
}

/** Smallest and largest value over finite numbers, and the smallest positive one. */
export class Extent {
  min = Infinity;
  max = -Infinity;
  positive = Infinity;
  infinite = false;

  add(value) {
    if (value === null || value === undefined || Number.isNaN(value)) return;
    if (!Number.isFinite(value)) {
      this.infinite = true;
      return;
    }
    if (value < this.min) this.min = value;
    if (value > this.max) this.max = value;
    if (value > 0 && value < this.positive) this.positive = value;
  }

  merge(other) {
    this.min = Math.min(this.min, other.min);
    this.max = Math.max(this.max, other.max);
    this.positive = Math.min(this.positive, other.positive);
    this.infinite ||= other.infinite;
  }

  get empty() {
    return this.max < this.min;
  }

  /** Whether positive values span so many decades; zeros do not prevent it. */
  spans(decades) {
    return this.min >= 0 && this.max > 0 && this.max / this.positive >= 10 ** decades;
  }
}

function niceStep(span, count) {
  const rough = span / count;
  const base = 10 ** Math.floor(Math.log10(rough));
  return base * ([1, 2, 5].find((factor) => factor * base >= rough * 0.999) ?? 10);
}

function linearTicks(min, max, count) {
  const step = niceStep(max - min, count);
  const ticks = [];
  for (let i = Math.ceil(min / step - 1e-9); i * step <= max + step * 1e-9; i++) ticks.push(Number((i * step).toPrecision(12)));
  return ticks;
}

function logTicks(min, max, count) {
  const [low, high] = [Math.ceil(Math.log10(min) - 1e-9), Math.floor(Math.log10(max) + 1e-9)];
  if (high - low < 1) return linearTicks(min, max, count);
  const stride = Math.max(1, Math.ceil((high - low + 1) / count));
  const ticks = [];
  for (let i = Math.ceil(low / stride) * stride; i <= high; i += stride) ticks.push(10 ** i);
  return ticks;
}

/** Maps values to pixels. `kind` is linear, log or symlog (linear within one unit, then logarithmic on both sides). */
export class Scale {
  constructor(kind, min, max, from, to, unit = 1) {
    Object.assign(this, { kind, min, max, from, to, unit, times: 1 });
    [this.low, this.high] = [this.warp(min), this.warp(max)];
  }

  warp(value) {
    if (this.kind === "log") return Math.log10(Math.max(value, this.min));
    return this.kind === "symlog" ? Math.asinh(value / this.unit) : value;
  }

  /** The place of a value between 0 and 1. */
  fraction(value) {
    const place = (this.warp(value) - this.low) / (this.high - this.low || 1);
    return Math.max(0, Math.min(1, place));
  }

  pixel(value) {
    return this.from + this.fraction(value) * (this.to - this.from);
  }

  /** The value at a pixel. */
  value(pixel) {
    const warped = this.low + ((pixel - this.from) / (this.to - this.from)) * (this.high - this.low);
    if (this.kind === "log") return 10 ** warped;
    return this.kind === "symlog" ? Math.sinh(warped) * this.unit : warped;
  }

  ticks(count) {
    if (this.kind === "log") return logTicks(this.min, this.max, count);
    if (this.kind === "linear") return linearTicks(this.min, this.max, count);
    const side = (end) => (end > this.unit ? logTicks(this.unit, end, count / 2) : []);
    return [...side(-this.min).map((tick) => -tick), 0, ...side(this.max)];
  }

  /** The text of a value, `times` as large. */
  label(value) {
    const tick = value * this.times;
    const exponent = Math.log10(Math.abs(tick));
    const whole = tick !== 0 && Math.abs(exponent - Math.round(exponent)) < 1e-9;
    if (this.kind !== "linear" && whole) return (tick < 0 ? "−" : "") + power(Math.round(exponent));
    return format(tick).replace("-", "−");
  }

  /** The axis for an extent: logarithmic if it spans two decades, with a little air at both ends. */
  static around(extent, from, to, tight = false) {
    if (extent.empty) return new Scale("linear", 0, 1, from, to);
    if (extent.spans(2)) return new Scale("log", extent.positive / 1.3, extent.max * 1.3, from, to);
    const low = tight ? extent.min : Math.min(0, extent.min);
    const high = tight ? extent.max : Math.max(0, extent.max);
    const air = (high - low) * 0.06 || Math.abs(high) * 0.1 || 1;
    return new Scale("linear", low === 0 ? 0 : low - air, high === 0 && low < 0 ? 0 : high + air, from, to);
  }
}
