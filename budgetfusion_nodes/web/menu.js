// @ts-check
/** Menu entries that put a plan into a graph where a stock sampler is, with all links and values, and take it out again. */

// @ts-ignore served by the host
import { app } from "../../scripts/app.js";
import { t } from "./messages.js";
import { ADAPTIVE, PLANNED, PLANNER, SOURCES, carried, isSplit, misfit, recipe, replacement, restored, schedulerName } from "./swap.js";

/**
 * @typedef {any} GraphNode LiteGraph's node
 * @typedef {import("./swap.js").Part} Part
 * @typedef {import("./swap.js").Recipe} Recipe
 * @typedef {import("./swap.js").Refusal} Refusal
 */

const GAP = 60; // pixels between a planner and the sampler below it
const OUTPUT = 2; // LiteGraph's side of a link
const TOAST_MS = 15000; // long enough to read two sentences

app.registerExtension({
  name: "BudgetFusion.Menu",
  /** @param {GraphNode} node */
  getNodeMenuItems(node) {
    const action = actionFor(node);
    return action ? [null, { content: t(action.label), callback: action.run }] : [];
  },
  /** @param {GraphNode} node */
  nodeCreated(node) {
    if (typeOf(node) !== PLANNER) return;
    const before = node.onConnectionsChange;
    node.onConnectionsChange = function (/** @type {any[]} */ ...change) {
      before?.apply(this, change);
      const [side, , connected, link] = change;
      if (side === OUTPUT && connected && link && !app.configuringGraph) warn(node, link);
    };
  },
});

/**
 * The entry of ours in a node's menu: plans it, goes back, or says why it cannot be planned.
 * @param {GraphNode} node @returns {{label: string, run: () => void} | null}
 */
export function actionFor(node) {
  const type = typeOf(node);
  const undoable = (/** @type {() => void} */ run) => () => change(node.graph, run);
  if (type === "KSampler" || type === ADAPTIVE) {
    return { label: type === ADAPTIVE ? "menu_unplan" : "menu_plan", run: undoable(() => swap(node)) };
  }
  if (type === PLANNER) return { label: "menu_unplan", run: undoable(() => removePlanner(node)) };
  if (!PLANNED.includes(type) || plannerOf(node)) return null;
  const made = recipeOf(node);
  if (!made) return null;
  if ("why" in made) return { label: "menu_why", run: () => explain(node, made) };
  return { label: "menu_plan", run: undoable(() => addPlanner(node, made)) };
}

/** @param {GraphNode} node @param {Refusal} refusal */
function explain(node, { why, part }) {
  tell("info", t("menu_why"), t(why, { node: called(partsOf(node)[part]) }));
}

/** Says at once where a planner's steps or sigmas go to a node that is set otherwise. @param {GraphNode} planner @param {any} link */
function warn(planner, link) {
  const taker = planner.graph?.getNodeById(link.target_id);
  const output = planner.outputs?.[link.origin_slot]?.name;
  if (!taker || !["steps", "sigmas"].includes(output)) return;
  const select = sourceOf(taker, "sampler");
  const sigmas = (taker.outputs ?? []).some((/** @type {any} */ slot) => slot.type === "SIGMAS") && output === "steps";
  const found = misfit(valuesOf(planner), knownOf(taker), sigmas, select ? knownOf(select) : null);
  if (found) tell("warn", planner.title, t(found.why, { node: called(taker), ...found.values }));
}

/** @param {"info" | "warn"} severity @param {string} summary @param {string} detail */
function tell(severity, summary, detail) {
  app.extensionManager?.toast?.add({ severity, summary, detail, life: TOAST_MS });
}

/** @param {GraphNode} node */
function called(node) {
  return node.title || typeOf(node);
}

/** @param {GraphNode} node */
function typeOf(node) {
  return node?.comfyClass ?? node?.type ?? "";
}

/** One step for undo. @param {any} graph @param {() => void} run */
function change(graph, run) {
  app.canvas?.emitBeforeChange?.();
  graph.beforeChange?.();
  try {
    run();
  } finally {
    graph.afterChange?.();
    app.canvas?.emitAfterChange?.();
    graph.setDirtyCanvas?.(true, true);
  }
}

