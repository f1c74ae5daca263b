/**
 * A genuine ComfyUI with the pack and its page in Chromium: for the page tests, the screenshots and the speed figures.
 *
 * run.py says where everything is (BUDGETFUSION_*, COMFYUI_PATH; see launcher/browser.py). Without it this takes what
 * an earlier `python3 run.py test --only page` left under .run.
 */
import assert from "node:assert/strict";
import { spawn, spawnSync } from "node:child_process";
import { existsSync, mkdirSync, mkdtempSync, readFileSync, rmSync, symlinkSync, writeFileSync } from "node:fs";
import { createRequire } from "node:module";
import { createServer } from "node:net";
import { tmpdir } from "node:os";
import { join } from "node:path";
import { fileURLToPath } from "node:url";

export const ROOT = fileURLToPath(new URL("../..", import.meta.url));
const RUN = process.env.BUDGETFUSION_RUN_DIR ?? join(ROOT, ".run");
const HOST = process.env.COMFYUI_PATH ?? join(RUN, "host/0.30.0");
const PYTHON = process.env.BUDGETFUSION_PYTHON ?? join(RUN, "venv/bin/python");
const NPM = process.env.BUDGETFUSION_NPM ?? join(RUN, "npm");
const FRONTEND = process.env.BUDGETFUSION_FRONTEND;
const CHROMIUMS = ["/usr/bin/chromium", "/usr/bin/chromium-browser", "/usr/bin/google-chrome"];
const CHROMIUM = process.env.BUDGETFUSION_CHROMIUM ?? CHROMIUMS.find(existsSync);
export const SLOW = 300_000; // a render on a busy two-core machine
const LAID_OUT = 10_000; // until a page that goes on drawing has to be right

const playwright = findPlaywright();
const missing = [
  !CHROMIUM && "Chromium (apt-get install chromium)",
  !playwright && `playwright-core in ${NPM}`,
  !existsSync(join(HOST, "main.py")) && `a ComfyUI at ${HOST}`,
  !existsSync(PYTHON) && `a Python at ${PYTHON}`,
].filter(Boolean);
/** Why nothing can be opened here, or false. */
export const skip = missing.length
  ? `not found: ${missing.join(", ")}. 'python3 run.py test --only page' fetches all but Chromium.`
  : false;

function findPlaywright() {
  for (const folder of [NPM, ROOT]) {
    try {
      return createRequire(join(folder, "package.json"))("playwright-core");
    } catch {
      // looked for in the next place
    }
  }
  return null;
}

/** An empty scratch folder; `close` of the session removes it. */
export function scratchFolder() {
  return mkdtempSync(join(tmpdir(), "bf-page-"));
}

/** A base directory with an untrained checkpoint, and a planner that is not in place yet: see make_base.py. */
export function makeTestBase(folder) {
  const base = join(folder, "base");
  const made = spawnSync(PYTHON, [join(ROOT, "tests/web/make_base.py"), HOST, base], { encoding: "utf8" });
  assert.equal(made.status, 0, made.stderr);
  return base;
}

/** A base directory as an artist has it: the pack with its shipped weights, or a host without the pack. */
export function makeShippedBase(folder, { pack = true } = {}) {
  const base = join(folder, pack ? "base" : "bare");
  for (const part of ["custom_nodes", "models", "user/default"]) mkdirSync(join(base, part), { recursive: true });
  if (pack) symlinkSync(ROOT, join(base, "custom_nodes/budgetfusion"), "dir");
  const settings = { "Comfy.TutorialCompleted": true, "Comfy.Workflow.ShowMissingModelsWarning": false };
  writeFileSync(join(base, "user/default/comfy.settings.json"), JSON.stringify(settings));
  return base;
}

/** A running host: `{address, log(), stop()}`. */
export async function startHost(base) {
  const port = await freePort();
  const address = `http://127.0.0.1:${port}`;
  const options = ["--cpu", "--port", String(port), "--disable-api-nodes", "--disable-auto-launch"];
  options.push("--base-directory", base, "--database-url", "sqlite:///:memory:");
  if (FRONTEND) options.push("--front-end-root", FRONTEND);
  const server = spawn(PYTHON, ["main.py", ...options], { cwd: HOST, stdio: ["ignore", "ignore", "pipe"] });
  const end = () => server.kill();
  process.once("exit", end); // also when this program is ended by a signal
  for (const signal of ["SIGTERM", "SIGINT"]) process.once(signal, () => process.exit(1));
  server.once("exit", () => process.off("exit", end));
  let log = "";
  server.stderr.on("data", (text) => (log = (log + text).slice(-6000)));
  const host = { address, base, log: () => log, stop: () => stopped(server) };
  try {
    await until(async () => {
      assert.equal(server.exitCode, null, `the server ended:\n${log}`);
      return fetch(`${address}/system_stats`).then((answer) => answer.ok, () => false);
    });
  } catch (error) {
    await host.stop();
    throw error;
  }
  return host;
}

