/**
 * Thumbnails of the templates and pictures of the help pages, from the real page with the shipped weights:
 *
 *     python3 run.py screenshots
 *     BUDGETFUSION_ONLY=calibrate_your_model,prompt_list python3 run.py screenshots    only those of these templates
 *
 * Writes workflows/<template>.jpg and budgetfusion_nodes/web/docs/images/*.png.
 */
import { mkdirSync, readdirSync, readFileSync, writeFileSync } from "node:fs";
import { join } from "node:path";

import { ROOT, SLOW, Session, makeShippedBase, remove, scratchFolder, skip, startBrowser, startHost, until } from "./harness.mjs";

const PICTURES = join(ROOT, "budgetfusion_nodes/web/docs/images");
const PLANNER = "BudgetFusion_BudgetPlanner";
const SAMPLER = "BudgetFusion_AdaptiveKSampler";
const PROBE = "BudgetFusion_PerceptualMetricProbe";
const SWEEP = "BudgetFusion_StepSweep";
const CALIBRATE = "BudgetFusion_Calibrate";
const BLIND = "BudgetFusion_BlindTest";
/** Input that names a model file -> the host's folder of such files. */
const MODEL_FOLDERS = {
  ckpt_name: "checkpoints", unet_name: "diffusion_models", clip_name1: "text_encoders", clip_name2: "text_encoders",
  vae_name: "vae",
};
/** Files that come with the pack or the host itself. */
const SHIPPED = (file) => file.startsWith("tiny_scenes") || file === "pixel_space";
const ONLY = process.env.BUDGETFUSION_ONLY?.split(",");
const SETTINGS = {
  "Comfy.Minimap.Visible": false,
  "LiteGraph.Canvas.MinFontSizeForLOD": 0, // titles stay readable in small pictures
  "Comfy.Graph.CanvasInfo": false,
};

/** Template -> the help pictures that are made from it. */
const HELP_PICTURES = {
  async planner_into_adaptive_ksampler(session) {
    await run(session);
    await picture(session, [PLANNER], "budget_planner");
    await picture(session, [SAMPLER], "adaptive_ksampler");
  },
  async adaptive_ksampler(session) {
    await session.setWidget(SAMPLER, "sampler_name", "euler_ancestral");
    await run(session);
    await picture(session, [SAMPLER], "no_plan");
  },
  async prompt_list(session) {
    await session.setWidget(SAMPLER, "seed", 8); // else the host has it cached, and the running total counts none
    await run(session);
    await picture(session, [PLANNER], "prompt_list");
    await session.toggleTotals();
    await session.page.locator(".bf-totals").screenshot({ path: join(PICTURES, "running_total.png") });
    process.stdout.write("running_total.png\n");
    await session.toggleTotals();
  },
  async step_sweep_and_probe(session) {
    await run(session);
    await picture(session, [PROBE], "perceptual_metric_probe");
    await picture(session, [SWEEP, "PreviewImage"], "step_sweep");
  },
  async calibrate_your_model(session) {
    await run(session); // nothing is rendered anew after the thumbnail's run
    await picture(session, [CALIBRATE], "calibrate");
    forgetPlanners();
  },
  async blind_test(session) {
    await run(session); // taken from the cache but for the pairs
    await session.page.locator('.bf-panel[data-kind="blind"]').focus();
    for (const key of ["1", "2"]) {
      await session.page.locator('.bf-panel[data-ready="true"]').waitFor();
      await session.page.keyboard.press(key);
      await session.page.waitForTimeout(1000);
    }
    await picture(session, [BLIND], "blind_test");
  },
};

if (skip) throw new Error(skip);
mkdirSync(PICTURES, { recursive: true });
const scratch = scratchFolder();
const base = makeShippedBase(scratch);
placeOthersModels();
const host = await startHost(base);
const browser = await startBrowser();
try {
  await thumbnails();
  await helpPictures();
} finally {
  await browser.close();
  await host.stop();
  remove(scratch);
}

async function openSession(options) {
  const session = await Session.open(host, browser, options);
  for (const [name, value] of Object.entries(SETTINGS)) await session.setting(name, value);
  return session;
}

