// node --test tests/web
import assert from "node:assert/strict";
import { test } from "node:test";

import { ADAPTIVE, carried, misfit, recipe, replacement, restored, splits } from "../../budgetfusion_nodes/web/swap.js";

const known = (type, values, linked = []) => ({ type, values, linked });
const advanced = (values, linked = []) =>
  known("KSamplerAdvanced", { steps: 20, cfg: 3.5, sampler_name: "euler", scheduler: "simple", start_at_step: 0, end_at_step: 10000, ...values }, linked);
const basic = known("BasicScheduler", { scheduler: "simple", steps: 25, denoise: 1 });
const select = known("KSamplerSelect", { sampler_name: "res_multistep" });

test("a KSampler's values move over, and back", () => {
  const there = replacement("KSampler");
  const values = { seed: 7, control_after_generate: "fixed", steps: 30, cfg: 4.5, sampler_name: "euler", scheduler: "simple", denoise: 0.6 };
  const ours = ["seed", "control_after_generate", "quality", "max_steps", "cfg", "sampler_name", "scheduler", "denoise", "min_steps"];
  const moved = carried(values, there, ours);
  assert.equal(there.type, ADAPTIVE);
  assert.deepEqual(moved, { ...values, steps: undefined, max_steps: 30 }.steps === undefined && Object.fromEntries(Object.entries({ ...values, max_steps: 30 }).filter(([k]) => k !== "steps")));
  const back = carried({ ...moved, quality: 0.9, min_steps: 2 }, replacement(ADAPTIVE), Object.keys(values));
  assert.deepEqual(back, values);
  assert.equal(replacement("LoraLoader"), null);
});

test("a start or end inside the schedule is a split; the ends of it are none", () => {
  assert.deepEqual(splits(advanced({})), []);
  assert.deepEqual(splits(advanced({ end_at_step: 20 })), []);
  assert.deepEqual(splits(advanced({ end_at_step: 10 })), [{ at: 10, inputs: ["end_at_step"] }]);
  assert.deepEqual(splits(advanced({ start_at_step: 10 })), [{ at: 10, inputs: ["start_at_step"] }]);
  assert.equal(splits(advanced({ start_at_step: 5, end_at_step: 10 })).length, 2);
  assert.deepEqual(splits(advanced({ end_at_step: 0 }, ["end_at_step"])), [{ at: 0, inputs: ["end_at_step"] }]);
});

test("KSamplerAdvanced keeps its place; the planner takes its count and gives steps and split", () => {
  const made = recipe({ sampler: advanced({ end_at_step: 10 }) });
  assert.deepEqual(made.values, { sampler_name: "euler", scheduler: "simple", cfg: 3.5, max_steps: 20 });
  assert.deepEqual(made.gives, [["steps", "sampler", "steps"]]);
  assert.deepEqual(made.splits, [{ at: 10, from: ["sampler", "end_at_step"], inputs: [["sampler", "end_at_step"]] }]);
  assert.ok(made.takes.some(([to, part, from]) => to === "max_steps" && part === "sampler" && from === "steps"));
  assert.deepEqual(recipe({ sampler: advanced({}) }).splits, []);
  assert.deepEqual(recipe({ sampler: advanced({ start_at_step: 5, end_at_step: 10 }) }).splits.map(({ at }) => at), [5, 10]);
});

test("SamplerCustom gets the planner's sigmas, also behind SplitSigmas", () => {
  const sampler = known("SamplerCustom", { cfg: 6, noise_seed: 1, add_noise: true });
  const made = recipe({ sampler, scheduler: basic, select });
  assert.deepEqual(made.values, { sampler_name: "res_multistep", scheduler: "simple", cfg: 6, max_steps: 25 });
  assert.deepEqual(made.gives, [["sigmas", "sampler", "sigmas"]]);
  const split = recipe({ sampler, scheduler: basic, select, split: known("SplitSigmas", { step: 8 }) });
  assert.deepEqual(split.gives, [["sigmas", "split", "sigmas"]]);
  assert.deepEqual(split.splits, [{ at: 8, from: ["split", "step"], inputs: [["split", "step"]] }]);
});

test("a part of a schedule, and samplers that KSampler spaces otherwise, get the count through their scheduler", () => {
  const sampler = known("SamplerCustom", { cfg: 6 });
  const count = [["steps", "scheduler", "steps"]];
  const part = known("BasicScheduler", { ...basic.values, denoise: 0.6 });
  assert.deepEqual(recipe({ sampler, scheduler: part, select }).gives, count);
  const linked = { ...basic, linked: ["denoise"] };
  assert.deepEqual(recipe({ sampler, scheduler: linked, select }).gives, count);
  const pc = known("KSamplerSelect", { sampler_name: "uni_pc" });
  assert.deepEqual(recipe({ sampler, scheduler: basic, select: pc }).gives, count);
});

