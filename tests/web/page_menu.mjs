/**
 * "Plan the steps" and back, in the genuine page of each pinned host; part of page_shipped.mjs.
 *
 * Graphs are checked as what the page would queue (graphToPrompt), so links, values and subgraphs are those that count.
 */
import assert from "node:assert/strict";
import { test } from "node:test";

import { skip } from "./harness.mjs";
import { page, session } from "./shipped_session.mjs";

/** What these tests call in the page. */
const addHelpers = () =>
  page.evaluate(() => {
    window.bf = {
      /** A graph of nodes by name: `{type, values, links: {input: [name, slot]}}`; returns name -> id. */
      build(described, into = null) {
        const graph = into ?? window.app.graph;
        if (!into) graph.clear();
        const made = {};
        for (const [name, { type, values = {} }] of Object.entries(described)) {
          const node = window.LiteGraph.createNode(type);
          graph.add(node);
          node.pos = [300 * Object.keys(made).length, 400];
          for (const widget of node.widgets ?? []) if (widget.name in values) widget.value = values[widget.name];
          made[name] = node;
        }
        for (const [name, { links = {} }] of Object.entries(described)) {
          for (const [input, [from, slot]] of Object.entries(links)) {
            const at = made[name].inputs.findIndex((entry) => (entry.widget?.name ?? entry.name) === input);
            made[from].connect(slot, made[name], at);
          }
        }
        return Object.fromEntries(Object.entries(made).map(([name, node]) => [name, node.id]));
      },
      /** The entry of ours in the node's menu. */
      entry(node) {
        return window.app.canvas.getNodeMenuOptions(node).find((item) => /Plan the steps|fixed step count|steps cannot be planned/.test(item?.content ?? ""));
      },
      find: (type, graph = window.app.graph) => graph.nodes.find((node) => node.comfyClass === type),
      press(type, graph = window.app.graph) {
        window.bf.entry(window.bf.find(type, graph)).callback();
      },
      async prompt() {
        return (await window.app.graphToPrompt()).output;
      },
    };
  });

const BASE = {
  loader: { type: "CheckpointLoaderSimple" },
  yes: { type: "CLIPTextEncode", values: { text: "a red circle" }, links: { clip: ["loader", 1] } },
  no: { type: "CLIPTextEncode", links: { clip: ["loader", 1] } },
  latent: { type: "EmptyLatentImage", values: { width: 64, height: 64 } },
};
const SAMPLER = { model: ["loader", 0], positive: ["yes", 0], negative: ["no", 0], latent_image: ["latent", 0] };
const OUT = {
  decode: { type: "VAEDecode", links: { samples: ["sampler", 0], vae: ["loader", 2] } },
  save: { type: "PreviewImage", links: { images: ["decode", 0] } },
};
const KSAMPLER = {
  ...BASE,
  number: { type: "PrimitiveInt", values: { value: 33 } },
  sampler: {
    type: "KSampler",
    values: { seed: 5, control_after_generate: "fixed", steps: 31, cfg: 4.5, sampler_name: "euler", scheduler: "simple", denoise: 0.7 },
    links: SAMPLER,
  },
  ...OUT,
};

const by = (prompt, type) => Object.values(prompt).find((node) => node.class_type === type);
const build = (graph) => page.evaluate((described) => window.bf.build(described), graph);
const press = (type) => page.evaluate((type) => window.bf.press(type), type);
const prompt = () => page.evaluate(() => window.bf.prompt());

test("a KSampler becomes an Adaptive KSampler with all its links, values and looks, and goes back", { skip }, async () => {
  await addHelpers();
  await build(KSAMPLER);
  await page.evaluate(() => {
    Object.assign(window.bf.find("KSampler"), { title: "My sampler", color: "#223", bgcolor: "#335", mode: 0 });
    window.bf.find("KSampler").pos = [777, 333];
  });
  const stock = await prompt();
  await press("KSampler");
  const planned = await prompt();
  const [before, ours] = [by(stock, "KSampler").inputs, by(planned, "BudgetFusion_AdaptiveKSampler").inputs];
  const { steps, ...kept } = before;
  for (const [name, value] of Object.entries(kept)) assert.deepEqual(ours[name], value, name);
  assert.equal(ours.max_steps, steps);
  assert.equal(by(planned, "KSampler"), undefined);
  assert.deepEqual(by(planned, "VAEDecode").inputs.samples, by(stock, "VAEDecode").inputs.samples);
  const looks = await page.evaluate(() => {
    const { title, color, bgcolor, pos } = window.bf.find("BudgetFusion_AdaptiveKSampler");
    return { title, color, bgcolor, pos: [...pos] };
  });
  assert.deepEqual(looks, { title: "My sampler", color: "#223", bgcolor: "#335", pos: [777, 333] });
  await press("BudgetFusion_AdaptiveKSampler");
  assert.deepEqual(inputsOf(await prompt()), inputsOf(stock));
});

