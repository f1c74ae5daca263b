// @ts-check
/**
 * What a plan, a receipt and a probe say, without a page.
 * The host imports each .js file of this folder as an extension, so importing this one does nothing.
 */

import { count, fixed, said, t } from "./messages.js";
import { clamp, difference, duration, fewer, wattHours } from "./numbers.js";
import { decideSteps, interpolateLogN, limitedBy, qualityAt, thresholdAt } from "./plan_decision.js";

/**
 * @typedef {{grid: number[], thresholds: number[][], counts: number[], upper: number[], limiting: string[],
 *   quality: number[]}} Decision
 * `upper`: normalised upper shortfall at each of `counts`; `thresholds`: knots [q, theta]; see core/plan.py.
 *
 * @typedef {{model_name?: string, sampler_name?: string, scheduler?: string, cfg?: number, width?: number | null,
 *   height?: number | null, precision?: string, frames?: number | null, guidance?: number | null}} Setting
 *
 * @typedef {import("./messages.js").Message} Message
 *
 * @typedef {{steps: number, max_steps: number, min_steps: number, quality: number, risk: number,
 *   quality_predicted: number | null, limited_by: string | null, grid: number[], quality_low: number[],
 *   quality_high: number[], shortfall_median: Record<string, number[]> | null, planner: string,
 *   setting: Setting | null, fallback: Message | null, warnings: Message[], decision: Decision | null,
 *   prefix_steps?: number, remembered?: Remembered | null}} Plan
 * @typedef {{own: number, near: number, without: number, said: Message | null, points: number[][]}} Remembered
 * `points`: [steps, quality] that were measured of this prompt before; see core/plan.py.
 * `prefix_steps`: those that every count shares, down to the commit point; 0 with the stock schedule.
 *
 * @typedef {{steps: number, max_steps: number, nfe: number, seconds: number, seconds_per_step: number,
 *   images?: number, watt_hours?: number | null, fallback?: Message | null, prefix_steps?: number,
 *   replayed?: number}} Receipt
 *
 * @typedef {{steps: number[], counted: boolean, quality: number[] | null, backends: Record<string, string>,
 *   reference: Message, notes: Message[], l_snr: number[], d_sim: number[], i_clip: number[]}} Probe
 *
 * @typedef {{quality: number, minSteps: number, maxSteps: number, risk: number}} Controls
 * Where the sliders stand now; they may have moved since the plan was made.
 *
 * @typedef {{counts: number[], line: number[], low: number[] | null, high: number[] | null}} Curve
 * @typedef {{n: number, value: number}} Point
 * @typedef {"quality" | "l_snr" | "d_sim" | "i_clip"} View
 */

/** @type {Exclude<View, "quality">[]} */
export const METRICS = ["l_snr", "d_sim", "i_clip"];

/** What a metric is called. @param {string} metric */
export function metricWords(metric) {
  return METRICS.some((known) => known === metric) ? t(`metric_${metric}`) : metric;
}

/** @type {View[]} */
export const VIEWS = ["quality", ...METRICS];

/** Step counts that artists leave set, as in planning/receipt.py. */
export const COMMON_COUNTS = [20, 30];

// ------------------------------------------------------------------------------------------- what the host sent

/**
 * The plan in a node's `ui` output, or null if it is not one of this version.
 * @param {any} value @returns {Plan | null}
 */
export function readPlan(value) {
  if (!value || !Number.isFinite(value.steps) || !Number.isFinite(value.max_steps)) return null;
  const decision = isDecision(value.decision) ? value.decision : null;
  return {
    min_steps: 1,
    quality_predicted: null,
    limited_by: value.set_by ?? null, // its name in earlier versions
    planner: "",
    setting: null,
    fallback: null,
    ...value,
    grid: value.grid ?? [],
    quality_high: value.quality_high ?? [],
    shortfall_median: value.shortfall_median ?? null,
    warnings: value.warnings ?? [],
    decision,
  };
}

/** @param {any} value @returns {value is Decision} */
function isDecision(value) {
  const n = value?.counts?.length;
  return (
    n >= 2 &&
    ["upper", "limiting", "quality"].every((name) => value[name]?.length === n) &&
    value.thresholds?.length >= 1
  );
}