async function stopped(server) {
  if (server.exitCode !== null || server.signalCode !== null) return;
  const ended = new Promise((done) => server.once("exit", done));
  server.kill();
  const late = setTimeout(() => server.kill("SIGKILL"), 10_000);
  await ended;
  clearTimeout(late);
}

export async function startBrowser() {
  return playwright.chromium.launch({ executablePath: CHROMIUM, args: ["--no-sandbox"] });
}

/** The page of a host, and what can be done with it. */
export class Session {
  constructor(host, browser, page) {
    this.host = host;
    this.browser = browser;
    this.page = page;
    /** Console errors, requests to other hosts, queued prompts. */
    this.complaints = [];
    this.outside = [];
    this.prompts = [];
  }

  static async open(host, browser, options = {}) {
    const context = await browser.newContext({ viewport: { width: 1366, height: 900 }, ...options });
    context.setDefaultTimeout(SLOW); // a loaded machine takes minutes for what takes a second elsewhere
    const session = new Session(host, browser, await context.newPage());
    session.watch();
    await session.load();
    return session;
  }

  watch() {
    const { page, complaints, outside, prompts } = this;
    const own = new URL(this.host.address).host;
    page.on("console", (message) => {
      if (message.type() === "error") complaints.push(`${message.text()} [${message.location().url}]`);
    });
    page.on("pageerror", (error) => complaints.push(`uncaught: ${error.stack}`));
    page.on("request", (request) => {
      const url = request.url();
      if (/^(https?|wss?):/.test(url) && new URL(url).host !== own) outside.push(url);
      if (request.method() === "POST" && url.endsWith("/prompt")) prompts.push(url);
    });
  }

  async load() {
    await this.page.goto(this.host.address);
    await this.ready();
  }

  async ready() {
    const loaded = () => window.app?.extensionManager && window.app.graph && window.app.canvas;
    await this.page.waitForFunction(loaded, null, { timeout: SLOW });
    await this.page.waitForTimeout(1000);
  }

  /** Loads an example graph as its file lies there. */
  async open(name) {
    const graph = JSON.parse(readFileSync(join(ROOT, "workflows", `${name}.json`), "utf8"));
    await this.page.evaluate((data) => window.app.loadGraphData(data), graph);
    await this.page.waitForTimeout(600);
  }

  /** The same, with this pack's nodes side by side in view. */
  async show(name) {
    await this.open(name);
    await this.page.evaluate(() => {
      const own = (node) => node.comfyClass?.startsWith("BudgetFusion_");
      const { nodes } = window.app.graph;
      for (const [i, node] of nodes.filter(own).entries()) node.pos = [i * 420, 0];
      for (const [i, node] of nodes.filter((node) => !own(node)).entries()) node.pos = [i * 420, 1400];
      window.app.canvas.ds.scale = 0.9;
      window.app.canvas.ds.offset = [90, 80];
      window.app.canvas.setDirty(true, true);
    });
    await this.page.waitForTimeout(600);
  }

  /** The whole graph in view. */
  async fitView(margin = 60) {
    await this.page.evaluate((margin) => {
      const { graph, canvas } = window.app;
      const boxes = graph.nodes.map((node) => [node.pos[0], node.pos[1] - 30, node.pos[0] + node.size[0], node.pos[1] + node.size[1]]);
      const [x0, y0] = [0, 1].map((i) => Math.min(...boxes.map((box) => box[i])));
      const [x1, y1] = [2, 3].map((i) => Math.max(...boxes.map((box) => box[i])));
      const { clientWidth, clientHeight } = canvas.canvas;
      const scale = Math.min(clientWidth / (x1 - x0 + 2 * margin), clientHeight / (y1 - y0 + 2 * margin));
      canvas.ds.scale = scale;
      canvas.ds.offset = [clientWidth / scale / 2 - (x0 + x1) / 2, clientHeight / scale / 2 - (y0 + y1) / 2];
      canvas.setDirty(true, true);
    }, margin);
    await this.page.waitForTimeout(500);
  }

  async queue(count = 1) {
    await this.page.evaluate((count) => window.app.queuePrompt(0, count), count);
  }

  /** A message of the page that floats over the graph; its markup is another since frontend 1.5x. */
  toast(text) {
    return this.page.locator('.p-toast-message, [data-testid="toast"]', { hasText: text }).first();
  }