/** Type and inputs of every node. */
function inputsOf(made) {
  return Object.fromEntries(Object.entries(made).map(([id, { class_type, inputs }]) => [id, { class_type, inputs }]));
}

test("a linked step count goes with it, a bypassed node stays bypassed", { skip }, async () => {
  await build({ ...KSAMPLER, sampler: { ...KSAMPLER.sampler, links: { ...SAMPLER, steps: ["number", 0] } } });
  await press("KSampler");
  const made = await prompt();
  const linked = by(made, "BudgetFusion_AdaptiveKSampler").inputs.max_steps;
  assert.equal(made[linked[0]].class_type, "PrimitiveInt");
  await page.evaluate(() => (window.bf.find("BudgetFusion_AdaptiveKSampler").mode = 4));
  await press("BudgetFusion_AdaptiveKSampler");
  assert.equal(await page.evaluate(() => window.bf.find("KSampler").mode), 4);
});

test("undo takes the change back in one step", { skip }, async () => {
  await build(KSAMPLER);
  const stock = inputsOf(await prompt());
  const tracker = (call) => page.evaluate(async (call) => {
    const { changeTracker } = window.app.extensionManager.workflow.activeWorkflow;
    await (changeTracker[call] ?? changeTracker.checkState)?.call(changeTracker);
  }, call);
  await page.evaluate(() => {
    const { changeTracker } = window.app.extensionManager.workflow.activeWorkflow;
    (changeTracker.captureCanvasState ?? changeTracker.checkState).call(changeTracker);
  });
  await press("KSampler");
  assert.ok(by(await prompt(), "BudgetFusion_AdaptiveKSampler"));
  await tracker("undo");
  await page.waitForTimeout(500);
  assert.deepEqual(inputsOf(await prompt()), stock);
});

const part = (latent, values) => ({
  type: "KSamplerAdvanced",
  values: { add_noise: "enable", noise_seed: 3, steps: 20, cfg: 3.5, sampler_name: "euler", scheduler: "simple", start_at_step: 0, end_at_step: 10000, ...values },
  links: { ...SAMPLER, latent_image: [latent, 0] },
});

test("two KSampler (Advanced) of one schedule get one planner, and its steps and split", { skip }, async () => {
  for (const pressed of ["first", "second"]) {
    const ids = await build({
      ...BASE,
      first: part("latent", { end_at_step: 10, return_with_leftover_noise: "enable" }),
      second: part("first", { start_at_step: 10, add_noise: "disable" }),
      decode: { type: "VAEDecode", links: { samples: ["second", 0], vae: ["loader", 2] } },
      save: OUT.save,
    });
    const stock = await prompt();
    await page.evaluate((id) => window.bf.entry(window.app.graph.getNodeById(id)).callback(), ids[pressed]);
    const made = await prompt();
    const planners = Object.entries(made).filter(([, node]) => node.class_type === "BudgetFusion_BudgetPlanner");
    assert.equal(planners.length, 1);
    const [[planner, { inputs }]] = planners;
    const wanted = { sampler_name: "euler", scheduler: "simple", cfg: 3.5, max_steps: 20, split_at: 10 };
    for (const [name, value] of Object.entries(wanted)) assert.equal(inputs[name], value, name);
    assert.deepEqual(inputs.model, made[ids.first].inputs.model);
    assert.deepEqual(inputs.latent_image, [String(ids.latent), 0]);
    assert.deepEqual(made[ids.first].inputs.steps, [planner, 1]);
    assert.deepEqual(made[ids.second].inputs.steps, [planner, 1]);
    assert.deepEqual(made[ids.first].inputs.end_at_step, [planner, 3]);
    assert.deepEqual(made[ids.second].inputs.start_at_step, [planner, 3]);
    assert.equal(made[ids.second].inputs.end_at_step, 10000);
    const again = await page.evaluate((id) => Boolean(window.bf.entry(window.app.graph.getNodeById(id))), ids.first);
    assert.equal(again, false, "a planned sampler is not offered again");
    await press("BudgetFusion_BudgetPlanner");
    assert.deepEqual(inputsOf(await prompt()), inputsOf(stock));
  }
});

