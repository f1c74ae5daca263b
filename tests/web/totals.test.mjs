// node --test tests/web
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";

import { keep, recall } from "../../budgetfusion_nodes/web/kept.js";
import { setMessages, t } from "../../budgetfusion_nodes/web/messages.js";
import { wattHours } from "../../budgetfusion_nodes/web/numbers.js";
import { forecast, outlook, readPlan } from "../../budgetfusion_nodes/web/plan_view.js";
import { Totals, added, emptySum, totalRows } from "../../budgetfusion_nodes/web/totals.js";
import { speakEnglish, wordsOf } from "./english.mjs";

speakEnglish();

const plan = readPlan(JSON.parse(readFileSync(new URL("../cases/plan_case.json", import.meta.url), "utf8")).plan);
const near = (a, b) => assert.ok(Math.abs(a - b) <= 1e-9, `${a} is not ${b}`);
const receipt = (more = {}) => ({
  steps: 10, max_steps: 50, nfe: 10, seconds: 1, seconds_per_step: 0.1, images: 2, watt_hours: null, fallback: null, ...more,
});

// ------------------------------------------------------------------------------------------------ running total

test("a sum adds images, steps and the seconds that a fixed count would have taken", () => {
  const sum = added(added(emptySum(), receipt()), receipt({ steps: 25, seconds: 5, seconds_per_step: 0.2, fallback: "x" }));
  assert.deepEqual([sum.renders, sum.images, sum.steps, sum.maxSteps, sum.fallbacks], [2, 4, 35, 100, 1]);
  near(sum.seconds, 6);
  near(sum.savedVsMax, 0.1 * 40 + 0.2 * 25);
  near(sum.savedVs[0], 0.1 * 10 - 0.2 * 5); // against 20: the second took more
  near(sum.savedVs[1], 0.1 * 20 + 0.2 * 5);
});

test("energy is unknown until a render tells it, and then the sum of those that do", () => {
  assert.equal(added(emptySum(), receipt()).wattHours, null);
  const sum = [0.25, null, 0.5].reduce((so, watt_hours) => added(so, receipt({ watt_hours })), emptySum());
  near(sum.wattHours, 0.75);
  assert.deepEqual([wattHours(0.00321), wattHours(1.5)], ["3.21 mWh", "1.50 Wh"]);
});

test("a queue that begins anew starts its own sum; the other goes on", () => {
  const totals = new Totals();
  totals.onStatus(2);
  totals.onExecuted("a", 6, { receipt: [receipt()] });
  totals.onStatus(1);
  totals.onExecuted("b", 6, { receipt: [receipt()] });
  assert.equal(totals.queue.renders, 2);
  totals.onStatus(0);
  totals.onStatus(undefined); // a status without numbers says nothing
  assert.equal(totals.queue.renders, 2, "a finished queue stays on show");
  totals.onStatus(1);
  assert.deepEqual([totals.queue.renders, totals.all.renders], [0, 2]);
  totals.reset();
  assert.equal(totals.all.renders, 0);
});

test("a cached result is not counted, and what is no receipt is left out", () => {
  const totals = new Totals();
  totals.onCached("a", [6, "7"]);
  totals.onExecuted("a", "6", { receipt: [receipt()] });
  totals.onExecuted("a", 7, { receipt: [receipt()] });
  for (const output of [null, undefined, {}, { receipt: [null, {}] }]) totals.onExecuted("a", 8, output);
  assert.equal(totals.all.renders, 0);
  totals.onExecuted("b", 6, { receipt: [receipt(), receipt()] });
  assert.equal(totals.all.renders, 2, "a list of prompts has a receipt each");
});

test("the pace of a model is the one last measured", () => {
  const totals = new Totals();
  const output = (each) => ({ receipt: [receipt({ seconds_per_step: each })], budget_plan: [{ setting: { model_name: "m" } }] });
  totals.onExecuted("a", 6, output(0.2));
  totals.onExecuted("b", 6, output(0.3));
  totals.onExecuted("c", 6, { receipt: [receipt({ steps: 0, seconds_per_step: 0 })], budget_plan: [{ setting: { model_name: "m" } }] });
  assert.equal(totals.paces.get("m"), 0.3);
});

