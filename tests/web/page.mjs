/**
 * The nodes in the genuine page: node --test tests/web/page.mjs
 *
 * Needs Chromium, playwright-core (found in .run/npm or node_modules: npm install playwright-core), a ComfyUI
 * (COMFYUI_PATH, else .run/host/0.30.0) and a Python that runs it with its page packages (BUDGETFUSION_PYTHON, else
 * .run/venv). Where one is missing the test is skipped and says which. BUDGETFUSION_SHOTS=<folder> keeps screenshots.
 */
import assert from "node:assert/strict";
import { spawn, spawnSync } from "node:child_process";
import { existsSync, mkdirSync, mkdtempSync, readFileSync, renameSync, rmSync } from "node:fs";
import { createRequire } from "node:module";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { after, before, test } from "node:test";
import { fileURLToPath } from "node:url";

import { decideSteps } from "../../budgetfusion_nodes/web/plan_view.js";

const ROOT = fileURLToPath(new URL("../..", import.meta.url));
const HOST = process.env.COMFYUI_PATH ?? join(ROOT, ".run/host/0.30.0");
const PYTHON = process.env.BUDGETFUSION_PYTHON ?? join(ROOT, ".run/venv/bin/python");
const SHOTS = process.env.BUDGETFUSION_SHOTS;
const SLOW = 240_000; // a render on a busy two-core machine
const PANEL = '.bf-panel[data-kind="sampler"]';

const browserPath = ["/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"].find(existsSync);
const playwright = findPlaywright();
const missing = [
  !browserPath && "Chromium (apt-get install chromium)",
  !playwright && "playwright-core (npm install --prefix .run/npm playwright-core)",
  !existsSync(join(HOST, "main.py")) && `a ComfyUI at ${HOST}`,
  !existsSync(PYTHON) && `a Python at ${PYTHON}`,
].filter(Boolean);
const skip = missing.length ? `not found: ${missing.join(", ")}` : false;

/** Everything that `after` has to end. */
const open = { scratch: "", server: null, browser: null };
let page, base, address;
const complaints = [];
const outside = [];
const prompts = [];

before(async () => {
  if (skip) return;
  open.scratch = mkdtempSync(join(tmpdir(), "bf-page-"));
  base = join(open.scratch, "base");
  const made = spawnSync(PYTHON, [join(ROOT, "tests/web/make_base.py"), HOST, base], { encoding: "utf8" });
  assert.equal(made.status, 0, made.stderr);
  const port = await freePort();
  address = `http://127.0.0.1:${port}`;
  open.server = spawn(
    PYTHON,
    ["main.py", "--cpu", "--port", String(port), "--disable-api-nodes", "--disable-auto-launch",
      "--base-directory", base, "--database-url", "sqlite:///:memory:"],
    { cwd: HOST, stdio: ["ignore", "ignore", "pipe"] },
  );
  let log = "";
  open.server.stderr.on("data", (text) => (log = (log + text).slice(-6000)));
  await until(async () => {
    assert.equal(open.server.exitCode, null, `the server ended:\n${log}`);
    return fetch(`${address}/system_stats`).then((answer) => answer.ok, () => false);
  });
  open.browser = await playwright.chromium.launch({ executablePath: browserPath, args: ["--no-sandbox"] });
  page = await open.browser.newPage({ viewport: { width: 1366, height: 900 } });
  page.on("console", (message) => {
    if (message.type() === "error") complaints.push(`${message.text()} [${message.location().url}]`);
  });
  page.on("pageerror", (error) => complaints.push(`uncaught: ${error.stack}`));
  page.on("request", (request) => {
    const url = request.url();
    if (/^(https?|wss?):/.test(url) && new URL(url).host !== new URL(address).host) outside.push(url);
    if (request.method() === "POST" && url.endsWith("/prompt")) prompts.push(url);
  });
  await load();
});

