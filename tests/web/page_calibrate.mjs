/**
 * Calibrate in the genuine page of each pinned host: its progress is watched, it is cancelled, goes on and ends, and
 * Adaptive KSampler plans by it at the next queue. Part of page_shipped.mjs.
 *
 * Few prompts and few steps: what counts here is what an artist sees, not how good the planner is.
 */
import assert from "node:assert/strict";
import { existsSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";

import { skip, until } from "./harness.mjs";
import { base, page, session } from "./shipped_session.mjs";

const CALIBRATE = "BudgetFusion_Calibrate";
const SAMPLER = "BudgetFusion_AdaptiveKSampler";
const PANEL = '.bf-panel[data-kind="calibration"]';
const NAME = "page test";
const STEPS = 6;
const PROMPTS = ["red", "green", "blue", "white"].flatMap((color) =>
  ["circle", "square", "star"].map((shape) => `a ${color} ${shape} on a plain black background`),
);

const planner = () => join(base, "models/budgetfusion", `${NAME}.safetensors`);
const state = () => page.locator(PANEL).getAttribute("data-state");
const measured = async () => Number(await page.locator(PANEL).getAttribute("data-prompts"));
const told = () => page.locator(`${PANEL} .bf-told`).innerText();
const drawn = () => page.locator(`${PANEL} .bf-line`).count();

test("before the first run the node says what it will show", { skip }, async () => {
  await session.open("calibrate_your_model");
  const inputs = { prompts: "text, one a line", prompt_text: PROMPTS.join("\n"), max_steps: STEPS, name: NAME };
  for (const [name, value] of Object.entries(inputs)) await session.setWidget(CALIBRATE, name, value);
  await session.setWidget(SAMPLER, "max_steps", STEPS);
  await session.setWidget(SAMPLER, "schedule", "stock"); // quick calibrates that one, and a nested planner is shipped
  assert.equal(await state(), "empty");
  assert.match(await told(), /how far the calibration is/);
  assert.equal(await drawn(), 0);
});

test("while it runs the node says how far it is; cancel stops it and keeps what was measured", { skip }, async () => {
  await session.queue();
  await until(async () => (await measured()) >= 2);
  assert.equal(await state(), "running");
  assert.match(await told(), new RegExp(`of ${PROMPTS.length} prompts are measured`));
  await page.evaluate(() => window.app.api.interrupt());
  await until(async () => (await state()) === "stopped");
  assert.match(await told(), /What was measured is kept/);
  assert.ok((await measured()) < PROMPTS.length);
  await until(async () => (await session.waiting()) === 0);
});

test("the next queue goes on, draws the curve before the end, and finishes", { skip }, async () => {
  const before = await measured();
  await page.evaluate((panel) => {
    window.bf = { told: [], drawn: [] };
    // what the host says, one by one: a busy page draws several words of it in one frame
    window.app.api.addEventListener("budgetfusion.calibration", ({ detail: { prompts, curve } }) => {
      window.bf.told.push({ prompts, curve: Boolean(curve) });
      const look = () => window.bf.drawn.push(document.querySelectorAll(`${panel} .bf-line`).length);
      if (curve) requestAnimationFrame(() => requestAnimationFrame(look));
    });
  }, PANEL);
  await session.queue();
  await until(async () => (await state()) === "done");
  const { told: words, drawn: lines } = await page.evaluate(() => window.bf);
  assert.ok(words[0].prompts >= before, `it goes on from ${before}, not from ${words[0].prompts}`);
  assert.ok(words.some(({ prompts, curve }) => curve && prompts < PROMPTS.length), JSON.stringify(words));
  assert.equal(lines[0], 1, "the curve so far");
  assert.equal(await measured(), PROMPTS.length);
  assert.match(await told(), /Planner page test\.safetensors is ready/);
  assert.equal(await drawn(), 1);
  assert.ok(existsSync(planner()));
  assert.deepEqual(await session.overflow(), []);
  await until(async () => (await session.waiting()) === 0);
});

test("Adaptive KSampler plans by it at the next queue, and no widget was touched", { skip }, async () => {
  await session.queue();
  await until(async () => (await session.history()) === 3 && (await session.waiting()) === 0);
  const plan = await session.executedPlan(SAMPLER);
  assert.equal(plan.fallback, null);
  assert.equal(plan.planner, NAME);
});

test("a loaded page shows the result again, and nothing went wrong on it", { skip }, async () => {
  const graph = await page.evaluate(() => window.app.graph.serialize());
  await page.reload();
  await session.ready();
  await page.evaluate((data) => window.app.loadGraphData(data), graph);
  await until(async () => (await page.locator(PANEL).count()) === 1 && (await state()) === "done");
  assert.match(await told(), /is ready/);
  assert.equal(await drawn(), 1);
  const ours = session.complaints.filter((text) => /budgetfusion|uncaught/i.test(text));
  assert.deepEqual(ours, []);
  assert.deepEqual(session.outside, []);
});
