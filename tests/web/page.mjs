/**
 * The nodes in the genuine page, for each pinned host: python3 run.py test --only page
 *
 * That command fetches what is needed and names it in BUDGETFUSION_*; by itself (node --test tests/web/page.mjs) this
 * takes what an earlier run of it left. Where something is missing the tests are skipped and say what.
 * BUDGETFUSION_SHOTS=<folder> keeps screenshots.
 */
import assert from "node:assert/strict";
import { readFileSync, readdirSync, renameSync } from "node:fs";
import { join } from "node:path";
import { after, before, test } from "node:test";

import { decideSteps } from "../../budgetfusion_nodes/web/plan_decision.js";
import { testBlind } from "./page_blind.mjs";
import { testMarkup, tookEffect } from "./page_markup.mjs";
import { testNested } from "./page_nested.mjs";
import { ROOT, SLOW, Session, makeTestBase, remove, scratchFolder, skip, startBrowser, startHost, until } from "./harness.mjs";

const SHOTS = process.env.BUDGETFUSION_SHOTS;
const PANEL = '.bf-panel[data-kind="sampler"]';

let scratch, host, browser, session, page;

before(async () => {
  if (skip) return;
  scratch = scratchFolder();
  host = await startHost(makeTestBase(scratch));
  browser = await startBrowser();
  session = await Session.open(host, browser);
  page = session.page;
});

after(async () => {
  await browser?.close();
  await host?.stop();
  remove(scratch);
});

const TEMPLATES = readdirSync(join(ROOT, "workflows"))
  .filter((file) => file.endsWith(".json"))
  .map((file) => file.slice(0, -".json".length));
const read = (...path) => JSON.parse(readFileSync(join(ROOT, ...path), "utf8"));

test("the page lists every template with a picture, the blueprint and the translations", { skip }, async () => {
  const [listed, blueprints, words] = await page.evaluate(() =>
    Promise.all(["workflow_templates", "global_subgraphs", "i18n"].map(async (path) => (await fetch(`/api/${path}`)).json())),
  );
  assert.deepEqual(listed.budgetfusion.toSorted(), TEMPLATES.toSorted());
  for (const name of TEMPLATES) {
    const picture = await page.request.get(`${host.address}/api/workflow_templates/budgetfusion/${name}.jpg`);
    assert.equal(picture.headers()["content-type"], "image/jpeg", name);
  }
  assert.ok(Object.values(blueprints).some((entry) => entry.name === "BudgetFusion Planned Render"));
  for (const language of ["en", "zh", "ja", "ko", "fr", "de", "es"]) assert.ok(words[language].budgetfusion.no_plan, language);
});

test("every help page and its pictures are served", { skip }, async () => {
  const pages = readdirSync(join(ROOT, "budgetfusion_nodes/web/docs")).filter((file) => file.endsWith(".md"));
  assert.equal(pages.length, 7);
  for (const file of pages) {
    const base = `${host.address}/extensions/budgetfusion/docs/`;
    const text = await (await page.request.get(`${base}${file}`)).text();
    const pictures = [...text.matchAll(/!\[[^\]]+\]\(([^)]+)\)/g)].map(([, path]) => path);
    assert.ok(pictures.length || file.includes("Learn"), `${file} has a picture`); // Learn runs unseen
    for (const path of pictures) assert.equal((await page.request.get(base + path)).status(), 200, path);
  }
});

for (const name of TEMPLATES) {
  test(`template ${name}: the page makes its twin of it, and no node covers another`, { skip }, async () => {
    await session.open(name);
    const made = await page.evaluate(async () => (await window.app.graphToPrompt()).output);
    assert.deepEqual(untitled(made), untitled(read("workflows", "api", `${name}.json`)));
    assert.deepEqual(await session.overlaps(), []);
  });
}

/** What is executed: titles differ between versions of the host. */
function untitled(prompt) {
  const nodes = Object.entries(prompt).map(([id, { class_type, inputs }]) => [id, { class_type, inputs }]);
  return Object.fromEntries(nodes);
}

