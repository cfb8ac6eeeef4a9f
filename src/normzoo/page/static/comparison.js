// The comparison in words, and the best arm of each norm with its interval.
import { bestArms, metricName, timesOf, writer } from "./compared.js";
import { el } from "./dom.js";
import { whiskerChart } from "./whiskers.js";

const MOST_ROWS = 60;

/** The arms of the chart: the best of each norm, or all where there is one norm. `chosen`: whether a norm has several. */
function shown({ arms, mode }) {
  const norms = new Set(arms.map((arm) => arm.norm)).size;
  const all = norms > 1 ? bestArms({ arms, mode }) : arms;
  const chosen = norms > 1 && norms < arms.length;
  return {
    title: chosen ? "Best setting of each norm" : norms > 1 ? "Norms" : "All settings",
    chosen,
    rows: all.slice(0, MOST_ROWS),
    of: all.length,
  };
}

function bestChart(page, width) {
  const { chosen_by: chosenBy, baseline, mode } = page.comparison;
  const { title, chosen, rows, of } = shown(page.comparison);
  const better = mode === "min" ? "smaller is better" : "larger is better";
  return whiskerChart(
    {
      title: `${title}${rows.length < of ? `, ${rows.length} of ${of}` : ""}`,
      unit: [`mean and 95 % interval over seeds, ${better}`, chosen && chosenBy ? `settings chosen by ${chosenBy}` : ""]
        .filter(Boolean)
        .join("; "),
      xTitle: metricName(page.comparison),
      write: writer(page.comparison),
      times: timesOf(page.comparison),
      width,
      arms: rows,
      mode,
      baseline: rows.find((arm) => arm.norm === baseline && arm.best),
      color: (arm) => page.normColor(arm.norm),
      empty: "No run has finished yet.",
    },
    page.theme,
  );
}

export const comparisonView = {
  id: "comparison",
  title: "Comparison",
  about: "Differences are taken pair by pair, one pair for each seed. Small dots are seeds, the dashed line is the baseline.",
  early: true,
  shows: (page) => Boolean(page.comparison),
  names: () => [],
  draw(page) {
    const words = page.comparison.words.map((text) => el("li", {}, text));
    return [el("ul", { class: "nz-words" }, ...words), bestChart(page, page.width)];
  },
  csv(page) {
    const { metric } = page.comparison;
    const rows = shown(page.comparison).rows.map((arm) => [
      arm.name,
      arm.norm,
      metric,
      arm.mean,
      arm.low,
      arm.high,
      arm.finished,
      arm.planned,
    ]);
    return [["arm", "norm", "metric", "mean", "low", "high", "finished", "planned"], ...rows];
  },
};
