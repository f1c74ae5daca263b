// @ts-check
/**
 * What a queue rendered and what that saved: the sums, and the panel that shows them. Knows no host.
 * The host imports each .js file of this folder as an extension, so importing this one does nothing.
 */

import { t } from "./messages.js";
import { difference, duration, fewer, wattHours } from "./numbers.js";
import { COMMON_COUNTS } from "./plan_view.js";

/**
 * @typedef {import("./plan_view.js").Receipt} Receipt
 * @typedef {{renders: number, images: number, steps: number, maxSteps: number, seconds: number, savedVsMax: number,
 *   savedVs: number[], wattHours: number | null, fallbacks: number}} Sum
 * `savedVs`: seconds saved against each of COMMON_COUNTS, from the measured time of a step.
 */

/** @returns {Sum} */
export function emptySum() {
  return {
    renders: 0, images: 0, steps: 0, maxSteps: 0, seconds: 0, savedVsMax: 0,
    savedVs: COMMON_COUNTS.map(() => 0), wattHours: null, fallbacks: 0,
  };
}

/** @param {Sum} sum @param {Receipt} receipt @returns {Sum} */
export function added(sum, receipt) {
  const { steps, max_steps: max, seconds_per_step: each } = receipt;
  return {
    renders: sum.renders + 1,
    images: sum.images + (receipt.images ?? 1),
    steps: sum.steps + steps,
    maxSteps: sum.maxSteps + max,
    seconds: sum.seconds + receipt.seconds,
    savedVsMax: sum.savedVsMax + each * (max - steps),
    savedVs: COMMON_COUNTS.map((usual, i) => sum.savedVs[i] + each * (usual - steps)),
    wattHours: receipt.watt_hours == null ? sum.wattHours : (sum.wattHours ?? 0) + receipt.watt_hours,
    fallbacks: sum.fallbacks + (receipt.fallback ? 1 : 0),
  };
}

/** Running totals, fed with what the host says over its socket. */
export class Totals {
  constructor() {
    this.queue = emptySum();
    this.all = emptySum();
    this.remaining = 0;
    /** Nodes whose result came from the host's cache, by prompt: nothing was rendered for them. @type {Map<string, Set<string>>} */
    this.cached = new Map();
    /** Seconds a step as last measured, by model. @type {Map<string, number>} */
    this.paces = new Map();
    /** @type {Set<() => void>} */
    this.watchers = new Set();
  }

  /** A queue begins where there was none. @param {number | undefined} remaining prompts, the running one included */
  onStatus(remaining) {
    if (remaining === undefined) return;
    if (this.remaining === 0 && remaining > 0) {
      this.queue = emptySum();
      this.changed();
    }
    this.remaining = remaining;
  }

  /** @param {string} prompt @param {(string | number)[]} nodes */
  onCached(prompt, nodes) {
    this.cached.set(prompt, new Set(nodes.map(String)));
    if (this.cached.size > 8) this.cached.delete([...this.cached.keys()][0]);
  }

  /** @param {string} prompt @param {string | number} node @param {any} output the node's `ui` dict */
  onExecuted(prompt, node, output) {
    const receipts = /** @type {Receipt[]} */ (output?.receipt ?? []).filter((one) => Number.isFinite(one?.steps));
    if (!receipts.length || this.cached.get(prompt)?.has(String(node))) return;
    receipts.forEach((receipt, i) => {
      this.queue = added(this.queue, receipt);
      this.all = added(this.all, receipt);
      const model = output.budget_plan?.[i]?.setting?.model_name;
      if (receipt.steps > 0 && model) this.paces.set(model, receipt.seconds_per_step);
    });
    this.changed();
  }

  reset() {
    this.queue = emptySum();
    this.all = emptySum();
    this.changed();
  }

  changed() {
    for (const watcher of this.watchers) watcher();
  }
}

/**
 * Rows of the panel: label, then a text for each sum.
 * @param {Sum[]} sums @returns {[string, ...string[]][]}
 */
export function totalRows(sums) {
  /** @param {string} label @param {(sum: Sum) => string} text @returns {[string, ...string[]]} */
  const row = (label, text) => [label, ...sums.map(text)];
  const rows = [
    row(t("totals_images"), (sum) => String(sum.images)),
    row(t("totals_steps"), ({ steps, maxSteps }) =>
      steps ? t("totals_of", { steps, max: maxSteps, saved: fewer(steps, maxSteps) }) : "0",
    ),
    row(t("totals_seconds"), (sum) => duration(sum.seconds)),
    row(t("totals_saved"), (sum) => difference(sum.savedVsMax)),
    ...COMMON_COUNTS.map((n, i) => row(t("totals_against", { n }), (sum) => difference(sum.savedVs[i]))),
  ];
  if (sums.some((sum) => sum.wattHours !== null)) {
    rows.push(row(t("totals_energy"), (sum) => (sum.wattHours === null ? t("unknown") : wattHours(sum.wattHours))));
  }
  if (sums.some((sum) => sum.fallbacks)) rows.push(row(t("totals_fallbacks"), (sum) => String(sum.fallbacks)));
  return rows;
}

/**
 * Fills `place` with the running total and keeps it true; returns what takes it away.
 * @param {HTMLElement} place @param {Totals} totals
 */
export function showTotals(place, totals) {
  const panel = document.createElement("section");
  panel.className = "bf-totals";
  const body = document.createElement("div");
  body.setAttribute("role", "status");
  const reset = document.createElement("button");
  reset.type = "button";
  reset.textContent = t("totals_reset");
  const clear = () => totals.reset();
  reset.addEventListener("click", clear);
  panel.append(paragraph(t("totals_about")), body, reset);
  const draw = () => {
    reset.hidden = !totals.all.renders;
    body.replaceChildren(totals.all.renders ? table(totals) : paragraph(t("totals_empty")));
  };
  totals.watchers.add(draw);
  draw();
  place.replaceChildren(panel);
  return () => {
    totals.watchers.delete(draw);
    reset.removeEventListener("click", clear);
    panel.remove();
  };
}

/** @param {Totals} totals */
function table(totals) {
  const made = document.createElement("table");
  line(made, "th", ["", t("totals_queue"), t("totals_all")]);
  for (const row of totalRows([totals.queue, totals.all])) line(made, "td", row);
  return made;
}

/** @param {HTMLTableElement} place @param {"th" | "td"} tag @param {string[]} texts */
function line(place, tag, texts) {
  const row = place.insertRow();
  texts.forEach((text, i) => {
    const cell = document.createElement(i ? tag : "th");
    cell.textContent = text;
    row.append(cell);
  });
}

/** @param {string} text */
function paragraph(text) {
  const made = document.createElement("p");
  made.textContent = text;
  return made;
}