/**
 * All predicted curves of a plan, at every count. Null where the plan has none (a fallback).
 * @param {Plan} plan @returns {Record<View, Curve | null> | null}
 */
export function planCurves(plan) {
  const decision = plan.decision;
  if (!decision) return null;
  const { counts } = decision;
  const known = plan.grid.length >= 2;
  /** @param {View} metric @returns {Curve | null} */
  const ofMetric = (metric) => {
    const values = plan.shortfall_median?.[metric];
    if (!known || values?.length !== plan.grid.length) return null;
    return { counts, line: interpolateLogN(plan.grid, values, counts), low: null, high: null };
  };
  return {
    quality: {
      counts,
      line: decision.quality,
      low: decision.upper.map((u) => clamp(1 - u, 0, 1)),
      high: known && plan.quality_high.length === plan.grid.length
        ? interpolateLogN(plan.grid, plan.quality_high, counts)
        : decision.quality,
    },
    l_snr: ofMetric("l_snr"),
    d_sim: ofMetric("d_sim"),
    i_clip: ofMetric("i_clip"),
  };
}

// ------------------------------------------------------------------------------------------------ what is said

/**
 * @typedef {{steps: number, maxSteps: number, minSteps: number, quality: number, floor: number | null,
 *   headline: string, details: string[], badge: string | null, reason: string | null, notes: string[]}} Outlook
 * `floor`: required lower bound of the band; null where no plan decides.
 */

/**
 * What the sliders would give now, for the prompt of the last run.
 * @param {Plan} plan
 * @param {Partial<Controls> | null} controls what is left out stands as in the plan; null: no slider of the node decides
 * @returns {Outlook}
 */
export function outlook(plan, controls) {
  const made = { quality: plan.quality, minSteps: plan.min_steps, maxSteps: plan.max_steps, risk: plan.risk };
  const now = { ...made, ...controls };
  const common = { maxSteps: now.maxSteps, minSteps: now.minSteps, quality: now.quality };
  const notes = currentNotes(plan, now);
  const counted = oneCount(plan);
  if (counted !== null) {
    const steps = Math.min(Math.max(counted, now.minSteps), now.maxSteps);
    const headline = t("headline", { steps, max: count(now.maxSteps, "steps"), saved: fewer(steps, now.maxSteps) });
    return { ...common, steps, floor: null, headline, details: [], badge: null, reason: null, notes };
  }
  if (plan.fallback !== null || !plan.decision) {
    return {
      ...common,
      steps: now.maxSteps,
      floor: null,
      headline: t("all_steps", { steps: count(now.maxSteps, "steps") }),
      details: [],
      badge: t("no_plan"),
      reason: sentence(plan.fallback === null ? t("other_version") : said(plan.fallback)),
      notes,
    };
  }
  const moved = isMoved(plan, now);
  const steps = moved ? decideSteps(plan.decision, now.quality, now.minSteps, now.maxSteps) : plan.steps;
  const limit = moved ? limitedBy(plan.decision, now.quality) : plan.limited_by;
  const predicted = qualityAt(plan.decision, steps);
  const details = [
    t("wanted", {
      wanted: now.quality,
      predicted: predicted ?? t("unknown"),
      risk: plan.risk,
    }),
  ];
  if (limit) details.push(t("limited_by", { metric: metricWords(limit) }));
  if (plan.remembered?.said && !moved) details.push(said(plan.remembered.said));
  if (steps !== plan.steps) details.push(t("last_run", { steps: count(plan.steps, "steps") }));
  return {
    ...common,
    steps,
    floor: clamp(1 - thresholdAt(plan.decision.thresholds, now.quality), 0, 1),
    headline: t("headline", { steps, max: count(now.maxSteps, "steps"), saved: fewer(steps, now.maxSteps) }),
    details,
    badge: null,
    reason: null,
    notes,
  };
}

const OF_COUNT = ["count_steady", "count_best"];

/**
 * The one count for all prompts of a planner without curves, which a warning tells; null for other plans.
 * @param {Plan} plan @returns {number | null}
 */
