// node --test tests/web
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";

import { said, setMessages } from "../../budgetfusion_nodes/web/messages.js";
import * as layout from "../../budgetfusion_nodes/web/chart_layout.js";
import * as numbers from "../../budgetfusion_nodes/web/numbers.js";
import * as decision from "../../budgetfusion_nodes/web/plan_decision.js";
import * as view from "../../budgetfusion_nodes/web/plan_view.js";
import { speakEnglish, wordsOf } from "./english.mjs";

const pv = { ...layout, ...numbers, ...decision, ...view };
speakEnglish();

const read = (name) => JSON.parse(readFileSync(new URL(`../cases/${name}`, import.meta.url), "utf8"));
const { cases } = read("decide_cases.json");
const real = read("plan_case.json");
const plan = pv.readPlan(real.plan);
const SIZE = [340, 160];

const near = (a, b, within = 1e-9) => assert.ok(Math.abs(a - b) <= within, `${a} is not ${b}`);
const model = (more = {}) => ({
  view: "quality", curve: pv.planCurves(plan).quality, points: [], counted: true, chosen: plan.steps, floor: 0.8,
  wanted: 0.9, minSteps: 2, maxSteps: 50, ...more,
});
const drawn = (d) => [...d.matchAll(/[ML]([\d.-]+) ([\d.-]+)/g)].map(([, x, y]) => [Number(x), Number(y)]);

// ------------------------------------------------------------------------------------------------ the rule

for (const c of cases) {
  test(`shared case: ${c.name}`, () => {
    assert.equal(pv.decideSteps(c, c.quality, c.min_steps, c.max_steps), c.steps);
  });
}

test("all shared cases are there", () => assert.ok(cases.length >= 45));

for (const { quality, steps, limited_by } of real.decided) {
  test(`a plan of the core decides ${steps} steps for ${quality}`, () => {
    assert.equal(pv.decideSteps(plan.decision, quality, 2, 50), steps);
    assert.equal(pv.limitedBy(plan.decision, quality), limited_by);
  });
}

test("predicted quality is that of the core, also outside the calibrated counts", () => {
  for (const { steps, quality } of real.quality_at) assert.equal(pv.qualityAt(plan.decision, steps), quality);
});

test("interpolation equals scipy's, humps and flat ends included", () => {
  const { counts } = plan.decision;
  const high = pv.interpolateLogN(plan.grid, plan.quality_high, counts);
  const humped = pv.interpolateLogN(plan.grid, real.l_snr, counts);
  real.interpolated.quality_high.forEach((value, i) => near(high[i], value, 1e-12));
  real.interpolated.l_snr.forEach((value, i) => near(humped[i], value, 1e-12));
});

test("two points are joined by a line in log n", () => {
  near(pv.interpolateLogN([2, 8], [0, 1], [4])[0], 0.5);
});

// ------------------------------------------------------------------------------------------ reading the output

test("what is no plan is refused, and a decision of another version is left out", () => {
  for (const bad of [null, undefined, "x", {}, { steps: 5 }]) assert.equal(pv.readPlan(bad), null);
  const old = pv.readPlan({ steps: 5, max_steps: 9, decision: { grid: [2, 3], thresholds: [[0.5, 1]] } });
  assert.equal(old.decision, null);
  assert.equal(pv.readPlan({ steps: 5, max_steps: 9, set_by: "d_sim" }).limited_by, "d_sim", "its name in earlier versions");
  const shown = pv.outlook({ ...old, fallback: null }, null);
  assert.equal(shown.badge, "No plan");
  assert.match(shown.reason, /another version/);
});

// -------------------------------------------------------------------------------------------------- sentences

test("untouched sliders repeat the plan", () => {
  const shown = pv.outlook(plan, { quality: 0.9, minSteps: 2, maxSteps: 50, risk: 0.1 });
  assert.equal(shown.steps, real.plan.steps);
  assert.match(shown.headline, new RegExp(`^${real.plan.steps} of 50 steps \\(\\d+% fewer\\)$`));
  assert.deepEqual(shown.notes, real.plan.warnings.map(said));
  assert.ok(shown.notes.length);
  near(shown.floor, 1 - real.plan.threshold);
});

