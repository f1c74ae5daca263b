// @ts-check
/**
 * What the charts show, without a page: the decision rule, the chart's geometry, and which sentence says what.
 * The host imports each .js file of this folder as an extension, so importing this one does nothing.
 */

import { count, fixed, said, t } from "./messages.js";

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

// ------------------------------------------------------------------------------------ the rule of core/plan.py

/**
 * theta(q): linear between the knots, constant outside them.
 * @param {number[][]} thresholds @param {number} q
 */
export function thresholdAt(thresholds, q) {
  if (q <= thresholds[0][0]) return thresholds[0][1];
  for (let i = 1; i < thresholds.length; i++) {
    const [q0, theta0] = thresholds[i - 1];
    const [q1, theta1] = thresholds[i];
    if (q < q1) return theta0 + (theta1 - theta0) * ((q - q0) / (q1 - q0));
  }
  return thresholds[thresholds.length - 1][1];
}

/**
 * Index of the least count from which on `upper` stays at or below theta; the last index if there is none.
 * @param {number[]} upper @param {number} theta
 */
export function sufficientIndex(upper, theta) {
  let index = upper.length - 1;
  while (index > 0 && upper[index] <= theta && upper[index - 1] <= theta) index--;
  return index;
}

/**
 * Steps for slider value q: the least sufficient count, then at least minSteps, then at most maxSteps.
 * @param {Pick<Decision, "counts" | "upper" | "thresholds">} decision
 * @param {number} q @param {number} minSteps @param {number} maxSteps
 */
export function decideSteps(decision, q, minSteps, maxSteps) {
  const index = sufficientIndex(decision.upper, thresholdAt(decision.thresholds, q));
  return Math.min(Math.max(decision.counts[index], minSteps), maxSteps);
}

/**
 * The metric that still forbids one step less; null where the smallest count already suffices.
 * @param {Decision} decision @param {number} q
 */
export function limitedBy(decision, q) {
  const index = sufficientIndex(decision.upper, thresholdAt(decision.thresholds, q));
  return index > 0 ? decision.limiting[index - 1] : null;
}

/**
 * Median predicted quality; null below the smallest calibrated count, the full-step image beyond the largest.
 * @param {Decision} decision @param {number} steps
 */
export function qualityAt(decision, steps) {
  const { counts, quality } = decision;
  if (steps < counts[0]) return null;
  return quality[Math.min(steps, counts[counts.length - 1]) - counts[0]];
}

/**
 * Monotone piecewise cubic in log n (Fritsch & Butland 1984), as core/curves.py gets it from scipy's PCHIP.
 * @param {number[]} grid increasing @param {number[]} values @param {number[]} counts inside the grid
 */
export function interpolateLogN(grid, values, counts) {
  const x = grid.map(Math.log);
  const slopes = pchipSlopes(x, values);
  let piece = 0;
  return counts.map((count) => {
    const at = Math.log(count);
    while (piece < x.length - 2 && at > x[piece + 1]) piece++;
    const h = x[piece + 1] - x[piece];
    const t = (at - x[piece]) / h;
    const s = 1 - t;
    return (
      s * s * (1 + 2 * t) * values[piece] +
      t * t * (3 - 2 * t) * values[piece + 1] +
      h * t * s * (s * slopes[piece] - t * slopes[piece + 1])
    );
  });
}

/** @param {number[]} x @param {number[]} y */
function pchipSlopes(x, y) {
  const h = x.slice(1).map((value, i) => value - x[i]);
  const m = y.slice(1).map((value, i) => (value - y[i]) / h[i]);
  if (m.length === 1) return [m[0], m[0]];
  const inner = m.slice(1).map((after, i) => {
    const before = m[i];
    if (before * after <= 0) return 0;
    const [w0, w1] = [2 * h[i + 1] + h[i], h[i + 1] + 2 * h[i]];
    return (w0 + w1) / (w0 / before + w1 / after);
  });
  const last = m.length - 1;
  return [edgeSlope(h[0], h[1], m[0], m[1]), ...inner, edgeSlope(h[last], h[last - 1], m[last], m[last - 1])];
}

/** @param {number} h0 @param {number} h1 @param {number} m0 @param {number} m1 */
function edgeSlope(h0, h1, m0, m1) {
  const slope = ((2 * h0 + h1) * m0 - h0 * m1) / (h0 + h1);
  if (slope * m0 <= 0) return 0;
  return m0 * m1 < 0 && Math.abs(slope) > 3 * Math.abs(m0) ? 3 * m0 : slope;
}

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

// --------------------------------------------------------------------------------------------- chart geometry