// ------------------------------------------------------------------------------------------------- one for another

/** @param {GraphNode} old */
function swap(old) {
  const how = /** @type {import("./swap.js").Replacement} */ (replacement(typeOf(old)));
  const { graph } = old;
  const made = create(how.type);
  const into = inputLinks(old);
  const out = outputLinks(old);
  const values = carried(valuesOf(old), how, (made.widgets ?? []).map((/** @type {any} */ w) => w.name));
  made.pos = [...old.pos];
  for (const key of ["color", "bgcolor", "mode", "shape"]) if (old[key] !== undefined) made[key] = old[key];
  made.flags = { ...old.flags };
  if (old.title !== titleOf(typeOf(old))) made.title = old.title;
  const id = old.id;
  graph.remove(old);
  made.id = id; // what refers to the node by its number goes on to find one
  graph.add(made);
  setValues(made, values);
  for (const { name, source } of into) join(graph, source, made, how.names[name] ?? name);
  for (const { slot, target } of out) if (slot in how.outputs) joinOutput(graph, made, how.outputs[slot], target);
  made.setSize?.([Math.max(old.size[0], made.size[0]), made.computeSize?.()[1] ?? made.size[1]]);
}

// ------------------------------------------------------------------------------------------------- a planner beside

/** @param {GraphNode} node @returns {Record<Part, GraphNode>} the sampler and what it gets its schedule from */
function partsOf(node) {
  const parts = /** @type {Record<Part, GraphNode>} */ ({ sampler: node });
  for (const [part, input] of Object.entries(SOURCES)) {
    const found = sourceOf(node, input);
    if (found) parts[/** @type {Part} */ (part)] = found;
  }
  if (isSplit(typeOf(parts.scheduler))) {
    parts.split = parts.scheduler;
    parts.scheduler = sourceOf(parts.split, "sigmas");
  }
  return parts;
}

/** @param {GraphNode} node @returns {Recipe | Refusal | null} */
function recipeOf(node) {
  const known = Object.entries(partsOf(node)).filter(([, part]) => part).map(([name, part]) => [name, knownOf(part)]);
  return recipe(Object.fromEntries(known));
}

/**
 * One planner for a sampler, or for the whole chain that it is part of. A planner has one split, so a chain with more gets
 * one more planner of the same setting for each: equal inputs plan equal steps.
 * @param {GraphNode} node @param {Recipe} made
 */
function addPlanner(node, made) {
  const first = firstOf(node);
  const found = first === node ? made : recipeOf(first);
  const [start, how] = found && !("why" in found) ? [first, found] : [node, made];
  const members = [start, ...chainAfter(start)];
  const all = splitsOf(members);
  const planners = (all.length ? all : [null]).map((split, index) => {
    const planner = placed(start, how, index);
    if (!split) return planner;
    setValues(planner, { split_at: split.at });
    if (split.link) join(node.graph, sourceOfLink(node.graph, split.link), planner, "split_at");
    for (const { target, input } of split.targets) connect(planner, "split_step", target, input);
    return planner;
  });
  for (const member of members) {
    const own = member === start ? how : recipeOf(member);
    const theirs = partsOf(member);
    for (const [output, part, input] of own && "gives" in own ? own.gives : []) connect(planners[0], output, theirs[part], input);
  }
}

/** A planner above `start`, set and linked like it. @param {GraphNode} start @param {Recipe} how @param {number} index */
function placed(start, how, index) {
  const { graph } = start;
  const planner = create(PLANNER);
  graph.add(planner);
  planner.pos = [start.pos[0] + index * (planner.size[0] + GAP), start.pos[1] - planner.size[1] - GAP];
  setValues(planner, how.values);
  const parts = partsOf(start);
  for (const [input, part, from] of how.takes) {
    const link = linkInto(parts[part], from);
    if (link) join(graph, sourceOfLink(graph, link), planner, input);
  }
  return planner;
}

/**
 * Every different step at which the members of a chain change over, and all inputs that hold it.
 * @param {GraphNode[]} members
 * @returns {{at: number, link: any, targets: {target: GraphNode, input: string}[]}[]}
 */
