/**
 * Texts with markup in the genuine page: prompts, node titles, planner names, messages and labels are shown as the
 * letters that they are. Part of page.mjs, whose host and page it uses.
 */
import assert from "node:assert/strict";
import { readFileSync, renameSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";

import { ROOT, SLOW, skip, until } from "./harness.mjs";

const CASE = JSON.parse(readFileSync(join(ROOT, "tests/cases/plan_case.json"), "utf8"));
const RAN = "bf-ran";
const SAMPLER = "BudgetFusion_AdaptiveKSampler";
/** A piece in which each tag that runs or loads something stands once; what runs complains in the console. No comma. */
export const MARKUP = ((run) =>
  `<img src=x class=bf-evil onerror=${run}><script class=bf-evil>${run}</script><svg class=bf-evil onload=${run}></svg>` +
  `<a class=bf-evil href=javascript:${run}>a</a>`)(`console.error(/${RAN}/)`);
/** The first of it, as short as a label may be. */
export const LABEL = MARKUP.slice(0, MARKUP.indexOf(">") + 1);
/** The same where it would end an attribute, a comment or a style first. */
const BROKEN_OUT = `'"--></style></title>${MARKUP}`;

/** What of the markup ran or became an element. @param {import("./harness.mjs").Session} session */
export async function tookEffect(session) {
  const made = await session.page.evaluate(() => {
    const path = (one) => (one && one !== document.body ? `${path(one.parentElement)} > ${one.tagName}.${one.getAttribute("class")}` : "");
    return [...document.querySelectorAll(".bf-evil")].map(path);
  });
  return [...made, ...session.complaints.filter((text) => text.includes(RAN))];
}

/** @param {() => import("./harness.mjs").Session} session */
export function testMarkup(session) {
  test("markup in any text that Python sends is shown as its letters", { skip }, async () => {
    const { page } = session();
    await session().setting("BudgetFusion.OnFallback", "always");
    const texts = await page.evaluate(poison, [BROKEN_OUT, CASE.plan]);
    for (const [type, text] of Object.entries(texts)) assert.ok(text.includes("<img src=x"), `${type} shows ${text}`);
    assert.deepEqual(Object.keys(texts).toSorted(), [
      "BudgetFusion_AdaptiveKSampler",
      "BudgetFusion_BudgetPlanner",
      "BudgetFusion_Calibrate",
      "BudgetFusion_PerceptualMetricProbe",
    ]);
    await session().toast("<img src=x").waitFor({ timeout: SLOW });
    assert.deepEqual(await tookEffect(session()), []);
  });

  test("a prompt, titles and a planner's name with markup go through a run as text", { skip }, async () => {
    const { page, host } = session();
    renameSync(join(host.base, "held/markup.safetensors"), join(host.base, "models/budgetfusion/page_test.safetensors"));
    await session().show("adaptive_ksampler");
    await page.evaluate((markup) => {
      for (const node of window.app.graph.nodes) {
        node.title = markup;
        for (const widget of node.widgets ?? []) if (widget.type === "customtext") widget.value = markup; // no note: Markdown is the host's
      }
    }, MARKUP);
    await session().setWidget(SAMPLER, "seed", 99);
    await session().setWidget(SAMPLER, "max_steps", 4);
    await session().queue();
    await until(async () => (await session().waiting()) === 0);
    const panel = page.locator('.bf-panel[data-kind="sampler"][data-state="result"]', { hasText: "<img src=x" });
    await panel.waitFor({ timeout: SLOW });
    await session().toggleTotals();
    await page.locator(".bf-totals").waitFor();
    assert.deepEqual(await tookEffect(session()), []);
    await session().toggleTotals();
    await session().setting("BudgetFusion.OnFallback", "once");
  });
}

/**
 * In the page: one of each of this pack's nodes, and a result in which `markup` is in the place of every text. Returns
 * what the panels show then, by the node's type.
 */
async function poison([markup, plan]) {
  const { graph, api } = window.app;
  const message = { code: markup, values: { [markup]: markup, n: { code: markup, values: { error: markup } } } };
  const poisoned = (value) => {
    if (typeof value === "string") return value === "stock" ? value : markup; // decides what is drawn
    if (Array.isArray(value)) return value.map(poisoned);
    if (!value || typeof value !== "object") return value;
    if ("code" in value && "values" in value) return message;
    return Object.fromEntries(Object.entries(value).map(([key, inner]) => [key, poisoned(inner)]));
  };
  const planned = poisoned({ ...plan, warnings: [message] });
  const fallback = poisoned({ ...plan, fallback: message, decision: null });
  const numbers = { l_snr: [1, 0], d_sim: [0.2, 0], i_clip: [0.1, 0], quality: [0.5, 1] };
  const probe = { steps: [2, 4], counted: true, frames: 1, ...numbers, backends: { l_snr: markup }, reference: message, notes: [message] };
  const calibration = { messages: [message, markup], prompts: 1, wanted: 2, curve: null };
  const results = {
    BudgetPlanner: { budget_plan: [planned, fallback] },
    AdaptiveKSampler: { budget_plan: [fallback], text: [markup] },
    PerceptualMetricProbe: { probe: [probe], budget_plan: [planned], text: [markup] },
    Calibrate: { calibration: [calibration], text: [markup] },
    Learn: { text: [markup] },
  };
  graph.clear();
  const nodes = Object.entries(results).map(([type, output], i) => {
    const node = window.LiteGraph.createNode(`BudgetFusion_${type}`);
    node.pos = [420 * i, 0];
    node.title = markup;
    graph.add(node);
    node.onExecuted?.(output);
    return node;
  });
  api.dispatchCustomEvent("budgetfusion.calibration", { ...calibration, node: String(nodes[3].id) });
  await new Promise((done) => setTimeout(done, 1000)); // what loads, fails and runs by then
  const panels = nodes.flatMap((node) => {
    const panel = node.widgets?.find((widget) => widget.name === "budgetfusion")?.element;
    return panel ? [[node.comfyClass, panel.textContent]] : [];
  });
  return Object.fromEntries(panels);
}
