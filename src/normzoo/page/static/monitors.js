// Monitors side by side: a panel per norm, one axis for all panels of a metric.
import { panelsOf } from "./data.js";
import { columns, el, grid } from "./dom.js";
import { profile, profileCsv, why } from "./profile.js";
import { MONITORS } from "./profiles.js";

/** The page with some of its groups only. */
function part(page, groups) {
  return Object.assign(Object.create(page), { groups, runs: groups.flatMap((group) => group.runs) });
}

export const monitorsView = {
  id: "monitors",
  title: "Monitors side by side",
  about: "A panel per norm, a line per setting, a band over its seeds, at the step of the slider. All panels of a row share their axis.",
  byStep: true,
  shows: (page) => Boolean(page.comparison) && page.hasTables,
  draw(page) {
    const each = panelsOf(page.groups);
    if (!each.length) return [el("p", { class: "nz-empty" }, why(page))];
    const fit = columns(page.width, 230, Math.max(2, Math.min(4, each.length)));
    const draw =
      (chart) =>
      ({ title, groups }) =>
        profile(part(page, groups), { ...chart, title, font: 12 }, fit.width, 230, page);
    return MONITORS.flatMap((chart) => [el("h3", {}, chart.title), grid(fit, ...each.map(draw(chart)))]);
  },
  csv: (page) => profileCsv(page, MONITORS),
};