function oneCount(plan) {
  if (plan.fallback !== null || plan.decision) return null;
  for (const warning of plan.warnings) {
    if (typeof warning === "object" && OF_COUNT.includes(warning.code)) return Number(warning.values.count);
  }
  return null;
}

/** @param {Plan} plan @param {Controls} now */
function isMoved(plan, now) {
  return now.quality !== plan.quality || now.minSteps !== plan.min_steps || now.maxSteps !== plan.max_steps;
}

/** Warnings that speak of where a step limit stood in the last run. */
const OF_LIMITS = ["max_too_low", "max_beyond", "min_beyond"];

/** @param {Message} warning */
function isOfLimits(warning) {
  return typeof warning === "object" && OF_LIMITS.includes(warning.code);
}

/**
 * The plan's warnings that still hold, and what the moved sliders add.
 * @param {Plan} plan @param {Controls} now
 */
function currentNotes(plan, now) {
  if (!isMoved(plan, now) && now.risk === plan.risk) return plan.warnings.map(said);
  const notes = plan.warnings.filter((warning) => !isOfLimits(warning)).map(said);
  if (now.minSteps > now.maxSteps) {
    notes.unshift(said({ code: "min_above_max", values: { min: now.minSteps, max: now.maxSteps } }));
  } else if (plan.fallback === null && plan.decision) {
    const { counts } = plan.decision;
    const wanted = decideSteps(plan.decision, now.quality, 1, counts[counts.length - 1]);
    if (wanted > now.maxSteps) {
      const values = { quality: now.quality, steps: wanted, max: now.maxSteps };
      notes.unshift(said({ code: "max_too_low", values }));
    }
  }
  if (now.risk !== plan.risk) {
    notes.unshift(t("risk_moved", { now: now.risk, then: plan.risk }));
  }
  return notes;
}

/**
 * What a list of prompts will take, where the sliders stand now; null for a single prompt.
 * @param {Plan[]} plans @param {Partial<Controls> | null} controls
 * @param {number | null} pace seconds a step, measured; null before the first render
 * @returns {string[] | null}
 */
export function forecast(plans, controls, pace) {
  if (plans.length < 2) return null;
  const each = plans.map((plan) => outlook(plan, controls));
  const steps = each.reduce((sum, one) => sum + one.steps, 0);
  const most = each.reduce((sum, one) => sum + one.maxSteps, 0);
  const [usual] = COMMON_COUNTS;
  const fixedCount = usual * plans.length;
  const values = { n: plans.length, steps: count(steps, "steps"), max: most, usual, fixed: fixedCount };
  if (pace === null) return [t("forecast", values), t("forecast_no_time")];
  const [time, max, fixedTime] = [steps, most, fixedCount].map((taken) => duration(pace * taken));
  return [t("forecast", values), t("forecast_time", { time, max, usual, fixed: fixedTime })];
}

/**
 * The receipt of a finished render, as label and text.
 * @param {Receipt} receipt @param {Plan | null} plan @returns {[string, string][]}
 */
export function receiptRows(receipt, plan) {
  const { steps, max_steps: max, seconds, seconds_per_step: each } = receipt;
  if (!steps) return [[t("row_steps"), t("nothing_to_sample")]];
  const calls = count(receipt.nfe, "calls");
  /** @type {[string, string][]} */
  const rows = [
    [t("row_steps"), stepsText(receipt)],
    [t("row_time"), t("time_row", { time: duration(seconds), each: duration(each), calls })],
    [t("row_against", { n: max }), difference(each * (max - steps))],
    ...COMMON_COUNTS.filter((usual) => usual !== max).map(
      /** @returns {[string, string]} */
      (usual) => {
        const time = difference(each * (usual - steps));
        const told = usual === steps ? time : t("against_row", { time, steps: count(steps, "steps"), usual });
        return [t("row_against", { n: usual }), told];
      },
    ),
  ];
  if (receipt.replayed) rows.push([t("row_draft"), t("draft_row", { n: receipt.replayed, calls })]);
  if (receipt.watt_hours != null) {
    const energy = wattHours(receipt.watt_hours);
    const saved = wattHours((receipt.watt_hours / steps) * Math.max(max - steps, 0));
    rows.push([t("row_energy"), t("energy_row", { energy, saved, max })]);
  }
  if (plan?.limited_by) rows.push([t("row_limited_by"), metricWords(plan.limited_by)]);
  if (plan?.planner && plan.fallback === null) {
    rows.push([t("row_planner"), plan.planner]);
    if (plan.setting) rows.push([t("row_made_for"), settingText(plan.setting)]);
  }
  return rows;
}