test("a moved quality slider moves count and threshold, and says what the last run took", () => {
  const shown = pv.outlook(plan, { quality: 0.62 });
  assert.equal(shown.steps, real.decided.find(({ quality }) => quality === 0.62).steps);
  assert.ok(shown.steps < real.plan.steps);
  assert.ok(shown.floor < 1 - real.plan.threshold);
  assert.ok(shown.details.includes(`The last run took ${real.plan.steps} steps`));
});

test("max_steps below the need cuts, with the remedy", () => {
  const shown = pv.outlook(plan, { quality: 0.99, maxSteps: 6 });
  assert.equal(shown.steps, 6);
  assert.match(shown.notes[0], /needs \d+ steps, but max_steps is 6.*Raise max_steps or lower quality\./);
});

test("a warning about an old max_steps goes when the slider has moved; others stay", () => {
  const limit = { code: "max_too_low", values: { quality: 0.9, steps: 9, max: 4 } };
  const warned = { ...plan, warnings: [limit, "A LoRA."] };
  assert.equal(pv.outlook(warned, null).notes.length, 2);
  assert.deepEqual(pv.outlook(warned, { maxSteps: 40 }).notes, ["A LoRA."]);
});

test("what Python says is worded in the page's language, its numbers and the messages inside it too", () => {
  const note = { code: "max_too_low", values: { quality: 0.9, steps: 1234, max: 4 } };
  const file = { code: "planner_file", values: { file: "a.safetensors", problem: { code: "file_absent", values: {} } } };
  assert.match(said(note), /^Quality 0\.90 needs 1,234 steps, but max_steps is 4:/);
  assert.match(said(file), /^Planner file a\.safetensors: there is no such file\./);
  try {
    setMessages("de", wordsOf("de"), wordsOf("en"));
    assert.match(said(note), /^Qualit\u00e4t 0,90 braucht 1\.234 Schritte/);
    assert.match(said(file), /^Planerdatei a\.safetensors: es gibt sie nicht\./);
    assert.match(pv.outlook(plan, null).details[0], /10\s%$/u);
  } finally {
    speakEnglish();
  }
});

test("a text of an earlier version, a code of a later one and values that are not numbers are shown as they are", () => {
  assert.equal(said("A LoRA."), "A LoRA.");
  assert.equal(said({ code: "of_a_later_version", values: { n: 3 } }), "of_a_later_version: n 3");
  assert.equal(said({ code: "prediction_error", values: { error: "nan" } }), "The plan's predicted quality is off by nan on average.");
  assert.match(said({ code: "out_of_distribution", values: { score: null } }), /\(out-of-distribution score \?, 1 is the edge\)/);
});

test("min above max and another risk are said", () => {
  assert.match(pv.outlook(plan, { minSteps: 9, maxSteps: 4 }).notes[0], /min_steps 9 is above max_steps 4/);
  assert.match(pv.outlook(plan, { risk: 0.02 }).notes[0], /risk is 2% now; the chart is for 10%/);
});

test("a fallback shows badge and reason, and follows max_steps", () => {
  const none = { ...plan, decision: null, fallback: "no planner was calibrated for this model", steps: 50 };
  const shown = pv.outlook(none, { maxSteps: 30 });
  assert.deepEqual(
    [shown.steps, shown.headline, shown.badge, shown.reason, shown.floor],
    [30, "All 30 steps", "No plan", "No planner was calibrated for this model.", null],
  );
});

test("a sentence begins with a capital, unless it begins with the name of an input, and ends with a stop", () => {
  assert.deepEqual(["no plan", " sampler_name: x. ", "ja。", "Why?"].map(pv.sentence), ["No plan.", "sampler_name: x.", "Ja。", "Why?"]);
});

test("an overruled plan stays overruled however the slider moves, its curve on show", () => {
  const over = { ...plan, fallback: "euler_ancestral adds noise.", steps: 50 };
  assert.equal(pv.outlook(over, { quality: 0.5 }).steps, 50);
  assert.ok(pv.planCurves(over).quality.line.length > 2);
});

