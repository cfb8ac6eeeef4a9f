// What a comparison says, in names and numbers that several views share.
import { format } from "./scale.js";

/** Size of the font in the charts of a comparison, px: legible on a slide. */
export const BIG = 14;

const NAMES = { lr: "learning rate", batch_size: "batch size", max_epochs: "epochs", weight_decay: "weight decay" };

/** The last part of a setting's name, in words; the whole name if two settings end alike. */
export function axisName(axis, axes) {
  const last = (name) => name.split(".").pop();
  const alike = axes.filter((other) => last(other) === last(axis)).length > 1;
  return alike ? axis : (NAMES[last(axis)] ?? last(axis).replaceAll("_", " "));
}

/** Settings with two numbers or more: they can be an axis. */
export function numericAxes({ axes, arms }) {
  const numbers = (axis) => new Set(arms.map((arm) => arm.settings[axis]).filter(Number.isFinite));
  return axes.filter((axis) => numbers(axis).size > 1);
}

/** The best arm of each norm, the best of all first; an arm without a value is last. */
export function bestArms({ arms, mode }) {
  const sign = mode === "min" ? 1 : -1;
  const place = (arm) => (arm.mean === null ? Infinity : sign * arm.mean);
  return arms.filter((arm) => arm.best).sort((a, b) => place(a) - place(b) || 0);
}

/** The best arm of each norm, that of the baseline first. */
export function leadingArms(comparison) {
  const isBase = (arm) => arm.norm === comparison.baseline;
  return bestArms(comparison).sort((a, b) => isBase(b) - isBase(a));
}

/** What values of the metric are multiplied with to be shown: accuracies are shown in percent. */
export const timesOf = ({ share }) => (share ? 100 : 1);

/** A function that writes values of the metric, and differences between them: the largest mean has four digits, the others as many decimals. */
export function writer(comparison) {
  const times = timesOf(comparison);
  const largest = times * Math.max(...comparison.arms.map((arm) => Math.abs(arm.mean ?? 0)));
  const decimals = Math.max(0, Math.min(8, 3 - Math.floor(Math.log10(largest || 1))));
  return (known) => {
    if (known === null || known === undefined) return "none";
    const value = times * known;
    const text = value.toFixed(decimals);
    const useless = (Number(text) === 0 && value !== 0) || Math.abs(value) >= 1e6;
    return (useless ? format(value) : text).replace(/^-/, "−");
  };
}

/** "0.9500 to 0.9800"; empty without an interval. */
export function interval(range, write) {
  return range && range.low !== null && range.low !== undefined ? `${write(range.low)} to ${write(range.high)}` : "";
}

/** The metric in words. */
export function metricName({ metric, share }) {
  return `${metric ?? "no metric yet"}${share ? ", %" : ""}`;
}

/** A value of a setting: a class without its module. */
export function settingText(value) {
  if (typeof value === "string") return /^[A-Za-z_][\w.]*$/.test(value) ? value.split(".").pop() : value;
  return value === null || value === undefined ? "" : JSON.stringify(value).replaceAll(",", ", ");
}

/** What did not end well, by seed: ["seed 2: diverged at step 120"]. */
export function failureTexts(arm) {
  return arm.failures.map(({ seed, kind, step, text }) => {
    const who = seed === null ? "" : `seed ${seed}: `;
    return `${who}${kind}${step === null ? "" : ` at step ${step}`}${kind === "failed" && text ? `: ${text}` : ""}`;
  });
}

/** "3 of 3 diverged", "1 of 3 failed", "1 of 3 diverged, 1 failed". */
export function failureCount(arm) {
  const count = (kind) => arm.failures.filter((failure) => failure.kind === kind).length;
  const parts = ["diverged", "failed"].filter(count).map((kind, i) => `${count(kind)}${i ? "" : ` of ${arm.planned}`} ${kind}`);
  return parts.join(", ");
}

/** Seeds whose result is known. */
export function seedCount(arm) {
  return arm.values.filter((value) => value !== null).length;
}