test("the blueprint opens as one node with the widgets that an artist turns", { skip }, async () => {
  const blueprint = read("subgraphs", "BudgetFusion Planned Render.json");
  const shown = await page.evaluate(async (data) => {
    await window.app.loadGraphData(data);
    const [node] = window.app.graph.nodes;
    const outputs = node.outputs.map((slot) => slot.name);
    return { title: node.title, widgets: node.widgets.map((w) => w.name), outputs, inside: node.subgraph.nodes.length };
  }, blueprint);
  assert.equal(shown.title, "BudgetFusion Planned Render");
  assert.deepEqual(shown.widgets.slice(0, 3), ["quality", "max_steps", "seed"]);
  assert.deepEqual(shown.outputs, ["IMAGE", "steps", "receipt"]);
  assert.equal(shown.inside, 3);
});

test("inside a subgraph too, a node says that its result came from the cache", { skip }, async () => {
  const said = await page.evaluate(async () => {
    const [outer] = window.app.graph.nodes;
    const inner = outer.subgraph.nodes.find((n) => n.comfyClass === "BudgetFusion_AdaptiveKSampler");
    const panel = inner.widgets.find((w) => w.name === "budgetfusion").element;
    const announce = async (id) => {
      window.app.api.dispatchCustomEvent("execution_cached", { prompt_id: "p", timestamp: 0, nodes: [id] });
      await new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done)));
      return panel.textContent;
    };
    return { other: await announce(String(inner.id)), own: await announce(`${outer.id}:${inner.id}`) };
  });
  assert.doesNotMatch(said.other, /cache/);
  assert.match(said.own, /ComfyUI took this from its cache/);
});

test("before the first run a node says what it will show", { skip }, async () => {
  await session.show("adaptive_ksampler");
  const panel = page.locator(PANEL);
  await panel.waitFor();
  assert.equal(await panel.getAttribute("data-state"), "empty");
  assert.match(await panel.innerText(), /Queue once: this shows the predicted quality/);
  await session.shot(SHOTS, "1_before");
});

test("without a planner a badge, a sentence and a toast say so", { skip }, async () => {
  await session.queue();
  const panel = page.locator(`${PANEL}[data-state="fallback"]`);
  await panel.waitFor({ timeout: SLOW });
  assert.match(await panel.locator(".bf-badge").innerText(), /No plan/);
  assert.match(await panel.locator(".bf-reason").innerText(), /^No planner was calibrated for /);
  assert.equal(await panel.getAttribute("data-steps"), "50");
  assert.match(await panel.locator(".bf-receipt").innerText(), /50 of 50 \(none saved\)/);
  await session.toast("no plan, all 50 steps").waitFor({ timeout: 5000 });
  await session.shot(SHOTS, "2_fallback");
});

test("with a planner: curve, count and receipt of the executed run", { skip }, async () => {
  renameSync(join(host.base, "held/page_test.safetensors"), join(host.base, "models/budgetfusion/page_test.safetensors"));
  await session.setWidget("BudgetFusion_AdaptiveKSampler", "seed", 11); // else the host keeps the cached fallback
  await session.queue();
  const panel = page.locator(`${PANEL}[data-state="result"]`);
  await panel.waitFor({ timeout: SLOW });
  const plan = await session.executedPlan("BudgetFusion_AdaptiveKSampler");
  assert.equal(plan.fallback, null);
  assert.equal(Number(await panel.getAttribute("data-steps")), plan.steps);
  assert.match(await panel.locator(".bf-headline").innerText(), new RegExp(`^${plan.steps} of 50 steps`));
  assert.match(await panel.locator(".bf-receipt").innerText(), new RegExp(`${plan.steps} of 50[^]*page test planner`));
  for (const mark of ["bf-line", "bf-band", "bf-floor", "bf-chosen"]) assert.equal(await panel.locator(`svg .${mark}`).count(), 1);
  assert.deepEqual(await session.overflow(), [], "text is cut off");
  await session.shot(SHOTS, "3_result");
});

testNested(() => session);