test("three KSampler (Advanced) of one schedule get a planner for each change-over", { skip }, async () => {
  const ids = await build({
    ...BASE,
    first: part("latent", { end_at_step: 5, return_with_leftover_noise: "enable" }),
    middle: part("first", { start_at_step: 5, end_at_step: 12, add_noise: "disable", return_with_leftover_noise: "enable" }),
    last: part("middle", { start_at_step: 12, add_noise: "disable" }),
    decode: { type: "VAEDecode", links: { samples: ["last", 0], vae: ["loader", 2] } },
    save: OUT.save,
  });
  const stock = await prompt();
  await page.evaluate((id) => window.bf.entry(window.app.graph.getNodeById(id)).callback(), ids.middle);
  const made = await prompt();
  const planners = Object.entries(made).filter(([, node]) => node.class_type === "BudgetFusion_BudgetPlanner");
  const at = Object.fromEntries(planners.map(([id, { inputs }]) => [inputs.split_at, id]));
  assert.deepEqual(Object.keys(at), ["5", "12"]);
  const plain = planners.map(([, { inputs }]) => ({ ...inputs, split_at: 0 }));
  assert.deepEqual(plain[0], plain[1], "equal inputs plan equal steps");
  const inputs = (name) => made[ids[name]].inputs;
  for (const name of ["first", "middle", "last"]) assert.deepEqual(inputs(name).steps, [at[5], 1]);
  assert.deepEqual([inputs("first").end_at_step, inputs("middle").start_at_step], [[at[5], 3], [at[5], 3]]);
  assert.deepEqual([inputs("middle").end_at_step, inputs("last").start_at_step], [[at[12], 3], [at[12], 3]]);
  await press("BudgetFusion_BudgetPlanner");
  await press("BudgetFusion_BudgetPlanner");
  assert.deepEqual(inputsOf(await prompt()), inputsOf(stock));
});

test("sigmas that no planner can stand for are told by the node that makes them", { skip }, async () => {
  const ids = await build({
    ...BASE,
    method: { type: "KSamplerSelect", values: { sampler_name: "euler" } },
    schedule: { type: "KarrasScheduler", values: { steps: 24 } },
    sampler: { type: "SamplerCustom", values: { cfg: 6 }, links: { ...SAMPLER, sampler: ["method", 0], sigmas: ["schedule", 0] } },
    ...OUT,
  });
  const stock = inputsOf(await prompt());
  await press("SamplerCustom");
  await session.toast("levels come from KarrasScheduler").waitFor({ timeout: 5000 });
  assert.deepEqual(inputsOf(await prompt()), stock);
  await page.evaluate((id) => {
    const { graph } = window.app;
    const planner = window.LiteGraph.createNode("BudgetFusion_BudgetPlanner");
    graph.add(planner);
    planner.connect(1, graph.getNodeById(id), graph.getNodeById(id).inputs.findIndex((slot) => slot.name === "steps"));
  }, ids.schedule);
  await session.toast("steps go to KarrasScheduler").waitFor({ timeout: 5000 });
});