  /** How many prompts run or wait. */
  async waiting() {
    const queue = await this.page.evaluate(async () => (await fetch("/api/queue")).json());
    return queue.queue_pending.length + queue.queue_running.length;
  }

  /** How many prompts have ended. */
  async history() {
    return this.page.evaluate(async () => Object.keys(await (await fetch("/api/history")).json()).length);
  }

  async setWidget(type, name, value) {
    await this.page.evaluate(([type, name, value]) => {
      const node = window.app.graph.nodes.find((n) => n.comfyClass === type);
      const widget = node.widgets.find((w) => w.name === name);
      widget.value = value;
      widget.callback?.(value, window.app.canvas, node);
    }, [type, name, value]);
  }

  async widget(type, name) {
    return this.page.evaluate(([type, name]) => {
      const node = window.app.graph.nodes.find((n) => n.comfyClass === type);
      return node.widgets.find((w) => w.name === name).value;
    }, [type, name]);
  }

  /** Opens or closes the running total in the side bar. */
  async toggleTotals() {
    const toggle = () => window.app.extensionManager.sidebarTab.toggleSidebarTab("budgetfusion-totals");
    await this.page.evaluate(toggle);
    await this.page.waitForTimeout(400);
  }

  /** Pairs of nodes that cover each other, with room for a title. */
  async overlaps() {
    return this.page.evaluate(() => {
      const boxes = window.app.graph.nodes.map((n) => [n.title, n.pos[0], n.pos[1] - 30, n.size[0], n.size[1] + 30]);
      const apart = (x, y, w, h, a, b, c, d) => x + w <= a || a + c <= x || y + h <= b || b + d <= y;
      const pairs = boxes.flatMap((one, i) => boxes.slice(i + 1).map((other) => [one, other]));
      return pairs.filter(([[, ...one], [, ...other]]) => !apart(...one, ...other)).map(([[a], [b]]) => `${a} and ${b}`);
    });
  }

  async setting(name, value) {
    await this.page.evaluate(([name, value]) => window.app.extensionManager.setting.set(name, value), [name, value]);
  }

  async executedPlan(type) {
    return this.page.evaluate((type) => {
      const node = window.app.graph.nodes.find((n) => n.comfyClass === type);
      return window.app.nodeOutputs[node.id].budget_plan[0];
    }, type);
  }

  /** Presses the slider with the mouse and moves through shares of its width; `look` runs while it is held. */
  async dragSlider(type, name, shares, look) {
    const place = await this.page.evaluate(([type, name]) => {
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
    const { mouse } = this.page;
    const at = (share) => place.x0 + (place.x1 - place.x0) * share;
    await mouse.move(at(0.8), place.y);
    await mouse.down();
    for (const share of shares) {
      await mouse.move(at(share), place.y, { steps: 4 });
      await this.frames();
      await look(await this.page.evaluate(([type, name]) => {
        const node = window.app.graph.nodes.find((n) => n.comfyClass === type);
        return node.widgets.find((w) => w.name === name).value;
      }, [type, name]));
    }
    await mouse.up();
  }

  /** Panels whose content stays taller or wider than their box. */
  async overflow() {
    const found = () =>
      this.page.evaluate(() =>
        [...document.querySelectorAll(".bf-panel")]
          .filter((panel) => panel.scrollHeight > panel.clientHeight + 1 || panel.scrollWidth > panel.clientWidth + 1)
          .map((panel) => `${panel.dataset.kind}: ${panel.scrollHeight} in ${panel.clientHeight}`),
      );
    const end = Date.now() + LAID_OUT; // a node grows some frames after its text did
    while ((await found()).length && Date.now() < end) await this.frames();
    return found();
  }

  /** Two frames: one that the change asked for, one that has drawn it. */
  async frames() {
    await this.page.evaluate(() => new Promise((done) => requestAnimationFrame(() => requestAnimationFrame(done))));
  }

  async shot(folder, name, options = {}) {
    if (!folder) return;
    mkdirSync(folder, { recursive: true });
    await this.page.screenshot({ path: join(folder, `${name}.png`), ...options });
  }
}

export function remove(folder) {
  if (folder) rmSync(folder, { recursive: true, force: true });
}

async function freePort() {
  return new Promise((done) => {
    const probe = createServer().listen(0, "127.0.0.1", () => {
      const { port } = probe.address();
      probe.close(() => done(port));
    });
  });
}

export async function until(ready, limit = SLOW) {
  const end = Date.now() + limit;
  while (!(await ready())) {
    assert.ok(Date.now() < end, "it took too long");
    await new Promise((done) => setTimeout(done, 300));
  }
}