test("rows of the total name what is known, for both sums", () => {
  const sum = added(emptySum(), receipt({ watt_hours: 0.5, fallback: "none" }));
  const rows = Object.fromEntries(totalRows([emptySum(), sum]).map(([label, ...texts]) => [label, texts]));
  assert.deepEqual(rows.Steps, ["0", "10 of 50 (80% fewer)"]);
  assert.deepEqual(rows["Saved against max_steps"], ["no difference", "4.00 s saved"]);
  assert.deepEqual(rows.Energy, ["unknown", "500 mWh"]);
  assert.deepEqual(rows["Renders without a plan"], ["0", "1"]);
  assert.equal(totalRows([emptySum()]).some(([label]) => label === "Energy"), false);
});

// --------------------------------------------------------------------------------------------- a list of prompts

test("a list's forecast sums what each prompt would take now", () => {
  assert.equal(forecast([plan], {}, 0.1), null);
  const [said, time] = forecast([plan, plan, plan], { quality: 0.8 }, 0.1);
  const each = outlook(plan, { quality: 0.8 }).steps;
  assert.equal(said, `3 prompts: ${3 * each} steps in all; max_steps would take 150, 20 each would take 60`);
  assert.match(time, /^About \S+ m?s; max_steps 15\.0 s, 20 each 6\.00 s$/);
  assert.match(forecast([plan, plan], {}, null)[1], /known after the first render/);
});

// ------------------------------------------------------------------------------------------------- kept results

function store(limit = Infinity) {
  const held = new Map();
  return {
    getItem: (key) => held.get(key) ?? null,
    setItem: (key, value) => {
      if (value.length > limit) throw new DOMException("full", "QuotaExceededError");
      held.set(key, value);
    },
  };
}

test("a kept result comes back for the same workflow, node and type alone", () => {
  const kept = store();
  keep(kept, "w", "6", "Sampler", { receipt: [1], images: ["not kept"] }, 1);
  keep(kept, "w", "7", "Probe", { probe: [2] }, 2);
  assert.deepEqual(recall(kept, "w")("6", "Sampler"), { receipt: [1] });
  assert.equal(recall(kept, "w")("6", "Probe"), null);
  assert.equal(recall(kept, "other")("6", "Sampler"), null);
  assert.equal(recall(kept, undefined)("6", "Sampler"), null);
});

test("only the newest workflows are kept, and a full or spoilt store breaks nothing", () => {
  const kept = store();
  for (let i = 0; i < 20; i++) keep(kept, `w${i}`, "6", "S", { probe: [i] }, i);
  assert.equal(recall(kept, "w0")("6", "S"), null);
  assert.deepEqual(recall(kept, "w19")("6", "S"), { probe: [19] });
  keep(store(10), "w", "6", "S", { probe: ["long enough to be refused"] }, 1);
  const spoilt = { ...store(), getItem: () => "{not json" };
  assert.equal(recall(spoilt, "w")("6", "S"), null);
  keep(spoilt, "w", "6", "S", { probe: [1] }, 1);
});

test("results stay small: the oldest go first, and one that is too long is not kept", () => {
  const kept = store();
  for (let i = 0; i < 9; i++) keep(kept, `w${i}`, "6", "S", { probe: ["x".repeat(90_000)] }, i);
  assert.equal(recall(kept, "w3")("6", "S"), null, "five of them are below half a million characters");
  assert.notEqual(recall(kept, "w4")("6", "S"), null);
  assert.notEqual(recall(kept, "w8")("6", "S"), null);
  keep(kept, "long", "6", "S", { probe: ["x".repeat(110_000)] }, 10);
  assert.equal(recall(kept, "long")("6", "S"), null);
  assert.notEqual(recall(kept, "w8")("6", "S"), null);
  const tight = store(1000); // a store that others have nearly filled
  for (let i = 0; i < 3; i++) keep(tight, `w${i}`, "6", "S", { probe: ["x".repeat(600)] }, i);
  assert.equal(recall(tight, "w1")("6", "S"), null);
  assert.notEqual(recall(tight, "w2")("6", "S"), null);
});

// ----------------------------------------------------------------------------------------------------- messages

test("a language replaces the words, what it lacks stays English, and names are filled in", () => {
  try {
    setMessages("de", { steps_other: "{n} Schritte", no_plan: "Kein Plan" }, wordsOf("en"));
    assert.deepEqual([t("no_plan"), t("unknown")], ["Kein Plan", "unknown"]);
    assert.equal(t("last_run", { steps: t("steps_other", { n: 3 }) }), "The last run took 3 Schritte");
    assert.equal(t("steps_other"), "{n} Schritte");
  } finally {
    speakEnglish();
  }
  assert.equal(t("no_plan"), "No plan");
});