test("SamplerCustomAdvanced takes prompt and cfg from its guider", () => {
  const sampler = known("SamplerCustomAdvanced", {});
  const plain = recipe({ sampler, scheduler: basic, select, guider: known("BasicGuider", {}) });
  assert.equal(plain.values.cfg, 1);
  assert.deepEqual(plain.takes.find(([to]) => to === "positive"), ["positive", "guider", "conditioning"]);
  const guided = recipe({ sampler, scheduler: basic, select, guider: known("CFGGuider", { cfg: 3 }) });
  assert.equal(guided.values.cfg, 3);
});

test("what cannot be planned says which part is the reason", () => {
  const sampler = known("SamplerCustom", { cfg: 6 });
  for (const type of ["LTXVScheduler", "Flux2Scheduler", "ManualSigmas", "SplitSigmas"]) {
    assert.deepEqual(recipe({ sampler, scheduler: known(type, { steps: 20 }), select }), { why: "why_schedule", part: "scheduler" });
  }
  assert.deepEqual(recipe({ sampler, scheduler: basic, select: known("SamplerLCMUpscale", {}) }), { why: "why_method", part: "select" });
  const advancedSampler = known("SamplerCustomAdvanced", {});
  const guider = known("DualCFGGuider", {});
  assert.deepEqual(recipe({ sampler: advancedSampler, scheduler: basic, select, guider }), { why: "why_guider", part: "guider" });
});

test("where a part is not connected, or the node is no sampler, there is nothing to say", () => {
  assert.equal(recipe({ sampler: known("SamplerCustom", { cfg: 6 }), select }), null);
  assert.equal(recipe({ sampler: known("SamplerCustomAdvanced", {}), scheduler: basic, select }), null);
  assert.equal(recipe({ sampler: known("LoraLoader", {}) }), null);
});

test("a beta scheduler node of the usual shape is the scheduler beta, another shape is its own", () => {
  const sampler = known("SamplerCustom", { cfg: 6 });
  const beta = (values, linked) => recipe({ sampler, scheduler: known("BetaSamplingScheduler", { steps: 26, alpha: 0.6, beta: 0.6, ...values }, linked), select });
  assert.equal(beta({}).values.scheduler, "beta");
  assert.equal(beta({ alpha: 0.4, beta: 0.4 }).why, "why_schedule");
  assert.equal(beta({}, ["alpha"]).why, "why_schedule");
});

test("a planner's consumers get back what it was made from", () => {
  const values = { max_steps: 20, split_at: 10, scheduler: "simple" };
  assert.deepEqual(restored("steps", values), { value: 20, from: "max_steps" });
  assert.deepEqual(restored("split_step", values), { value: 10, from: "split_at" });
  assert.equal(restored("plan", values), null);
});

test("steps or sigmas that go to a node which is set otherwise are told", () => {
  const planned = { sampler_name: "euler", scheduler: "simple", cfg: 1 };
  assert.equal(misfit(planned, basic, true), null);
  assert.equal(misfit(planned, known("Flux2Scheduler", { steps: 20 }), true).why, "steps_own_sigmas");
  assert.equal(misfit(planned, known("BetaSamplingScheduler", { alpha: 0.6, beta: 0.6 }), true).why, "steps_own_sigmas");
  assert.equal(misfit({ ...planned, scheduler: "beta" }, known("BetaSamplingScheduler", { alpha: 0.6, beta: 0.6 }), true, null), null);
  const other = misfit({ ...planned, scheduler: "karras" }, basic, true);
  assert.deepEqual(other, { why: "steps_set_otherwise", values: { what: "scheduler", now: "simple", was: "karras" } });
  assert.equal(misfit(planned, known("KSampler", { sampler_name: "heun", scheduler: "simple" }), false).values.now, "heun");
  assert.equal(misfit(planned, known("KSampler", { sampler_name: "heun", scheduler: "simple" }, ["sampler_name"]), false), null);
  assert.equal(misfit(planned, known("SamplerCustom", { cfg: 3 }), false, select).values.now, "res_multistep");
  assert.equal(misfit(planned, known("SamplerCustom", { cfg: 3 }), false, null), null);
});