function templates() {
  const files = readdirSync(join(ROOT, "workflows")).filter((file) => file.endsWith(".json"));
  return files.map((file) => file.slice(0, -".json".length)).filter(wanted).sort();
}

/** @param {string} name of a template */
function wanted(name) {
  return !ONLY || ONLY.includes(name);
}

/** The graph as it is queued. */
function twinOf(name) {
  return JSON.parse(readFileSync(join(ROOT, "workflows/api", `${name}.json`), "utf8"));
}

/** Empty files in the place of models that are not shipped, so that the page sees what an artist who has them sees. */
function placeOthersModels() {
  for (const { inputs } of templates().flatMap((name) => Object.values(twinOf(name)))) {
    for (const [input, folder] of Object.entries(MODEL_FOLDERS)) {
      const file = inputs[input];
      if (!file || SHIPPED(file)) continue;
      mkdirSync(join(base, "models", folder), { recursive: true });
      writeFileSync(join(base, "models", folder, file), "");
    }
  }
}

/** The planner that the Calibrate template made: all other pictures are of what is shipped. */
function forgetPlanners() {
  remove(join(base, "models/budgetfusion"));
}

/** Each template as it looks after its run; those for other checkpoints as they open. */
async function thumbnails() {
  const session = await openSession({ viewport: { width: 1600, height: 1000 }, deviceScaleFactor: 0.5 });
  await command(session, "Workspace.ToggleFocusMode");
  for (const name of templates()) {
    const twin = twinOf(name);
    await session.open(name);
    const model = Object.values(twin).map(({ inputs }) => inputs.ckpt_name ?? inputs.unet_name).find(Boolean);
    if (SHIPPED(model)) await run(session);
    forgetPlanners();
    await session.fitView(40);
    await session.page.screenshot({ path: join(ROOT, "workflows", `${name}.jpg`), type: "jpeg", quality: 82 });
    process.stdout.write(`workflows/${name}.jpg\n`);
  }
  await session.page.context().close();
}

async function helpPictures() {
  const session = await openSession({ viewport: { width: 1400, height: 1300 } });
  for (const [name, make] of Object.entries(HELP_PICTURES).filter(([name]) => wanted(name))) {
    await session.open(name);
    await make(session);
  }
  await session.page.context().close();
}

/** Queues, and waits until the host has nothing left to do. */
async function run(session) {
  await session.queue();
  await until(async () => {
    const queue = await (await fetch(`${host.address}/queue`)).json();
    return !queue.queue_running.length && !queue.queue_pending.length;
  }, SLOW);
  await session.page.waitForTimeout(1500); // the last result arrives and is drawn
  await session.page.evaluate(() => document.querySelectorAll('.p-toast, [data-testid="toast"]').forEach((toast) => toast.remove()));
}

/** The nodes of these types, at natural size, with a little ground around them. */
async function picture(session, types, name) {
  const clip = await session.page.evaluate((types) => {
    const { graph, canvas } = window.app;
    const nodes = graph.nodes.filter((node) => types.includes(node.comfyClass ?? node.type));
    const [x0, y0] = [0, 1].map((i) => Math.min(...nodes.map((node) => node.pos[i])));
    const [x1, y1] = [0, 1].map((i) => Math.max(...nodes.map((node) => node.pos[i] + node.size[i])));
    canvas.ds.scale = 1;
    canvas.ds.offset = [120 - x0, 130 - y0];
    canvas.setDirty(true, true);
    const box = canvas.canvas.getBoundingClientRect();
    return { x: box.left + 108, y: box.top + 88, width: x1 - x0 + 24, height: y1 - y0 + 54 };
  }, types);
  await session.page.waitForTimeout(800);
  await session.page.screenshot({ path: join(PICTURES, `${name}.png`), clip });
  process.stdout.write(`${name}.png\n`);
}

async function command(session, id) {
  await session.page.evaluate((id) => window.app.extensionManager.command.execute(id), id);
  await session.page.waitForTimeout(500);
}