function splitsOf(members) {
  /** @type {Map<string, {at: number, link: any, targets: {target: GraphNode, input: string}[]}>} */
  const found = new Map();
  for (const member of members) {
    const own = recipeOf(member);
    const parts = partsOf(member);
    for (const { at, from, inputs } of own && "splits" in own ? own.splits : []) {
      const link = linkInto(parts[from[0]], from[1]);
      const key = link ? `${link.origin_id}:${link.origin_slot}` : String(at);
      const entry = found.get(key) ?? { at, link, targets: [] };
      entry.targets.push(...inputs.map(([part, input]) => ({ target: parts[part], input })));
      found.set(key, entry);
    }
  }
  return [...found.values()];
}

/** KSamplerAdvanced nodes that go on with this one's latent and the same number of steps. @param {GraphNode} node @returns {GraphNode[]} */
function chainAfter(node) {
  if (typeOf(node) !== "KSamplerAdvanced") return [];
  const next = outputLinks(node).map(({ target }) => target.node).filter((other) => continues(node, other));
  return next.flatMap((other) => [other, ...chainAfter(other)]);
}

/** The first of a chain. @param {GraphNode} node @returns {GraphNode} */
function firstOf(node) {
  const before = typeOf(node) === "KSamplerAdvanced" ? sourceOf(node, "latent_image") : null;
  return before && continues(before, node) && !plannerOf(before) ? firstOf(before) : node;
}

/** @param {GraphNode} before @param {GraphNode} after */
function continues(before, after) {
  if (typeOf(before) !== "KSamplerAdvanced" || typeOf(after) !== "KSamplerAdvanced") return false;
  return valuesOf(before).steps === valuesOf(after).steps && Number(valuesOf(after).start_at_step) > 0;
}

/** The planner that gives this sampler its steps. @param {GraphNode} node */
function plannerOf(node) {
  const parts = partsOf(node);
  const found = [sourceOf(node, "steps"), parts.scheduler, parts.scheduler && sourceOf(parts.scheduler, "steps")];
  return found.find((other) => typeOf(other) === PLANNER) ?? null;
}

/** @param {GraphNode} planner */
function removePlanner(planner) {
  const { graph } = planner;
  const values = valuesOf(planner);
  for (const { slot, target } of outputLinks(planner)) {
    const output = planner.outputs[slot].name;
    if (output === "sigmas") stockSigmas(planner, target);
    const back = restored(output, values);
    if (!back || !target.node) continue;
    const name = target.node.inputs[target.slot].widget?.name ?? target.node.inputs[target.slot].name;
    const link = linkInto(planner, back.from);
    target.node.disconnectInput(target.slot);
    if (link) join(graph, sourceOfLink(graph, link), target.node, name);
    else setValues(target.node, { [name]: back.value });
  }
  graph.remove(planner);
}

/** The scheduler node of before, or a BasicScheduler, where the planner's sigmas went. @param {GraphNode} planner @param {Target} target */
function stockSigmas(planner, target) {
  const { graph } = planner;
  const { scheduler, max_steps } = valuesOf(planner);
  const made = graph.nodes.find((/** @type {GraphNode} */ node) => {
    const { steps, denoise = 1 } = valuesOf(node);
    const same = schedulerName(knownOf(node)) === scheduler && Number(denoise) === 1;
    return same && (steps === max_steps || !outputLinks(node).length);
  }) ?? placedScheduler(planner, scheduler);
  setValues(made, { steps: max_steps });
  joinOutput(graph, made, 0, target);
}

/** @param {GraphNode} planner @param {string} scheduler @returns {GraphNode} */
function placedScheduler(planner, scheduler) {
  const { graph } = planner;
  const made = create("BasicScheduler");
  graph.add(made);
  made.pos = [...planner.pos];
  setValues(made, { scheduler, denoise: 1 });
  const link = linkInto(planner, "model");
  if (link) join(graph, sourceOfLink(graph, link), made, "model");
  return made;
}

// ------------------------------------------------------------------------------------------------- LiteGraph

/**
 * @typedef {{node: GraphNode | null, slot: number, reroute?: number}} Source node null: the subgraph's own input
 * @typedef {{node: GraphNode | null, slot: number}} Target node null: the subgraph's own output
 */

