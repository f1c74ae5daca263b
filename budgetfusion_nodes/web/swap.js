// @ts-check
/**
 * What takes the place of a sampler when an artist asks to plan its steps, and what goes back. Pure: nodes come as their
 * type, values and sources, and a recipe says what to make and link. menu.js carries it out on the graph.
 */

export const ADAPTIVE = "BudgetFusion_AdaptiveKSampler";
export const PLANNER = "BudgetFusion_BudgetPlanner";

/**
 * @typedef {Record<string, any>} Values widget name -> value
 * @typedef {{type: string, values: Values, linked: string[]}} Known
 *   a node: what its widgets hold, and the names of the inputs that have a link
 * @typedef {{type: string, names: Record<string, string>, outputs: Record<number, number>}} Replacement
 *   another node for one; inputs keep their names but for `names` (old -> new); outputs are old -> new index
 * @typedef {"sampler" | "scheduler" | "select" | "guider" | "split"} Part
 * @typedef {Partial<Record<Part, Known>>} Parts the sampler, and the nodes that it gets its schedule, method and guidance from
 * @typedef {{at: number, from: [Part, string], inputs: [Part, string][]}} Split
 *   a step at which the graph changes over: its value, the input that it comes from, and the inputs that it goes to
 * @typedef {{values: Values, takes: [string, Part, string][], gives: [string, Part, string][], splits: Split[]}} Recipe
 *   of a Budget Planner: values; planner input <- the source of a part's input; planner output -> a part's input
 * @typedef {{why: string, part: Part}} Refusal why there is none: the key of a sentence, and the part that it is about
 */

/** @type {Record<string, Replacement>} */
const REPLACEMENTS = {
  KSampler: { type: ADAPTIVE, names: { steps: "max_steps" }, outputs: { 0: 0 } },
  [ADAPTIVE]: { type: "KSampler", names: { max_steps: "steps" }, outputs: { 0: 0 } },
};

/** Samplers that keep their place and get their step count from a Budget Planner. */
export const PLANNED = ["KSamplerAdvanced", "SamplerCustom", "SamplerCustomAdvanced"];

/** Node types that a sampler's schedule, method and guidance can be read from. */
const SCHEDULER = "BasicScheduler";
const BETA = "BetaSamplingScheduler";
const BETA_SHAPE = 0.6; // alpha and beta with which it is the host's own scheduler "beta"
const SPLIT = "SplitSigmas";
const SELECT = "KSamplerSelect";
/** Samplers that KSampler asks one sigma more for, and leaves the last but one out (comfy.samplers.KSampler). */
const DISCARDING = ["dpm_2", "dpm_2_ancestral", "uni_pc", "uni_pc_bh2"];

/** @param {string} type @returns {Replacement | null} */
export function replacement(type) {
  return REPLACEMENTS[type] ?? null;
}

/**
 * The values that the new node takes over; what only one of the two has stays as it is.
 * @param {Values} values @param {Replacement} swap @param {string[]} known widgets of the new node
 * @returns {Values}
 */
export function carried(values, swap, known) {
  const renamed = Object.entries(values).map(([name, value]) => [swap.names[name] ?? name, value]);
  return Object.fromEntries(renamed.filter(([name]) => known.includes(name)));
}

/**
 * The step at which a KSamplerAdvanced starts or ends inside its schedule, and which of its inputs say so. A linked
 * input counts: its value is not known here, but the planner can be given the same link.
 * @param {Known} sampler
 * @returns {{at: number, inputs: string[]}[]} one entry for each different step
 */
export function splits({ values, linked }) {
  const steps = Number(values.steps);
  /** @type {{at: number, inputs: string[]}[]} */
  const found = [];
  for (const name of ["start_at_step", "end_at_step"]) {
    const at = Number(values[name]);
    const inside = linked.includes(name) || (at > 0 && at < steps);
    if (!inside) continue;
    const same = found.find((entry) => !linked.includes(name) && entry.at === at);
    if (same) same.inputs.push(name);
    else found.push({ at, inputs: [name] });
  }
  return found;
}

/**
 * How to plan a sampler of PLANNED, or why it cannot be: sigmas that are no scheduler's of the host's list, a method that
 * is not KSamplerSelect's, a guider with more than one guidance. Null where a part is not connected.
 * @param {Parts} parts
 * @returns {Recipe | Refusal | null}
 */
export function recipe(parts) {
  const { sampler } = parts;
  if (sampler?.type === "KSamplerAdvanced") return advanced(sampler);
  if (sampler?.type === "SamplerCustom" || sampler?.type === "SamplerCustomAdvanced") return custom(parts);
  return null;
}

/** @param {Known} sampler @returns {Recipe} */
function advanced(sampler) {
  const { steps, sampler_name, scheduler, cfg } = sampler.values;
  return {
    values: { sampler_name, scheduler, cfg, max_steps: steps },
    takes: [
      ["model", "sampler", "model"],
      ["positive", "sampler", "positive"],
      ["latent_image", "sampler", "latent_image"],
      ["sampler_name", "sampler", "sampler_name"],
      ["scheduler", "sampler", "scheduler"],
      ["cfg", "sampler", "cfg"],
      ["max_steps", "sampler", "steps"],
    ],
    gives: [["steps", "sampler", "steps"]],
    splits: splits(sampler).map(({ at, inputs }) => ({
      at,
      from: ["sampler", inputs[0]],
      inputs: inputs.map((input) => /** @type {[Part, string]} */ (["sampler", input])),
    })),
  };
}