after(async () => {
  await open.browser?.close();
  open.server?.kill();
  if (open.scratch) rmSync(open.scratch, { recursive: true, force: true });
});

test("before the first run a node says what it will show", { skip }, async () => {
  await show("adaptive_ksampler");
  const panel = page.locator(PANEL);
  await panel.waitFor();
  assert.equal(await panel.getAttribute("data-state"), "empty");
  assert.match(await panel.innerText(), /Queue once: this shows the predicted quality/);
  await shot("1_before");
});

test("without a planner a badge, a sentence and a toast say so", { skip }, async () => {
  await queue();
  const panel = page.locator(`${PANEL}[data-state="fallback"]`);
  await panel.waitFor({ timeout: SLOW });
  assert.match(await panel.locator(".bf-badge").innerText(), /No plan/);
  assert.match(await panel.locator(".bf-reason").innerText(), /^No planner was calibrated for /);
  assert.equal(await panel.getAttribute("data-steps"), "50");
  assert.match(await panel.locator(".bf-receipt").innerText(), /50 of 50 \(none saved\)/);
  const toast = page.locator(".p-toast-message", { hasText: "no plan, all 50 steps" });
  await toast.waitFor({ timeout: 5000 });
  await shot("2_fallback");
});

test("with a planner: curve, count and receipt of the executed run", { skip }, async () => {
  renameSync(join(base, "held/page_test.safetensors"), join(base, "models/budgetfusion/page_test.safetensors"));
  await setWidget("BudgetFusion_AdaptiveKSampler", "seed", 11); // else the host keeps the cached fallback
  await queue();
  const panel = page.locator(`${PANEL}[data-state="result"]`);
  await panel.waitFor({ timeout: SLOW });
  const plan = await executedPlan("BudgetFusion_AdaptiveKSampler");
  assert.equal(plan.fallback, null);
  assert.equal(Number(await panel.getAttribute("data-steps")), plan.steps);
  assert.match(await panel.locator(".bf-headline").innerText(), new RegExp(`^${plan.steps} of 50 steps`));
  assert.match(await panel.locator(".bf-receipt").innerText(), new RegExp(`${plan.steps} of 50[^]*page test planner`));
  for (const mark of ["bf-line", "bf-band", "bf-floor", "bf-chosen"]) assert.equal(await panel.locator(`svg .${mark}`).count(), 1);
  assert.deepEqual(await overflow(), [], "text is cut off");
  await shot("3_result");
});

test("dragging the slider moves line and count at once, without queueing", { skip }, async () => {
  const panel = page.locator(PANEL);
  const plan = await executedPlan("BudgetFusion_AdaptiveKSampler");
  const floor = () => panel.locator(".bf-floor").getAttribute("y1").then(Number);
  const [asked, line] = [prompts.length, await floor()];
  const seen = new Set();
  await dragSlider("BudgetFusion_AdaptiveKSampler", "quality", [0.7, 0.4, 0.1], async (quality) => {
    const steps = Number(await panel.getAttribute("data-steps"));
    assert.equal(steps, decideSteps(plan.decision, quality, plan.min_steps, plan.max_steps), `quality ${quality}`);
    seen.add(steps);
  });
  assert.ok(seen.size >= 2, `the count moved: ${[...seen]}`);
  assert.ok((await floor()) > line, "the threshold line moved down");
  assert.match(await panel.innerText(), new RegExp(`The last run took ${plan.steps} steps`));
  await setWidget("BudgetFusion_AdaptiveKSampler", "max_steps", 4);
  await frames();
  assert.ok(Number(await panel.getAttribute("data-steps")) <= 4);
  assert.equal(prompts.length, asked);
  await shot("4_dragged");
});

