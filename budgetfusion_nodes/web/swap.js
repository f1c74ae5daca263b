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
 * @typedef {{values: Values, takes: [string, Part, string][], gives: [string, Part, string][]}} Recipe
 *   of a Budget Planner: values; planner input <- the source of a part's input; planner output -> a part's input
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
const SPLIT = "SplitSigmas";
const SELECT = "KSamplerSelect";

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
 * How to plan a sampler of PLANNED. Null where the parts do not tell what would be planned: a schedule that is neither
 * BasicScheduler's nor its split, a method that is not KSamplerSelect's, a guider with more than one guidance.
 * @param {Parts} parts
 * @returns {Recipe | null}
 */
export function recipe(parts) {
  const { sampler } = parts;
  if (sampler?.type === "KSamplerAdvanced") return advanced(sampler);
  if (sampler?.type === "SamplerCustom" || sampler?.type === "SamplerCustomAdvanced") return custom(parts);
  return null;
}

/** @param {Known} sampler @returns {Recipe | null} */
function advanced(sampler) {
  const [split, ...more] = splits(sampler);
  if (more.length) return null; // a part in the middle: a planner has one split
  const { steps, sampler_name, scheduler, cfg } = sampler.values;
  /** @type {Recipe} */
  const made = {
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
  };
  if (split) {
    made.values.split_at = split.at;
    made.takes.push(["split_at", "sampler", split.inputs[0]]);
    for (const input of split.inputs) made.gives.push(["split_step", "sampler", input]);
  }
  return made;
}

/** @param {Parts} parts @returns {Recipe | null} */
function custom({ sampler, scheduler, select, guider, split }) {
  if (!sampler || scheduler?.type !== SCHEDULER || select?.type !== SELECT) return null;
  const guided = guidance(sampler, guider);
  if (!guided) return null;
  /** @type {Recipe} */
  const made = {
    values: {
      sampler_name: select.values.sampler_name,
      scheduler: scheduler.values.scheduler,
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
    gives: [["steps", "scheduler", "steps"]],
  };
  if (split) {
    made.values.split_at = split.values.step;
    made.takes.push(["split_at", "split", "step"]);
    made.gives.push(["split_step", "split", "step"]);
  }
  return made;
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
