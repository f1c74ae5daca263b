/**
 * Texts with markup in the genuine page: prompts, node titles, planner names, messages and labels are shown as the
 * letters that they are. Part of page.mjs, whose host and page it uses, after a run of Step Sweep, Planner and Probe.
 */
import assert from "node:assert/strict";
import { renameSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";

import { SLOW, skip, until } from "./harness.mjs";

const RAN = "bf-ran";
const SAMPLER = "BudgetFusion_AdaptiveKSampler";
/** A piece in which each tag that runs or loads something stands once; what runs complains in the console. No comma. */
export const MARKUP = ((run) =>
  `<img src=x class=bf-evil onerror=${run}><script class=bf-evil>${run}</script><svg class=bf-evil onload=${run}></svg>` +
  `<a class=bf-evil href=javascript:${run}>a</a>`)(`console.error(/${RAN}/)`);
/** The same where it would end an attribute, a comment or a style first. */
const BROKEN_OUT = `'"--></style></title>${MARKUP}`;

/** What of the markup ran or became an element. @param {import("./harness.mjs").Session} session */
export async function tookEffect(session) {
  const made = await session.page.evaluate(() => [...document.querySelectorAll(".bf-evil")].map((one) => one.outerHTML));
  return [...made, ...session.complaints.filter((text) => text.includes(RAN))];
}

/** @param {() => import("./harness.mjs").Session} session */
export function testMarkup(session) {
  test("markup in any text that Python sends is shown as its letters", { skip }, async () => {
    const { page } = session();
    await session().setting("BudgetFusion.OnFallback", "always");
    const texts = await page.evaluate(poison, BROKEN_OUT);
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
        for (const widget of node.widgets ?? []) if (widget.name === "text") widget.value = markup;
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
 * In the page: gives each of this pack's nodes its last result, or one of its kind, with `markup` for every text of it.
 * Returns what the panels show then, by the node's type.
 */
async function poison(markup) {
  const { graph, nodeOutputs, api } = window.app;
  /** Texts that decide what is drawn, and are not shown. */
  const kept = new Set(["stock", "nested", "mean_curve", "bilstm"]);
  const message = { code: markup, values: { [markup]: markup, n: { code: markup, values: { error: markup } } } };
  const poisoned = (value) => {
    if (typeof value === "string") return kept.has(value) ? value : markup;
    if (Array.isArray(value)) return value.map(poisoned);
    if (!value || typeof value !== "object") return value;
    if ("code" in value && "values" in value) return message;
    return Object.fromEntries(Object.entries(value).map(([key, inner]) => [key, poisoned(inner)]));
  };
  const find = (type) => graph.nodes.find((node) => node.comfyClass === type);
  const added = (type) => {
    const node = find(type) ?? window.LiteGraph.createNode(type);
    if (!node.graph) graph.add(node);
    node.title = markup;
    return node;
  };
  const planner = find("BudgetFusion_BudgetPlanner");
  const [plan] = nodeOutputs[planner.id].budget_plan;
  const probe = find("BudgetFusion_PerceptualMetricProbe");
  const calibration = { messages: [message, markup], prompts: 1, wanted: 2, curve: null };
  const results = [
    [planner, { budget_plan: [poisoned({ ...plan, warnings: [message] }), poisoned({ ...plan, fallback: message, decision: null })] }],
    [probe, poisoned(nodeOutputs[probe.id])],
    [added("BudgetFusion_AdaptiveKSampler"), { budget_plan: [poisoned({ ...plan, fallback: message, decision: null })] }],
    [added("BudgetFusion_Calibrate"), { calibration: [calibration], text: [markup] }],
    [added("BudgetFusion_Learn"), { text: [markup] }],
  ];
  for (const [node, output] of results) {
    node.title = markup;
    node.onExecuted(output);
  }
  const progress = { ...calibration, node: String(results[3][0].id) };
  api.dispatchCustomEvent("budgetfusion.calibration", progress);
  await new Promise((done) => setTimeout(done, 500)); // what loads, fails and runs by then
  const panels = results.flatMap(([node]) => {
    const panel = node.widgets?.find((widget) => widget.name === "budgetfusion")?.element;
    return panel ? [[node.comfyClass, panel.textContent]] : [];
  });
  return Object.fromEntries(panels);
}