test("SamplerCustom gets sigmas, or its steps through a BasicScheduler of a part, and what was there comes back", { skip }, async () => {
  for (const [denoise, split] of [[1, false], [1, true], [0.6, false]]) {
    const from = split ? "split" : "schedule";
    const ids = await build({
      ...BASE,
      method: { type: "KSamplerSelect", values: { sampler_name: "res_multistep" } },
      schedule: { type: "BasicScheduler", values: { scheduler: "beta", steps: 24, denoise }, links: { model: ["loader", 0] } },
      split: { type: "SplitSigmas", values: { step: 9 }, links: { sigmas: ["schedule", 0] } },
      sampler: { type: "SamplerCustom", values: { cfg: 6 }, links: { ...SAMPLER, sampler: ["method", 0], sigmas: [from, 0] } },
      ...OUT,
    });
    const stock = await prompt();
    await press("SamplerCustom");
    const made = await prompt();
    const planner = by(made, "BudgetFusion_BudgetPlanner").inputs;
    assert.deepEqual([planner.sampler_name, planner.scheduler, planner.cfg, planner.max_steps], ["res_multistep", "beta", 6, 24]);
    const inputs = (name) => made[ids[name]].inputs;
    const [id, output] = denoise < 1 ? inputs("schedule").steps : inputs(split ? "split" : "sampler").sigmas;
    assert.deepEqual([made[id].class_type, output], ["BudgetFusion_BudgetPlanner", denoise < 1 ? 1 : 2]);
    if (split) assert.deepEqual(inputs("split").step, [id, 3]);
    const again = await page.evaluate((id) => Boolean(window.bf.entry(window.app.graph.getNodeById(id))), ids.sampler);
    assert.equal(again, false, "a planned sampler is not offered again");
    await press("BudgetFusion_BudgetPlanner");
    assert.deepEqual(inputsOf(await prompt()), inputsOf(stock));
  }
});

test("inside a subgraph the links to its inputs and outputs stay", { skip }, async () => {
  await build(KSAMPLER);
  await page.evaluate(() => {
    const sampler = window.bf.find("KSampler");
    window.app.graph.convertToSubgraph(new Set([sampler]));
  });
  const stock = await prompt();
  await page.evaluate(() => {
    const outer = window.app.graph.nodes.find((node) => node.subgraph);
    window.bf.press("KSampler", outer.subgraph);
  });
  const made = await prompt();
  const [before, ours] = [by(stock, "KSampler").inputs, by(made, "BudgetFusion_AdaptiveKSampler").inputs];
  for (const name of ["model", "positive", "negative", "latent_image", "seed", "cfg"]) assert.deepEqual(ours[name], before[name], name);
  assert.equal(ours.max_steps, before.steps);
  assert.equal(made[by(made, "VAEDecode").inputs.samples[0]].class_type, "BudgetFusion_AdaptiveKSampler");
});

test("other nodes have no such entry", { skip }, async () => {
  await build({ ...BASE, sampler: { type: "SamplerCustom", links: SAMPLER } });
  const found = await page.evaluate(() => ["VAEDecode", "CLIPTextEncode", "SamplerCustom"].map((type) => {
    const node = window.bf.find(type) ?? window.LiteGraph.createNode(type);
    return Boolean(window.bf.entry(node));
  }));
  assert.deepEqual(found, [false, false, false]);
});

test("bypassed, Adaptive KSampler hands no seed on as steps", { skip }, async () => {
  await build({
    ...BASE,
    number: { type: "PrimitiveInt", values: { value: 123456 } },
    first: { type: "BudgetFusion_AdaptiveKSampler", links: { ...SAMPLER, seed: ["number", 0] } },
    sampler: { type: "KSampler", values: { steps: 20 }, links: { ...SAMPLER, latent_image: ["first", 0], steps: ["first", 1] } },
    ...OUT,
  });
  const saved = await page.evaluate(async () => {
    window.bf.find("BudgetFusion_AdaptiveKSampler").mode = 4;
    return JSON.parse(JSON.stringify(window.app.graph.serialize()));
  });
  const plain = async () => by(await prompt(), "KSampler").inputs;
  const fresh = await plain();
  assert.ok(!Array.isArray(fresh.steps), `steps came from ${JSON.stringify(fresh.steps)}`);
  assert.ok(Array.isArray(fresh.latent_image));
  await page.evaluate((data) => window.app.loadGraphData(data), saved);
  await page.waitForTimeout(600);
  const loaded = await plain();
  assert.ok(!Array.isArray(loaded.steps), "after loading too");
});

test("nothing of ours went wrong in the page", { skip }, () => {
  assert.deepEqual(session.complaints.filter((text) => /uncaught|budgetfusion/i.test(text)), []);
});
