// @ts-check
/**
 * Parts of the panel on a node: title, legend, receipt and the Probe's numbers.
 * The host imports each .js file of this folder as an extension, so importing this one does nothing.
 */

import { element } from "./dom.js";
import { said, t } from "./messages.js";
import { METRICS, probeTable, receiptRows, rememberedPoints } from "./plan_view.js";

/**
 * @typedef {import("./plan_view.js").Plan} Plan
 * @typedef {import("./plan_view.js").Receipt} Receipt
 * @typedef {import("./plan_view.js").Probe} Probe
 * @typedef {import("./plan_view.js").View} View
 */

/** Forecast of a list, badge and headline. @param {import("./plan_view.js").Outlook} now @param {string[]} whole */
export function titleLines(now, whole) {
  const title = element("div", "bf-title");
  if (now.badge) title.append(element("span", "bf-badge", `\u26A0 ${now.badge}`));
  title.append(element("strong", "bf-headline", now.headline));
  return [...whole.map((text) => element("div", "bf-forecast", text)), title];
}

/** @param {Plan | null} plan @param {Probe | null} probe @param {View} view @param {boolean} band */
export function legend(plan, probe, view, band) {
  const box = element("div", "bf-legend");
  const planned = plan?.decision && plan.fallback === null;
  /** @param {string} mark @param {string} text */
  const add = (mark, text) => {
    const item = element("span", "bf-key");
    item.append(element("i", `bf-mark ${mark}`), text);
    box.append(item);
  };
  if (plan?.decision) add("bf-mark-line", t(view === "quality" ? "legend_predicted" : "legend_distance"));
  if (plan?.decision && view === "quality" && band) add("bf-mark-band", t("legend_band"));
  if (planned && view === "quality") {
    add("bf-mark-floor", t("legend_floor"));
    add("bf-mark-wanted", t("legend_wanted"));
  }
  if (planned && plan?.prefix_steps) add("bf-mark-commit", t("commit_mark", { prefix: plan.prefix_steps }));
  if (plan?.decision) add("bf-mark-chosen", t(planned ? "legend_chosen" : "legend_taken"));
  if (probe || rememberedPoints(plan, view).length) add("bf-mark-point", t("legend_measured"));
  return box;
}

/** @param {Receipt} receipt @param {Plan | null} plan */
export function receiptList(receipt, plan) {
  const list = element("dl", "bf-receipt");
  list.setAttribute("aria-label", t("receipt"));
  for (const [label, text] of receiptRows(receipt, plan)) list.append(element("dt", "", label), element("dd", "", text));
  return list;
}

/** @param {Probe} probe */
export function numbers(probe) {
  const { head, rows } = probeTable(probe);
  const frame = element("div", "bf-numbers");
  frame.tabIndex = 0; // scrolls by keyboard
  frame.setAttribute("role", "region");
  frame.setAttribute("aria-label", t("distances", { reference: said(probe.reference) }));
  const table = element("table", "");
  const top = element("tr", "");
  top.append(...head.map((text) => element("th", "", text)));
  table.append(top);
  for (const row of rows) {
    const line = element("tr", "");
    line.append(...row.map((text) => element("td", "", text)));
    table.append(line);
  }
  frame.append(table);
  return frame;
}

/** @param {Probe} probe */
export function measuredWith(probe) {
  const used = METRICS.map((metric) => `${metric}: ${probe.backends[metric] ?? t("unknown")}`).join(", ");
  const told = [t("distances", { reference: said(probe.reference) }), t("measured_with", { backends: used })];
  return element("p", "bf-detail", told.join(" "));
}