test("a receipt counts steps, seconds and the usual settings", () => {
  const receipt = { steps: 12, max_steps: 50, nfe: 12, seconds: 1.2, seconds_per_step: 0.1 };
  const rows = Object.fromEntries(pv.receiptRows(receipt, plan));
  assert.equal(rows.Steps, "12 of 50 (76% fewer)");
  assert.equal(rows.Time, "1.20 s, 100 ms a step, 12 model calls");
  assert.equal(rows["Against 50"], "3.80 s saved");
  assert.equal(rows["Against 20"], "800 ms saved (12 steps instead of 20)");
  assert.equal(rows["Against 30"], "1.80 s saved (12 steps instead of 30)");
  assert.equal(rows["Made for"], "tiny_scenes, dpmpp_2m, karras, cfg 3, 64 x 64");
  assert.equal(pv.settingText({ ...plan.setting, precision: "fp16" }), "tiny_scenes, dpmpp_2m, karras, cfg 3, 64 x 64, fp16");
});

test("a receipt compares with each count once, and with one's own count in no words but these", () => {
  const receipt = { steps: 1, max_steps: 30, nfe: 1, seconds: 0.1, seconds_per_step: 0.1 };
  const rows = pv.receiptRows(receipt, plan).filter(([label]) => label.startsWith("Against"));
  assert.deepEqual(rows, [["Against 30", "2.90 s saved"], ["Against 20", "1.90 s saved (1 step instead of 20)"]]);
  const same = Object.fromEntries(pv.receiptRows({ ...receipt, steps: 20, max_steps: 50 }, plan));
  assert.equal(same["Against 20"], "no difference");
});

test("a receipt tells a loss too, and nothing of a planner that did not decide", () => {
  const receipt = { steps: 50, max_steps: 50, nfe: 99, seconds: 5, seconds_per_step: 0.1 };
  const rows = Object.fromEntries(pv.receiptRows(receipt, { ...plan, limited_by: null, fallback: "no planner" }));
  assert.equal(rows.Steps, "50 of 50 (none saved)");
  assert.equal(rows["Against 50"], "no difference");
  assert.equal(rows["Against 20"], "3.00 s more (50 steps instead of 20)");
  assert.equal(rows.Planner, undefined);
  assert.deepEqual(pv.receiptRows({ ...receipt, steps: 0 }, plan), [["Steps", "nothing to sample"]]);
});

test("durations read as an artist says them", () => {
  const said = [0.0004, 0.25, 0.9996, 1, 9.996, 59.96, 75, 3700].map(pv.duration);
  assert.deepEqual(said, ["0 ms", "250 ms", "1.00 s", "1.00 s", "10.0 s", "1 min 0 s", "1 min 15 s", "1 h 1 min"]);
});

test("shares round to none, about the same, fewer and more", () => {
  assert.deepEqual(
    [pv.fewer(50, 50), pv.fewer(999, 1000), pv.fewer(10, 20), pv.fewer(30, 20)],
    ["none saved", "about the same", "50% fewer", "50% more"],
  );
});

const probe = {
  steps: [2, 8, 50], counted: true, quality: [0, 0.8, 1], l_snr: [6.123, 1, 0], d_sim: [0.5, 0.1, 0],
  i_clip: [0.3, 0.05, 0], backends: {}, reference: "the last image", notes: [],
};

test("the probe's numbers have a row for each image, with quality only where it is known", () => {
  const table = pv.probeTable(probe);
  assert.deepEqual(table.head, ["steps", "L-SNR dB", "D-SIM", "I-CLIP", "quality"]);
  assert.deepEqual(table.rows[0], ["2", "6.12", "0.5000", "0.3000", "0.000"]);
  assert.equal(pv.probeTable({ ...probe, quality: null, counted: false }).head.join(), "image,L-SNR dB,D-SIM,I-CLIP");
  assert.deepEqual(pv.probePoints({ ...probe, quality: null }, "quality"), []);
});

