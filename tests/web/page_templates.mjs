/**
 * Templates, help pages and the blueprint in the genuine page of each pinned host; part of page_shipped.mjs.
 */
import assert from "node:assert/strict";
import { readdirSync } from "node:fs";
import { join } from "node:path";
import { test } from "node:test";

import { ROOT, read, skip } from "./harness.mjs";
import { page, session } from "./shipped_session.mjs";

const TEMPLATES = readdirSync(join(ROOT, "workflows"))
  .filter((file) => file.endsWith(".json"))
  .map((file) => file.slice(0, -".json".length));

test("the page lists every template with a picture, the blueprint and the translations", { skip }, async () => {
  const [listed, blueprints, words] = await page.evaluate(() =>
    Promise.all(["workflow_templates", "global_subgraphs", "i18n"].map(async (path) => (await fetch(`/api/${path}`)).json())),
  );
  assert.deepEqual(listed.budgetfusion.toSorted(), TEMPLATES.toSorted());
  for (const name of TEMPLATES) {
    const picture = await page.request.get(`${session.host.address}/api/workflow_templates/budgetfusion/${name}.jpg`);
    assert.equal(picture.headers()["content-type"], "image/jpeg", name);
  }
  assert.ok(Object.values(blueprints).some((entry) => entry.name === "BudgetFusion Planned Render"));
  for (const language of ["en", "zh", "ja", "ko", "fr", "de", "es"]) assert.ok(words[language].budgetfusion.no_plan, language);
});

test("every help page and its pictures are served", { skip }, async () => {
  const pages = readdirSync(join(ROOT, "budgetfusion_nodes/web/docs")).filter((file) => file.endsWith(".md"));
  assert.equal(pages.length, 7);
  for (const file of pages) {
    const base = `${session.host.address}/extensions/budgetfusion/docs/`;
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