/** @param {string} type @returns {GraphNode} */
function create(type) {
  const made = /** @type {any} */ (globalThis).LiteGraph.createNode(type);
  if (!made) throw new Error(`BudgetFusion: the page knows no node ${type}.`);
  return made;
}

/** @param {string} type what a node is called unless somebody named it */
function titleOf(type) {
  return /** @type {any} */ (globalThis).LiteGraph.registered_node_types[type]?.title;
}

/** @param {GraphNode} node @returns {import("./swap.js").Known} */
function knownOf(node) {
  return { type: typeOf(node), values: valuesOf(node), linked: inputLinks(node).map(({ name }) => name) };
}

/** @param {GraphNode} node @returns {Record<string, any>} */
function valuesOf(node) {
  const saved = (node.widgets ?? []).filter((/** @type {any} */ widget) => widget.serialize !== false);
  return Object.fromEntries(saved.map((/** @type {any} */ { name, value }) => [name, value]));
}

/** @param {GraphNode} node @param {Record<string, any>} values */
function setValues(node, values) {
  for (const widget of node.widgets ?? []) {
    if (!(widget.name in values) || values[widget.name] === undefined) continue;
    widget.value = values[widget.name];
    widget.callback?.(widget.value, app.canvas, node);
  }
}

/** @param {GraphNode} node @param {string} name */
function inputSlot(node, name) {
  return (node.inputs ?? []).findIndex((/** @type {any} */ slot) => (slot.widget?.name ?? slot.name) === name);
}

/** @param {GraphNode | undefined} node @param {string} name */
function linkInto(node, name) {
  const slot = node ? inputSlot(node, name) : -1;
  const id = slot < 0 ? null : node.inputs[slot].link;
  return id == null ? null : node.graph.getLink?.(id) ?? node.graph.links.get?.(id) ?? node.graph.links[id];
}

/** @param {any} graph @param {any} link @returns {Source} */
function sourceOfLink(graph, link) {
  return { node: graph.getNodeById(link.origin_id) ?? null, slot: link.origin_slot, reroute: link.parentId };
}

/** The node that feeds an input. @param {GraphNode} node @param {string} name */
function sourceOf(node, name) {
  const link = linkInto(node, name);
  return link ? sourceOfLink(node.graph, link).node : null;
}

/** @param {GraphNode} node @returns {{name: string, source: Source}[]} */
function inputLinks(node) {
  return (node.inputs ?? [])
    .map((/** @type {any} */ slot) => ({ name: slot.widget?.name ?? slot.name, link: linkInto(node, slot.widget?.name ?? slot.name) }))
    .filter((/** @type {any} */ { link }) => link)
    .map((/** @type {any} */ { name, link }) => ({ name, source: sourceOfLink(node.graph, link) }));
}

/** @param {GraphNode} node @returns {{slot: number, target: Target}[]} */
function outputLinks(node) {
  const { graph } = node;
  return (node.outputs ?? []).flatMap((/** @type {any} */ output, /** @type {number} */ slot) =>
    [...(output.links ?? [])].map((id) => {
      const link = graph.getLink?.(id) ?? graph.links.get?.(id) ?? graph.links[id];
      return { slot, target: { node: graph.getNodeById(link.target_id) ?? null, slot: link.target_slot } };
    }),
  );
}

/** @param {any} graph @param {Source} source @param {GraphNode} node @param {string} name */
function join(graph, source, node, name) {
  const slot = inputSlot(node, name);
  if (slot < 0) return;
  if (source.node) source.node.connect(source.slot, node, slot, source.reroute);
  else graph.inputs?.[source.slot]?.connect(node.inputs[slot], node);
}

/** @param {any} graph @param {GraphNode} node @param {number} slot @param {Target} target */
function joinOutput(graph, node, slot, target) {
  if (target.node) node.connect(slot, target.node, target.slot);
  else graph.outputs?.[target.slot]?.connect(node.outputs[slot], node);
}

/** @param {GraphNode} from @param {string} output @param {GraphNode} to @param {string} input */
function connect(from, output, to, input) {
  const [out, into] = [from.outputs.findIndex((/** @type {any} */ slot) => slot.name === output), inputSlot(to, input)];
  if (out >= 0 && into >= 0) from.connect(out, to, into);
}
