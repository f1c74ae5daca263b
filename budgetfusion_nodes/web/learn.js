// @ts-check
/**
 * Learn from my renders: queues a small graph of its own after a planned render, while nothing else is queued.
 * The node Learn gives way by itself as soon as something is.
 */

/**
 * @typedef {{class_type: string, inputs: Record<string, any>}} ApiNode
 * @typedef {Record<string, ApiNode>} ApiGraph
 * @typedef {{fetchApi(route: string, options?: object): Promise<Response>}} Api
 */

const SAMPLER = "BudgetFusion_AdaptiveKSampler";
const SAME = [
  "model", "positive", "negative", "latent_image", "seed", "cfg", "sampler_name", "scheduler", "planner", "schedule",
];
const OWN_ID = "budgetfusion_learn";
const IDLE_MS = 2000; // the artist may be about to queue the next
const LOOK_MS = 5000;

/** A link of an API graph. @param {any} value */
function isLink(value) {
  return Array.isArray(value) && value.length === 2 && typeof value[1] === "number";
}

/**
 * The graph that learns from one of the renders of a finished run; null where there is none: no plan, no nested
 * schedule, or no VAE Decode of its picture.
 * @param {ApiGraph} graph as it ran @param {Record<string, any>} outputs node -> what it showed
 * @param {number} perHour @returns {ApiGraph | null}
 */
export function learningGraph(graph, outputs, perHour) {
  for (const [id, node] of Object.entries(graph)) {
    const plan = outputs[id]?.budget_plan?.[0];
    if (node.class_type !== SAMPLER || !plan || plan.fallback || !plan.decision || !plan.prefix_steps) continue;
    const decode = Object.values(graph).find(
      ({ class_type, inputs }) =>
        class_type === "VAEDecode" && isLink(inputs.samples) && String(inputs.samples[0]) === id,
    );
    if (!decode) continue;
    const same = SAME.filter((name) => name in node.inputs).map((name) => [name, node.inputs[name]]);
    const inputs = { ...Object.fromEntries(same), vae: decode.inputs.vae, per_hour: perHour };
    return { ...above(graph, inputs), [OWN_ID]: { class_type: "BudgetFusion_Learn", inputs } };
  }
  return null;
}

/** Every node that these inputs need. @param {ApiGraph} graph @param {Record<string, any>} inputs @returns {ApiGraph} */
function above(graph, inputs) {
  /** @type {ApiGraph} */
  const found = {};
  const open = Object.values(inputs).filter(isLink).map(([id]) => String(id));
  while (open.length) {
    const id = /** @type {string} */ (open.pop());
    if (id in found || !(id in graph)) continue;
    found[id] = graph[id];
    open.push(...Object.values(graph[id].inputs).filter(isLink).map(([source]) => String(source)));
  }
  return found;
}

/** Watches finished runs of this page, for as long as it is open. */
export class Learner {
  /** @param {Api} api @param {() => number} perHour pictures an hour, 0 for off */
  constructor(api, perHour) {
    this.api = api;
    this.perHour = perHour;
    /** Own runs whose entry in the history is still to be taken out. @type {Set<string>} */
    this.own = new Set();
  }

  /** @param {string | undefined} promptId of the run that has just ended well */
  async onSuccess(promptId) {
    if (!promptId || !(this.perHour() > 0)) return;
    await new Promise((resolve) => setTimeout(resolve, IDLE_MS));
    try {
      if (await this.isIdle()) await this.learn(promptId);
    } catch (error) {
      console.warn("BudgetFusion could not learn from this render.", error);
    }
  }

  async isIdle() {
    const queue = await (await this.api.fetchApi("/queue")).json();
    return !queue.queue_running.length && !queue.queue_pending.length;
  }

  /** @param {string} promptId */
  async learn(promptId) {
    const entry = (await (await this.api.fetchApi(`/history/${promptId}`)).json())[promptId];
    const graph = entry && learningGraph(entry.prompt[2], entry.outputs ?? {}, this.perHour());
    if (!graph) return;
    // without a client id, so that this page neither shows it as the artist's run nor learns from it again
    const answer = await this.post("/prompt", { prompt: graph });
    if (!answer.ok) return;
    this.own.add((await answer.json()).prompt_id);
    setTimeout(() => this.tidy(), LOOK_MS);
  }

  /** Takes finished runs of its own out of the history. */
  async tidy() {
    for (const id of this.own) {
      if (!(id in (await (await this.api.fetchApi(`/history/${id}`)).json()))) continue;
      await this.post("/history", { delete: [id] });
      this.own.delete(id);
    }
    if (this.own.size) setTimeout(() => this.tidy(), LOOK_MS);
  }

  /** @param {string} route @param {object} body */
  post(route, body) {
    const headers = { "Content-Type": "application/json" };
    return this.api.fetchApi(route, { method: "POST", headers, body: JSON.stringify(body) });
  }
}