/** @param {Parts} parts @returns {Recipe | Refusal | null} */
function custom({ sampler, scheduler, select, guider, split }) {
  if (!sampler || !scheduler || !select || (sampler.type === "SamplerCustomAdvanced" && !guider)) return null;
  const name = schedulerName(scheduler);
  if (name === null) return { why: "why_schedule", part: "scheduler" };
  if (select.type !== SELECT) return { why: "why_method", part: "select" };
  const guided = guidance(sampler, guider);
  if (!guided) return { why: "why_guider", part: "guider" };
  return {
    values: {
      sampler_name: select.values.sampler_name,
      scheduler: name,
      cfg: guided.cfg,
      max_steps: scheduler.values.steps,
    },
    takes: [
      ["model", "scheduler", "model"],
      ...guided.takes,
      ["latent_image", "sampler", "latent_image"],
      ["sampler_name", "select", "sampler_name"],
      ["scheduler", "scheduler", "scheduler"],
      ["max_steps", "scheduler", "steps"],
    ],
    gives: [gift(scheduler, select, split)],
    splits: split ? [{ at: split.values.step, from: ["split", "step"], inputs: [["split", "step"]] }] : [],
  };
}

/**
 * What a custom sampler gets of the planner: its sigmas, which can be nested, where they are those of the scheduler node;
 * the count, which that node spaces along the stock schedule, where it renders a part, or where KSampler, whose sigmas a
 * planner gives, leaves one out.
 * @param {Known} scheduler @param {Known} select @param {Known} [split] @returns {[string, Part, string]}
 */
function gift({ values, linked }, select, split) {
  const whole = !linked.includes("denoise") && Number(values.denoise ?? 1) === 1;
  const alike = !select.linked.includes("sampler_name") && !DISCARDING.includes(select.values.sampler_name);
  return whole && alike ? ["sigmas", split ? "split" : "sampler", "sigmas"] : ["steps", "scheduler", "steps"];
}

/**
 * The scheduler of the host's list whose sigmas a node makes; null where they are its own, so that no planner that was
 * calibrated with one of the list can stand for them.
 * @param {Known} scheduler
 */
export function schedulerName({ type, values, linked }) {
  if (type === SCHEDULER) return values.scheduler;
  const plain = ["alpha", "beta"].every((name) => !linked.includes(name) && values[name] === BETA_SHAPE);
  return type === BETA && plain ? "beta" : null;
}

/**
 * Where prompt and cfg are.
 * @param {Known} sampler @param {Known} [guider]
 * @returns {{cfg: number, takes: [string, Part, string][]} | null}
 */
function guidance(sampler, guider) {
  if (sampler.type === "SamplerCustom") {
    const takes = /** @type {[string, Part, string][]} */ ([["positive", "sampler", "positive"], ["cfg", "sampler", "cfg"]]);
    return { cfg: sampler.values.cfg, takes };
  }
  if (guider?.type === "BasicGuider") return { cfg: 1, takes: [["positive", "guider", "conditioning"]] };
  if (guider?.type !== "CFGGuider") return null;
  return { cfg: guider.values.cfg, takes: [["positive", "guider", "positive"], ["cfg", "guider", "cfg"]] };
}

/** Inputs of a sampler through which its parts are found. @type {Record<"select" | "guider" | "scheduler", string>} */
export const SOURCES = { select: "sampler", guider: "guider", scheduler: "sigmas" };

/** @param {string} type whether the schedule comes through this node and is found above it */
export function isSplit(type) {
  return type === SPLIT;
}

/**
 * What a Budget Planner's consumer gets back when the planner goes: the value that the planner was made from.
 * @param {string} output the planner's
 * @param {Values} values the planner's
 * @returns {{value: number, from: string} | null} the value, and the planner input whose link goes back with it
 */
export function restored(output, values) {
  if (output === "steps") return { value: values.max_steps, from: "max_steps" };
  if (output === "split_step") return { value: values.split_at, from: "split_at" };
  return null;
}

/**
 * What is other at a node that takes a planner's steps or sigmas than what they are planned for. Null where nothing is.
 * @param {Values} planned the planner's
 * @param {Known} taker @param {boolean} makesSigmas whether it has an output of noise levels
 * @param {Known | null} select the node that gives the taker its method
 * @returns {{why: string, values: Record<string, string>} | null} key of a sentence, and what it names besides the node
 */
export function misfit(planned, taker, makesSigmas, select = null) {
  if (makesSigmas && !("scheduler" in taker.values) && schedulerName(taker) !== planned.scheduler) {
    return { why: "steps_own_sigmas", values: { scheduler: planned.scheduler } };
  }
  for (const what of ["sampler_name", "scheduler"]) {
    const holder = [taker, select].find((node) => node && what in node.values && !node.linked.includes(what));
    const now = holder?.values[what];
    if (now !== undefined && now !== planned[what]) return { why: "steps_set_otherwise", values: { what, now, was: planned[what] } };
  }
  return null;
}