export const MARGIN = { left: 38, right: 12, top: 10, bottom: 30 };
const NICE_COUNTS = [1, 2, 3, 5, 8, 10, 15, 20, 30, 40, 50, 75, 100, 150, 200, 300, 500, 750, 1000];
const TICK_GAP = 26; // pixels a three-digit label needs

/**
 * @typedef {{view: View, curve: Curve | null, points: Point[], counted: boolean, chosen: number | null,
 *   floor: number | null, wanted: number | null, minSteps: number | null, maxSteps: number | null,
 *   commit?: number | null}} ChartModel
 * `commit`: the count up to which all renders are the same.
 * @typedef {{at: number, label: string}} Tick
 * @typedef {{x0: number, x1: number, y0: number, y1: number, first: number, last: number, xTicks: Tick[],
 *   yTicks: Tick[], line: string, band: string, points: {x: number, y: number}[], floorY: number | null,
 *   wantedY: number | null, commitX: number | null, chosen: {x: number, y: number | null} | null, outside: {x: number, width: number}[],
 *   x: (n: number) => number, y: (value: number) => number}} ChartLayout
 * Pixels of an SVG; paths are `d` attributes, "" where there is nothing to draw.
 */

/**
 * Where everything lies on a chart of this size. Quality rises upward; so does nearness (distance 0 is at the top).
 * @param {ChartModel} model @param {number} width @param {number} height @returns {ChartLayout}
 */
export function chartLayout(model, width, height) {
  const { curve, points, chosen } = model;
  const [x0, x1] = [MARGIN.left, Math.max(width - MARGIN.right, MARGIN.left + 1)];
  const [y0, y1] = [Math.max(height - MARGIN.bottom, MARGIN.top + 1), MARGIN.top];
  const commit = model.commit || null;
  const single = [chosen, commit].filter((n) => n !== null);
  const counts = [...(curve?.counts ?? []), ...points.map((point) => point.n), ...single];
  const [first, last] = counts.length ? [Math.min(...counts), Math.max(...counts)] : [2, 50];
  const x = axis(first, last, x0, x1, model.counted);
  const top = model.view === "quality" ? 1 : niceCeiling([...(curve?.line ?? []), ...points.map((p) => p.value)]);
  /** @param {number} value */
  const y = (value) => {
    const share = clamp(value / top, 0, 1);
    return y0 + (y1 - y0) * (model.view === "quality" ? share : 1 - share);
  };
  const at = curve && chosen !== null ? curve.counts.indexOf(chosen) : -1;
  return {
    x0, x1, y0, y1, first, last, x, y,
    xTicks: spacedTicks(first, last, x, model.counted),
    yTicks: [0, 0.25, 0.5, 0.75, 1].map((share) => ({ at: y(share * top), label: tickText(share * top, top) })),
    line: curve ? path(curve.counts.map(x), curve.line.map(y)) : "",
    band: curve?.low && curve.high ? bandPath(curve.counts.map(x), curve.low.map(y), curve.high.map(y)) : "",
    points: points.map((point) => ({ x: x(point.n), y: y(point.value) })),
    floorY: model.floor === null || model.view !== "quality" ? null : y(model.floor),
    wantedY: model.wanted === null || model.view !== "quality" ? null : y(model.wanted),
    commitX: commit === null ? null : x(commit),
    chosen: chosen === null ? null : { x: x(chosen), y: at < 0 || !curve ? null : y(curve.line[at]) },
    outside: outsideLimits(model, first, last, x, x0, x1),
  };
}

/**
 * The whole count that is drawn nearest to pixel px.
 * @param {ChartLayout} layout @param {number} px
 */
export function nearestCount(layout, px) {
  const { first, last, x } = layout;
  let [low, high] = [first, last];
  while (high - low > 1) {
    const middle = Math.floor((low + high) / 2);
    if (x(middle) <= px) low = middle;
    else high = middle;
  }
  return px - x(low) <= x(high) - px ? low : high;
}

/**
 * Pixel of a count: logarithmic for step counts, linear for image numbers.
 * @param {number} first @param {number} last @param {number} x0 @param {number} x1 @param {boolean} logarithmic
 */
function axis(first, last, x0, x1, logarithmic) {
  if (first === last) return () => (x0 + x1) / 2;
  const scale = logarithmic ? Math.log : (/** @type {number} */ n) => n;
  const [low, high] = [scale(first), scale(last)];
  return (/** @type {number} */ n) => x0 + ((x1 - x0) * (scale(n) - low)) / (high - low);
}