test("dragging the slider moves line and count at once, without queueing", { skip }, async () => {
  const panel = page.locator(PANEL);
  const plan = await session.executedPlan("BudgetFusion_AdaptiveKSampler");
  const floor = () => panel.locator(".bf-floor").getAttribute("y1").then(Number);
  const [asked, line] = [session.prompts.length, await floor()];
  const seen = new Set();
  await session.dragSlider("BudgetFusion_AdaptiveKSampler", "quality", [0.7, 0.4, 0.1], async (quality) => {
    const steps = Number(await panel.getAttribute("data-steps"));
    assert.equal(steps, decideSteps(plan.decision, quality, plan.min_steps, plan.max_steps), `quality ${quality}`);
    seen.add(steps);
  });
  assert.ok(seen.size >= 2, `the count moved: ${[...seen]}`);
  assert.ok((await floor()) > line, "the threshold line moved down");
  assert.match(await panel.innerText(), new RegExp(`The last run took ${plan.steps} steps`));
  await session.setWidget("BudgetFusion_AdaptiveKSampler", "max_steps", 4);
  await session.frames();
  assert.ok(Number(await panel.getAttribute("data-steps")) <= 4);
  assert.equal(session.prompts.length, asked);
  await session.shot(SHOTS, "4_dragged");
});

