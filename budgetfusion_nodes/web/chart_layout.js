// @ts-check
/**
 * Where everything lies on a chart.
 * The host imports each .js file of this folder as an extension, so importing this one does nothing.
 */

import { clamp } from "./numbers.js";

/**
 * @typedef {import("./plan_view.js").Curve} Curve
 * @typedef {import("./plan_view.js").Point} Point
 * @typedef {import("./plan_view.js").View} View
 */

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

/** @param {number} value */
function round(value) {
  return Math.round(value * 10) / 10;
}