test("the read-out tells prediction, range and measurement", () => {
  const curve = pv.planCurves(plan).quality;
  const points = pv.probePoints(probe, "quality");
  assert.match(pv.readout(8, "quality", curve, points), /^8 steps: quality 0\.\d\d predicted \(0\.\d\d to 0\.\d\d\), quality 0\.80 measured$/);
  assert.equal(pv.readout(70, "quality", curve, points), "70 steps: not predicted");
  assert.equal(pv.readout(2, "l_snr", null, pv.probePoints(probe, "l_snr"), false), "image 2: distance 6.12 dB measured");
});

test("what memory knows is said beside the plan, and its measured points are drawn over the curve", () => {
  const words = { code: "memory_own", values: { own: 3, steps: plan.steps, without: plan.steps + 3 } };
  const knowing = { ...plan, remembered: { own: 3, near: 2, without: plan.steps + 3, said: words, points: [[4, 0.5], [9, 0.9]] } };
  const now = { quality: plan.quality, minSteps: plan.min_steps, maxSteps: plan.max_steps };
  const { details } = pv.outlook(knowing, now);
  assert.ok(details.includes(said(words)), details.join("; "));
  assert.ok(said(words).includes(`3 renders of this prompt: ${plan.steps} steps, without them ${plan.steps + 3}`));
  assert.ok(!pv.outlook(plan, now).details.includes(said(words)));
  const points = pv.rememberedPoints(knowing, "quality");
  assert.deepEqual(points, [{ n: 4, value: 0.5 }, { n: 9, value: 0.9 }]);
  assert.match(pv.readout(9, "quality", pv.planCurves(knowing).quality, points), /quality 0\.90 measured$/);
  assert.deepEqual(pv.rememberedPoints(knowing, "d_sim"), []); // only quality is remembered for the chart
  assert.deepEqual(pv.rememberedPoints(plan, "quality"), []);
});

// --------------------------------------------------------------------------------------------------- geometry

test("the axis is logarithmic: equal ratios are equally far apart", () => {
  const { x } = pv.chartLayout(model(), ...SIZE);
  near(x(4) - x(2), x(8) - x(4));
  near(x(2), pv.MARGIN.left);
  near(x(50), SIZE[0] - pv.MARGIN.right);
});

test("quality rises upward, and distance 0 lies at the top", () => {
  const quality = pv.chartLayout(model(), ...SIZE);
  assert.ok(quality.y(1) < quality.y(0));
  const metric = pv.chartLayout(model({ view: "l_snr", curve: pv.planCurves(plan).l_snr }), ...SIZE);
  assert.ok(metric.y(0) < metric.y(3));
  assert.equal(metric.floorY, null);
});

test("line and band stay inside the plot, the line inside the band", () => {
  const { line, low, high } = pv.planCurves(plan).quality;
  line.forEach((value, i) => assert.ok(low[i] <= value + 1e-9 && value <= high[i] + 1e-9, `count ${i + 2}`));
  const layout = pv.chartLayout(model(), ...SIZE);
  const points = [...drawn(layout.line), ...drawn(layout.band)];
  assert.equal(points.length, 3 * line.length);
  for (const [x, y] of points) {
    assert.ok(x >= layout.x0 - 0.1 && x <= layout.x1 + 0.1 && y >= layout.y1 - 0.1 && y <= layout.y0 + 0.1);
  }
});

test("the band's lower edge is above the threshold from the chosen count on, and not one step before", () => {
  for (const { quality, steps } of real.decided) {
    const { floor } = pv.outlook(plan, { quality });
    const { counts, low } = pv.planCurves(plan).quality;
    const at = counts.indexOf(steps);
    assert.ok(low.slice(at).every((value) => value >= floor - 1e-12), `quality ${quality}`);
    if (at > 0 && floor > 0) assert.ok(low[at - 1] < floor, `quality ${quality}`);
  }
});