/** "9 of 50 (82% fewer), 5 + 4 steps". @param {Receipt} receipt */
function stepsText({ steps, max_steps: max, prefix_steps: prefix = 0 }) {
  const told = t("headline", { steps, max, saved: fewer(steps, max) });
  return prefix ? `${told}, ${t("nested_steps", { prefix, tail: steps - prefix })}` : told;
}

/** @param {Setting} setting */
export function settingText(setting) {
  const size = setting.width && setting.height ? `${setting.width} x ${setting.height}` : null;
  const cfg = setting.cfg === undefined ? null : `cfg ${setting.cfg}`;
  const guidance = setting.guidance == null ? null : `guidance ${setting.guidance}`;
  const frames = (setting.frames ?? 1) > 1 ? `x ${setting.frames}` : null;
  const { model_name, sampler_name, scheduler, precision } = setting;
  const parts = [model_name, sampler_name, scheduler, cfg, guidance, [size, frames].filter(Boolean).join(" "), precision];
  return parts.filter(Boolean).join(", ");
}

/**
 * The Probe's numbers: a head and a row for each image.
 * @param {Probe} probe @returns {{head: string[], rows: string[][]}}
 */
export function probeTable(probe) {
  const head = [t(probe.counted ? "axis_steps" : "axis_image"), "L-SNR dB", "D-SIM", "I-CLIP"];
  const rows = probe.steps.map((n, i) => [
    String(n),
    fixed(probe.l_snr[i], 2),
    fixed(probe.d_sim[i], 4),
    fixed(probe.i_clip[i], 4),
    ...(probe.quality ? [fixed(probe.quality[i], 3)] : []),
  ]);
  return { head: probe.quality ? [...head, t("column_quality")] : head, rows };
}

/** What was measured of this prompt before. @param {Plan | null} plan @param {View} view @returns {Point[]} */
export function rememberedPoints(plan, view) {
  if (view !== "quality") return [];
  return (plan?.remembered?.points ?? []).map(([n, value]) => ({ n, value }));
}

/** @param {Probe} probe @param {View} view @returns {Point[]} */
export function probePoints(probe, view) {
  return (probe[view] ?? []).map((value, i) => ({ n: probe.steps[i], value }));
}

/**
 * One point of the chart in words.
 * @param {number} n @param {View} view @param {Curve | null} curve @param {Point[]} points @param {boolean} counted
 */
export function readout(n, view, curve, points, counted = true) {
  const parts = [];
  const i = curve ? curve.counts.indexOf(n) : -1;
  if (curve && i >= 0) {
    const value = valueText(curve.line[i], view);
    const range = curve.low && curve.high ? { low: fixed(curve.low[i], 2), high: fixed(curve.high[i], 2) } : null;
    parts.push(range ? t("predicted_range", { value, ...range }) : t("predicted", { value }));
  }
  const found = points.find((point) => point.n === n);
  if (found) parts.push(t("measured", { value: valueText(found.value, view) }));
  const what = counted ? count(n, "steps") : t("image_number", { n });
  return t("read", { what, values: parts.join(", ") || t("not_predicted") });
}

/** @param {number} value @param {View} view */
function valueText(value, view) {
  if (view === "quality") return t("value_quality", { value });
  return t(view === "l_snr" ? "value_db" : "value_distance", { value });
}

/** Upper-case first letter, but not of a name like sampler_name, and a full stop. @param {string} text */
export function sentence(text) {
  const trimmed = text.trim();
  const first = trimmed.charAt(0);
  return (/^[a-z]+_/.test(trimmed) ? first : first.toUpperCase()) + trimmed.slice(1) + (/[.!?)。！？）]$/.test(trimmed) ? "" : ".");
}
