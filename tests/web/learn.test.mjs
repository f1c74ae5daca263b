// node --test tests/web
import assert from "node:assert/strict";
import { test } from "node:test";

import { Learner, learningGraph } from "../../budgetfusion_nodes/web/learn.js";

const GRAPH = {
  1: { class_type: "CheckpointLoaderSimple", inputs: { ckpt_name: "a.safetensors" } },
  2: { class_type: "CLIPTextEncode", inputs: { clip: ["1", 1], text: "a star" } },
  3: { class_type: "CLIPTextEncode", inputs: { clip: ["1", 1], text: "" } },
  4: { class_type: "EmptyLatentImage", inputs: { width: 64, height: 64, batch_size: 1 } },
  5: {
    class_type: "BudgetFusion_AdaptiveKSampler",
    inputs: {
      model: ["1", 0], positive: ["2", 0], negative: ["3", 0], latent_image: ["4", 0],
      seed: 7, quality: 0.9, max_steps: 50, cfg: 3, sampler_name: "euler", scheduler: "normal",
    },
  },
  6: { class_type: "VAEDecode", inputs: { samples: ["5", 0], vae: ["1", 2] } },
  7: { class_type: "SaveImage", inputs: { images: ["6", 0], filename_prefix: "x" } },
};
const planned = (changes) => ({ 5: { budget_plan: [{ fallback: null, decision: {}, prefix_steps: 4, ...changes }] } });

test("the graph holds what the render needs, the VAE of its picture, and nothing that saves", () => {
  const graph = learningGraph(GRAPH, planned({}), 6);
  assert.deepEqual(Object.keys(graph).sort(), ["1", "2", "3", "4", "budgetfusion_learn"]);
  const { inputs } = graph.budgetfusion_learn;
  assert.deepEqual(inputs.vae, ["1", 2]);
  assert.equal(inputs.seed, 7);
  assert.equal(inputs.per_hour, 6);
  assert.ok(!("quality" in inputs) && !("max_steps" in inputs));
});

test("nothing is learned from a fallback, a stock schedule, or a picture that nothing decodes", () => {
  assert.equal(learningGraph(GRAPH, planned({ fallback: { code: "x", values: {} } }), 6), null);
  assert.equal(learningGraph(GRAPH, planned({ prefix_steps: 0 }), 6), null);
  assert.equal(learningGraph(GRAPH, {}, 6), null);
  const { 6: _decode, ...without } = GRAPH;
  assert.equal(learningGraph(without, planned({}), 6), null);
});

/** A host whose queue is empty or not. */
function host(waiting) {
  const asked = [];
  const history = { run: { prompt: [0, "run", GRAPH], outputs: planned({}) } };
  const answers = {
    "/queue": { queue_running: [], queue_pending: waiting },
    "/history/run": history,
    "/history/own": {},
    "/prompt": { prompt_id: "own" },
  };
  const fetchApi = async (route, options) => {
    asked.push(`${options?.method ?? "GET"} ${route}`);
    return { ok: true, json: async () => answers[route] };
  };
  return { asked, api: { fetchApi } };
}

test("off, or with something queued, nothing is asked of the host's sampler", async (t) => {
  t.mock.timers.enable({ apis: ["setTimeout"] });
  for (const [perHour, waiting, wanted] of [[0, [], 0], [3, [["next"]], 0], [3, [], 1]]) {
    const { asked, api } = host(waiting);
    const done = new Learner(api, () => perHour).onSuccess("run");
    t.mock.timers.tick(2000);
    await done;
    assert.equal(asked.filter((one) => one === "POST /prompt").length, wanted);
  }
});