/**
 * Both ends, and the round counts between them that leave room for each other's labels.
 * @param {number} first @param {number} last @param {(n: number) => number} x @param {boolean} logarithmic
 * @returns {Tick[]}
 */
function spacedTicks(first, last, x, logarithmic) {
  const inner = logarithmic
    ? NICE_COUNTS.filter((n) => n > first && n < last)
    : Array.from({ length: Math.min(Math.max(last - first - 1, 0), 200) }, (_, i) => first + i + 1);
  const ticks = [first];
  for (const n of inner) {
    if (x(n) - x(ticks[ticks.length - 1]) >= TICK_GAP && x(last) - x(n) >= TICK_GAP) ticks.push(n);
  }
  if (last > first) ticks.push(last);
  return ticks.map((n) => ({ at: x(n), label: String(n) }));
}

/**
 * What min_steps and max_steps exclude, as strips of the plot.
 * @param {ChartModel} model @param {number} first @param {number} last @param {(n: number) => number} x
 * @param {number} x0 @param {number} x1
 */
function outsideLimits(model, first, last, x, x0, x1) {
  const strips = [];
  if (model.minSteps !== null && model.minSteps > first && first < last) {
    strips.push({ x: x0, width: Math.min(x(model.minSteps), x1) - x0 });
  }
  if (model.maxSteps !== null && model.maxSteps < last && first < last) {
    const start = model.maxSteps <= first ? x0 : x(model.maxSteps);
    strips.push({ x: start, width: x1 - start });
  }
  return strips;
}

/** The least 1, 2, 2.5 or 5 times a power of ten above all values. @param {number[]} values */
export function niceCeiling(values) {
  const peak = Math.max(...values, 1e-6);
  const power = 10 ** Math.floor(Math.log10(peak));
  const factor = [1, 2, 2.5, 5, 10].find((f) => f * power >= peak * (1 - 1e-9)) ?? 10;
  return factor * power;
}

/** @param {number} value @param {number} top */
function tickText(value, top) {
  const digits = Math.max(0, 2 - Math.floor(Math.log10(top) + 1e-9));
  return value === 0 ? "0" : Number(value.toFixed(Math.min(digits, 6))).toString();
}

/** @param {number[]} xs @param {number[]} ys */
function path(xs, ys) {
  return xs.map((x, i) => `${i ? "L" : "M"}${round(x)} ${round(ys[i])}`).join("");
}

/** @param {number[]} xs @param {number[]} low @param {number[]} high */
function bandPath(xs, low, high) {
  const back = path([...xs].reverse(), [...high].reverse()).replace("M", "L");
  return `${path(xs, low)}${back}Z`;
}

// -------------------------------------------------------------------------------------------- numbers as text

/** "76% fewer", "50% more" or "none saved". @param {number} steps @param {number} of */
export function fewer(steps, of) {
  const share = 1 - steps / of;
  if (Math.round(Math.abs(share) * 100) === 0) return t(steps === of ? "none_saved" : "about_the_same");
  return t(share > 0 ? "fewer" : "more", { share: Math.abs(share) });
}

/** Seconds saved (positive) or spent. @param {number} seconds */
export function difference(seconds) {
  if (Math.abs(seconds) < 0.0005) return t("no_difference");
  return t(seconds > 0 ? "time_saved" : "time_more", { time: duration(Math.abs(seconds)) });
}

/** @param {number} energy in watt-hours */
export function wattHours(energy) {
  return energy < 1 ? `${(1000 * energy).toPrecision(3)} mWh` : `${energy.toPrecision(3)} Wh`;
}

/** @param {number} seconds */
export function duration(seconds) {
  if (seconds < 0.9995) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 9.995) return `${fixed(seconds, 2)} s`;
  if (seconds < 59.95) return `${fixed(seconds, 1)} s`;
  const whole = Math.round(seconds);
  const [hours, minutes, rest] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60];
  return hours ? `${hours} h ${minutes} min` : `${minutes} min ${rest} s`;
}

/** @param {number} value */
function round(value) {
  return Math.round(value * 10) / 10;
}

/** @param {number} value @param {number} low @param {number} high */
function clamp(value, low, high) {
  return Math.min(Math.max(value, low), high);
}

/** Upper-case first letter, but not of a name like sampler_name, and a full stop. @param {string} text */
export function sentence(text) {
  const trimmed = text.trim();
  const first = trimmed.charAt(0);
  return (/^[a-z]+_/.test(trimmed) ? first : first.toUpperCase()) + trimmed.slice(1) + (/[.!?)。！？）]$/.test(trimmed) ? "" : ".");
}