test("the chart is read by pointer and by keyboard, and shows single metrics", { skip }, async () => {
  const panel = page.locator(PANEL);
  const svg = panel.locator("svg");
  await svg.focus();
  await page.keyboard.press("Home");
  await frames();
  assert.match(await panel.locator(".bf-readout").innerText(), /^2 steps: quality \d\.\d\d predicted \(/);
  await page.keyboard.press("ArrowRight");
  await frames();
  assert.match(await svg.getAttribute("aria-valuetext"), /^3 steps/);
  const box = await svg.boundingBox();
  await page.mouse.move(box.x + box.width - 4, box.y + box.height / 2);
  await frames();
  assert.match(await panel.locator(".bf-readout").innerText(), /^50 steps: quality 1\.00 predicted/);
  await panel.getByRole("button", { name: "Layout" }).click();
  await frames();
  assert.equal(await panel.getByRole("button", { name: "Layout" }).getAttribute("aria-pressed"), "true");
  assert.equal(await panel.locator(".bf-floor").count(), 0);
  await shot("5_layout");
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

test("undo takes the slider back and keeps the result on show", { skip }, async (t) => {
  const panel = page.locator(PANEL);
  await page.evaluate(() => window.app.extensionManager.command.execute("Comfy.Undo"));
  await page.waitForTimeout(800);
  t.diagnostic(await panel.innerText());
  assert.equal(await panel.getAttribute("data-state"), "result");
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

test("Planner and Probe: measured points over the predicted curve, and the numbers", { skip }, async () => {
  await show("step_sweep_and_probe");
  await setWidget("BudgetFusion_StepSweep", "step_counts", "2 4 8 16");
  await queue();
  const probe = page.locator('.bf-panel[data-kind="probe"][data-state="result"]');
  await probe.waitFor({ timeout: SLOW });
  assert.equal(await page.locator('.bf-panel[data-kind="planner"][data-state="result"]').count(), 1);
  assert.equal(await probe.locator(".bf-point").count(), 4);
  assert.equal(await probe.locator("svg .bf-line").count(), 1);
  assert.equal(await probe.locator("td").count(), 4 * 5);
  assert.match(await probe.innerText(), /off by 0\.\d+ on average/);
  assert.deepEqual(await overflow(), [], "text is cut off");
  await shot("6_probe");
});

test("a light theme and Nodes 2.0 show the same", { skip }, async () => {
  await setting("Comfy.ColorPalette", "light");
  await page.waitForTimeout(1500);
  await shot("7_light");
  await setting("Comfy.VueNodes.Enabled", true);
  await page.waitForTimeout(2500);
  const panel = page.locator('.bf-panel[data-kind="planner"]');
  await panel.waitFor();
  assert.equal(await panel.getAttribute("data-state"), "result");
  const size = await panel.locator("svg").boundingBox();
  assert.ok(size.width > 100 && size.height > 60, JSON.stringify(size));
  assert.deepEqual(await overflow(), [], "text is cut off");
  await shot("8_vue_light");
});

test("no console error of this pack and no request to any other host", { skip }, (t) => {
  assert.deepEqual(outside, []);
  // The page has complaints of its own (optional files that are absent); they are only told.
  const ours = complaints.filter((text) => /budgetfusion|uncaught/i.test(text));
  for (const text of complaints) if (!ours.includes(text)) t.diagnostic(text);
  assert.deepEqual(ours, []);
});

// ---------------------------------------------------------------------------------------------------- helpers

function findPlaywright() {
  for (const folder of [join(ROOT, ".run/npm"), ROOT]) {
    try {
      return createRequire(join(folder, "package.json"))("playwright-core");
    } catch {
      // looked for in the next place
    }
  }
  return null;
}

async function load() {
  await page.goto(address);
  await page.waitForFunction(() => window.app?.extensionManager && window.app.graph, null, { timeout: SLOW });
  await page.waitForTimeout(1000);
}

async function show(name) {
  const graph = JSON.parse(readFileSync(join(ROOT, "workflows", `${name}.json`), "utf8"));
  await page.evaluate(async (data) => {
    await window.app.loadGraphData(data);
    const nodes = window.app.graph.nodes.filter((node) => node.comfyClass?.startsWith("BudgetFusion_"));
    for (const [i, node] of nodes.entries()) node.pos = [i * 420, 0]; // side by side, in view
    const others = window.app.graph.nodes.filter((node) => !node.comfyClass?.startsWith("BudgetFusion_"));
    for (const [i, node] of others.entries()) node.pos = [i * 420, 1400];
    window.app.canvas.ds.scale = 0.9;
    window.app.canvas.ds.offset = [90, 80];
    window.app.canvas.setDirty(true, true);
  }, graph);
  await page.waitForTimeout(600);
}

async function queue() {
  await page.evaluate(() => window.app.queuePrompt(0, 1));
}

async function setWidget(type, name, value) {
  await page.evaluate(([type, name, value]) => {
    const node = window.app.graph.nodes.find((n) => n.comfyClass === type);
    const widget = node.widgets.find((w) => w.name === name);
    widget.value = value;
    widget.callback?.(value, window.app.canvas, node);
  }, [type, name, value]);
}

async function setting(name, value) {
  await page.evaluate(([name, value]) => window.app.extensionManager.setting.set(name, value), [name, value]);
}

async function executedPlan(type) {
  return page.evaluate((type) => {
    const node = window.app.graph.nodes.find((n) => n.comfyClass === type);
    return window.app.nodeOutputs[node.id].budget_plan[0];
  }, type);
}

/** Presses the slider with the mouse and moves through shares of its width; `look` runs while it is held. */
async function dragSlider(type, name, shares, look) {
  const place = await page.evaluate(([type, name]) => {
    const { graph, canvas } = window.app;
    const node = graph.nodes.find((n) => n.comfyClass === type);
    const widget = node.widgets.find((w) => w.name === name);
    const { scale, offset } = canvas.ds;
    const box = canvas.canvas.getBoundingClientRect();
    const toPage = (x, y) => [box.left + (x + offset[0]) * scale, box.top + (y + offset[1]) * scale];
    const [x0, y] = toPage(node.pos[0] + 15, node.pos[1] + widget.last_y + 10);
    const [x1] = toPage(node.pos[0] + node.size[0] - 15, 0);
    return { x0, x1, y };
  }, [type, name]);
  const at = (share) => place.x0 + (place.x1 - place.x0) * share;
  await page.mouse.move(at(0.8), place.y);
  await page.mouse.down();
  for (const share of shares) {
    await page.mouse.move(at(share), place.y, { steps: 4 });
    await frames();
    await look(await page.evaluate(([type, name]) => {
      const node = window.app.graph.nodes.find((n) => n.comfyClass === type);
      return node.widgets.find((w) => w.name === name).value;
    }, [type, name]));
  }
  await page.mouse.up();
}

/** Panels whose content is taller or wider than their box. */
async function overflow() {
  await page.waitForTimeout(400);
  return page.evaluate(() =>
    [...document.querySelectorAll(".bf-panel")]
      .filter((panel) => panel.scrollHeight > panel.clientHeight + 1 || panel.scrollWidth > panel.clientWidth + 1)
      .map((panel) => `${panel.dataset.kind}: ${panel.scrollHeight} in ${panel.clientHeight}`),
  );
}

/** Two frames: one that the change asked for, one that has drawn it. */
async function frames() {
  await page.evaluate(() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done))));
}

async function shot(name) {
  if (!SHOTS) return;
  mkdirSync(SHOTS, { recursive: true });
  await page.screenshot({ path: join(SHOTS, `${name}.png`) });
}

async function freePort() {
  return new Promise((done) => {
    const probe = createServer().listen(0, "127.0.0.1", () => {
      const { port } = probe.address();
      probe.close(() => done(port));
    });
  });
}

async function until(ready, limit = SLOW) {
  const end = Date.now() + limit;
  while (!(await ready())) {
    assert.ok(Date.now() < end, "it took too long");
    await new Promise((done) => setTimeout(done, 300));
  }
}