test("the chart is read by pointer and by keyboard, and shows single metrics", { skip }, async () => {
  const panel = page.locator(PANEL);
  const svg = panel.locator("svg");
  await svg.focus();
  await page.keyboard.press("Home");
  await session.frames();
  assert.match(await panel.locator(".bf-readout").innerText(), /^2 steps: quality \d\.\d\d predicted \(/);
  await page.keyboard.press("ArrowRight");
  await session.frames();
  assert.match(await svg.getAttribute("aria-valuetext"), /^3 steps/);
  const box = await svg.boundingBox();
  await page.mouse.move(box.x + box.width - 4, box.y + box.height / 2);
  await session.frames();
  assert.match(await panel.locator(".bf-readout").innerText(), /^50 steps: quality 1\.00 predicted/);
  await panel.getByRole("button", { name: "Layout" }).click();
  await session.frames();
  assert.equal(await panel.getByRole("button", { name: "Layout" }).getAttribute("aria-pressed"), "true");
  assert.equal(await panel.locator(".bf-floor").count(), 0);
  await session.shot(SHOTS, "5_layout");
  await panel.getByRole("button", { name: "Quality" }).click();
});

test("the panel is not saved with the workflow", { skip }, async () => {
  const saved = await page.evaluate(() => {
    const node = window.app.graph.nodes.find((n) => n.comfyClass === "BudgetFusion_AdaptiveKSampler");
    return { values: node.serialize().widgets_values, names: node.widgets.map((w) => w.name) };
  });
  assert.equal(saved.values.length, saved.names.indexOf("budgetfusion"));
});

test("a workflow tab that is opened again shows its last result", { skip }, async () => {
  const panel = page.locator(PANEL);
  const tabs = page.locator(".workflow-tab");
  const headline = await panel.locator(".bf-headline").innerText();
  await tabs.first().click();
  await panel.waitFor({ state: "detached" });
  await tabs.last().click();
  await panel.locator(".bf-headline").waitFor();
  assert.equal(await panel.getAttribute("data-state"), "result");
  assert.equal(await panel.locator(".bf-headline").innerText(), headline);
});

test("undo takes the slider back and keeps the result on show", { skip }, async () => {
  const sampler = "BudgetFusion_AdaptiveKSampler";
  const before = await session.widget(sampler, "quality");
  await session.dragSlider(sampler, "quality", [0.2], (value) => assert.notEqual(value, before));
  await page.waitForTimeout(500); // the page notes a change a moment after the mouse is up
  assert.notEqual(await session.widget(sampler, "quality"), before);
  await page.evaluate(() => window.app.extensionManager.command.execute("Comfy.Undo"));
  await until(async () => (await session.widget(sampler, "quality")) === before);
  await page.locator(`${PANEL}[data-state="result"]`).waitFor();
});

test("a reloaded page shows the last result, and the workflow file knows nothing of it", { skip }, async () => {
  const panel = page.locator(PANEL);
  const headline = await panel.locator(".bf-headline").innerText();
  await page.waitForTimeout(1500); // the page keeps its draft a moment after the last change
  await page.reload();
  await session.ready();
  await panel.locator(".bf-headline").waitFor();
  assert.equal(await panel.locator(".bf-headline").innerText(), headline);
  assert.equal(await page.evaluate(() => JSON.stringify(window.app.graph.serialize()).includes("budget_plan")), false);
});

test("a removed node leaves nothing behind", { skip }, async () => {
  const left = await page.evaluate(async () => {
    const node = window.app.graph.nodes.find((n) => n.comfyClass === "BudgetFusion_AdaptiveKSampler");
    const element = node.widgets.find((w) => w.name === "budgetfusion").element;
    const slider = node.widgets.find((w) => w.name === "quality");
    window.app.graph.remove(node);
    await new Promise((done) => setTimeout(done, 100));
    slider.callback?.(0.6);
    return { connected: element.isConnected, executed: Object.hasOwn(node, "onExecuted") };
  });
  assert.deepEqual(left, { connected: false, executed: false });
});

test("what the host takes from its cache is said where a chart would be", { skip }, async () => {
  await session.show("adaptive_ksampler");
  await session.setWidget("BudgetFusion_AdaptiveKSampler", "seed", 11); // as it was rendered above
  await session.queue();
  await page.locator(PANEL, { hasText: "ComfyUI took this from its cache" }).waitFor({ timeout: SLOW });
});

test("Planner and Probe: measured points over the predicted curve, and the numbers", { skip }, async () => {
  await session.show("step_sweep_and_probe");
  await session.setWidget("BudgetFusion_StepSweep", "step_counts", "2 4 8 16");
  await session.queue();
  const probe = page.locator('.bf-panel[data-kind="probe"][data-state="result"]');
  await probe.waitFor({ timeout: SLOW });
  assert.equal(await page.locator('.bf-panel[data-kind="planner"][data-state="result"]').count(), 1);
  assert.equal(await probe.locator(".bf-point").count(), 4);
  assert.equal(await probe.locator("svg .bf-line").count(), 1);
  assert.equal(await probe.locator("td").count(), 4 * 5);
  assert.match(await probe.innerText(), /off by 0\.\d+ on average/);
  assert.deepEqual(await session.overflow(), [], "text is cut off");
  await session.shot(SHOTS, "6_probe");
});

test("the Probe draws the plan it was given, whatever lies between", { skip }, async () => {
  const sent = await page.evaluate(() => {
    const probe = window.app.graph.nodes.find((n) => n.comfyClass === "BudgetFusion_PerceptualMetricProbe");
    return window.app.nodeOutputs[probe.id].budget_plan[0].steps;
  });
  assert.equal(sent, (await session.executedPlan("BudgetFusion_BudgetPlanner")).steps);
});

testBlind(() => session);

test("a list of prompts: a chart for each, the forecast for all, and the running total", { skip }, async () => {
  await session.show("prompt_list");
  await session.queue();
  await page.locator(`${PANEL}[data-state="result"]`).waitFor({ timeout: SLOW });
  const panel = page.locator('.bf-panel[data-kind="planner"]');
  const plans = await page.evaluate(() => {
    const node = window.app.graph.nodes.find((n) => n.comfyClass === "BudgetFusion_BudgetPlanner");
    return window.app.nodeOutputs[node.id].budget_plan.map((plan) => plan.steps);
  });
  assert.equal(plans.length, 3);
  const sum = plans.reduce((a, b) => a + b);
  assert.match(await panel.innerText(), /Prompt 1 of 3/);
  assert.match(await panel.locator(".bf-forecast").first().innerText(), new RegExp(`^3 prompts: ${sum} steps in all; max_steps would take 150`));
  assert.match(await panel.locator(".bf-forecast").last().innerText(), /^About [\d.]+ (ms|s|min)/);
  for (const [i, steps] of plans.entries()) {
    assert.equal(Number(await panel.getAttribute("data-steps")), steps, `prompt ${i + 1}`);
    await panel.getByRole("button", { name: "Next prompt" }).click();
    await session.frames();
  }
  assert.deepEqual(await session.overflow(), [], "text is cut off");
  await session.toggleTotals();
  const totals = page.locator(".bf-totals");
  await totals.waitFor();
  assert.match(await totals.innerText(), new RegExp(`Images\\s+3\\s+\\d+[^]*${sum} of 150`));
  await session.shot(SHOTS, "7_list");
  await session.toggleTotals();
  await totals.waitFor({ state: "detached" });
});

test("settings: quality of new nodes, the band, and a queue that stops at a fallback", { skip }, async () => {
  await session.setting("BudgetFusion.DefaultQuality", 0.75);
  const quality = await page.evaluate(() => {
    const node = window.LiteGraph.createNode("BudgetFusion_AdaptiveKSampler");
    return node.widgets.find((w) => w.name === "quality").value;
  });
  assert.equal(quality, 0.75);
  await session.setting("BudgetFusion.ShowBand", false);
  await session.frames();
  assert.equal(await page.locator(".bf-panel svg .bf-band").count(), 0);
  await session.setting("BudgetFusion.ShowBand", true);
  await session.frames();
  assert.ok((await page.locator(".bf-panel svg .bf-band").count()) > 0);
  await session.show("adaptive_ksampler");
  assert.equal(await session.widget("BudgetFusion_AdaptiveKSampler", "quality"), 0.9, "a saved node keeps its own");
  await session.setting("BudgetFusion.OnFallback", "stop");
  await session.setWidget("BudgetFusion_AdaptiveKSampler", "sampler_name", "euler_ancestral");
  await session.setWidget("BudgetFusion_AdaptiveKSampler", "max_steps", 50);
  const before = await session.history();
  for (let seed = 1; seed <= 20; seed++) {
    await session.setWidget("BudgetFusion_AdaptiveKSampler", "seed", seed);
    await session.queue();
  }
  await session.toast("The queue was stopped").waitFor({ timeout: SLOW });
  await until(async () => (await session.waiting()) === 0);
  const rendered = (await session.history()) - before;
  assert.ok(rendered >= 1 && rendered < 20, `${rendered} of 20 were rendered`);
  assert.match(await page.locator(`${PANEL} .bf-reason`).innerText(), /euler_ancestral adds fresh noise/);
  await session.setting("BudgetFusion.OnFallback", "once");
});

test("the page speaks French where it is set to", { skip }, async () => {
  await session.setting("Comfy.Locale", "fr");
  await page.reload();
  await session.ready();
  await session.show("adaptive_ksampler");
  const words = read("locales", "fr", "main.json").budgetfusion;
  await page.locator(PANEL, { hasText: words.before_sampler }).waitFor();
  const names = await page.evaluate(() => {
    const node = window.app.graph.nodes.find((n) => n.comfyClass === "BudgetFusion_AdaptiveKSampler");
    return node.widgets.map((w) => w.label ?? w.name);
  });
  const inputs = read("locales", "fr", "nodeDefs.json").BudgetFusion_AdaptiveKSampler.inputs;
  assert.ok(names.includes(inputs.quality.name), `${names}`);
  await session.shot(SHOTS, "8_french");
  await session.setting("Comfy.Locale", "en");
  await page.reload();
  await session.ready();
});

test("a light theme and Nodes 2.0 show the same", { skip }, async () => {
  await session.show("step_sweep_and_probe");
  await session.setWidget("BudgetFusion_StepSweep", "step_counts", "2 4");
  await session.queue();
  await page.locator('.bf-panel[data-kind="probe"][data-state="result"]').waitFor({ timeout: SLOW });
  await session.setting("Comfy.ColorPalette", "light");
  await page.waitForTimeout(1500);
  await session.shot(SHOTS, "9_light");
  await session.setting("Comfy.VueNodes.Enabled", true);
  await page.waitForTimeout(2500);
  const panel = page.locator('.bf-panel[data-kind="planner"]');
  await panel.waitFor();
  assert.equal(await panel.getAttribute("data-state"), "result");
  const size = await panel.locator("svg").boundingBox();
  assert.ok(size.width > 100 && size.height > 60, JSON.stringify(size));
  assert.deepEqual(await session.overflow(), [], "text is cut off");
  await session.shot(SHOTS, "10_vue_light");
});

testMarkup(() => session);

test("no console error of this pack and no request to any other host", { skip }, async (t) => {
  assert.deepEqual(session.outside, []);
  // The page has complaints of its own (optional files that are absent); they are only told.
  const ours = session.complaints.filter((text) => /budgetfusion|uncaught/i.test(text));
  for (const text of session.complaints) if (!ours.includes(text)) t.diagnostic(text);
  assert.deepEqual(ours, []);
  assert.deepEqual(await tookEffect(session), [], "of markup in a text");
});
