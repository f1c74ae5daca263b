// @ts-check
/**
 * The rule of core/plan.py, for sliders that have moved since the plan was made.
 * The host imports each .js file of this folder as an extension, so importing this one does nothing.
 */

/** @typedef {import("./plan_view.js").Decision} Decision */

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