test("tick labels keep their distance and name both ends, for short, long and single-count axes", () => {
  for (const [first, last, width] of [[2, 50, 200], [1, 1000, 340], [10, 12, 340], [7, 7, 340]]) {
    const points = [{ n: first, value: 0.5 }, { n: last, value: 0.5 }];
    const { xTicks } = pv.chartLayout(model({ curve: null, chosen: null, points }), width, 160);
    assert.equal(xTicks[0].label, String(first));
    assert.equal(xTicks.at(-1).label, String(last));
    xTicks.slice(1).forEach((tick, i) => assert.ok(tick.at - xTicks[i].at >= 20, `${first} to ${last}`));
  }
});

test("a chosen count beyond the curve widens the axis and has no dot", () => {
  const layout = pv.chartLayout(model({ chosen: 80 }), ...SIZE);
  assert.equal(layout.last, 80);
  assert.equal(layout.chosen.y, null);
});

test("what the limits exclude is shaded", () => {
  const layout = pv.chartLayout(model({ minSteps: 4, maxSteps: 30 }), ...SIZE);
  assert.equal(layout.outside.length, 2);
  near(layout.outside[0].x + layout.outside[0].width, layout.x(4));
  near(layout.outside[1].x, layout.x(30));
  assert.deepEqual(pv.chartLayout(model(), ...SIZE).outside, []);
});

test("every pixel of a count reads back as that count", () => {
  for (const counted of [true, false]) {
    const layout = pv.chartLayout(model({ counted }), ...SIZE);
    for (let n = 2; n <= 50; n++) assert.equal(pv.nearestCount(layout, layout.x(n)), n);
    assert.equal(pv.nearestCount(layout, -100), 2);
    assert.equal(pv.nearestCount(layout, 9999), 50);
  }
});

test("an empty chart still has axes", () => {
  const layout = pv.chartLayout(model({ curve: null, chosen: null, floor: null, wanted: null }), ...SIZE);
  assert.equal(layout.line + layout.band, "");
  assert.ok(layout.xTicks.length >= 3 && layout.yTicks.length === 5);
});

test("the metric axis ends at a round number above every value", () => {
  assert.deepEqual([[0.3], [2.4], [6], [0.011], [10], []].map(pv.niceCeiling).slice(0, 5), [0.5, 2.5, 10, 0.02, 10]);
});

test("the modules that the host imports as extensions do nothing without a page", async () => {
  await import("../../budgetfusion_nodes/web/plan_panel.js");
  assert.equal(typeof globalThis.document, "undefined");
});

test("a plan of one count keeps it whatever quality is, within the limits", () => {
  const one = pv.readPlan({
    steps: 7, max_steps: 7, min_steps: 2, quality: 0.9, risk: 0.1, fallback: null, decision: null,
    warnings: [{ code: "count_steady", values: { count: 9, prompts: 28, metric: "l_snr" } }],
  });
  const at = (controls) => pv.outlook(one, controls);
  assert.deepEqual([0.5, 0.99].map((quality) => at({ quality, maxSteps: 20 }).steps), [9, 9]);
  assert.equal(at(null).steps, 7);
  assert.equal(at({ minSteps: 12, maxSteps: 20 }).steps, 12);
  assert.deepEqual([at(null).badge, at(null).reason, at(null).details], [null, null, []]);
});

// ------------------------------------------------------------------------------------------ nested schedules

test("the commit point is drawn at its count, left of every planned one", () => {
  const layout = pv.chartLayout(model({ commit: 1 }), ...SIZE);
  assert.equal(layout.commitX, layout.x(1));
  assert.equal(layout.first, 1);
  for (const commit of [0, null, undefined]) assert.equal(pv.chartLayout(model({ commit }), ...SIZE).commitX, null);
});

test("a nested receipt says both parts and what the draft gave", () => {
  const receipt = { steps: 9, max_steps: 50, nfe: 9, seconds: 1, seconds_per_step: 0.2, prefix_steps: 5, replayed: 6 };
  const rows = Object.fromEntries(pv.receiptRows(receipt, null));
  assert.match(rows.Steps, /5 \+ 4 steps/);
  assert.equal(rows["From the draft"], "6 of 9 model calls");
  const stock = Object.fromEntries(pv.receiptRows({ ...receipt, prefix_steps: 0, replayed: 0 }, null));
  assert.ok(!("From the draft" in stock) && !stock.Steps.includes("+"));
});
