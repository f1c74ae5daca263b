// @ts-check
/** Menu entries that put a plan into a graph where a stock sampler is, with all links and values, and take it out again. */

// @ts-ignore served by the host
import { app } from "../../scripts/app.js";
import { t } from "./messages.js";
import { ADAPTIVE, PLANNED, PLANNER, SOURCES, carried, isSplit, recipe, replacement, restored } from "./swap.js";

/**
 * @typedef {any} GraphNode LiteGraph's node
 * @typedef {import("./swap.js").Part} Part
 * @typedef {import("./swap.js").Recipe} Recipe
 */

const GAP = 60; // pixels between a planner and the sampler below it

app.registerExtension({
  name: "BudgetFusion.Menu",
  /** @param {GraphNode} node */
  getNodeMenuItems(node) {
    const action = actionFor(node);
    return action ? [null, { content: t(action.label), callback: () => change(node.graph, action.run) }] : [];
  },
});

/** @param {GraphNode} node @returns {{label: string, run: () => void} | null} */
export function actionFor(node) {
  const type = typeOf(node);
  if (type === "KSampler" || type === ADAPTIVE) {
    return { label: type === ADAPTIVE ? "menu_unplan" : "menu_plan", run: () => swap(node) };
  }
  if (type === PLANNER) return { label: "menu_unplan", run: () => removePlanner(node) };
  if (!PLANNED.includes(type) || plannerOf(node)) return null;
  const made = recipeOf(node);
  return made ? { label: "menu_plan", run: () => addPlanner(node, made) } : null;
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

/** @param {GraphNode} node @returns {Recipe | null} */
function recipeOf(node) {
  const known = Object.entries(partsOf(node)).filter(([, part]) => part).map(([name, part]) => [name, knownOf(part)]);
  return recipe(Object.fromEntries(known));
}

/** @param {GraphNode} node @param {Recipe} made */
function addPlanner(node, made) {
  const { graph } = node;
  const first = firstOf(node);
  const how = first === node ? made : recipeOf(first) ?? made;
  const planner = create(PLANNER);
  const start = how === made ? node : first;
  graph.add(planner);
  planner.pos = [start.pos[0], start.pos[1] - planner.size[1] - GAP];
  setValues(planner, how.values);
  const parts = partsOf(start);
  for (const [input, part, from] of how.takes) {
    const link = linkInto(parts[part], from);
    if (link) join(graph, sourceOfLink(graph, link), planner, input);
  }
  for (const member of [start, ...chainAfter(start)]) {
    const own = member === start ? how : recipeOf(member);
    const theirs = partsOf(member);
    for (const [output, part, input] of own?.gives ?? []) connect(planner, output, theirs[part], input);
    if (own?.values.split_at && !Number(valuesOf(planner).split_at)) setValues(planner, { split_at: own.values.split_at });
  }
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
  const found = [sourceOf(node, "steps"), sourceOf(node, "sigmas"), parts.scheduler && sourceOf(parts.scheduler, "steps")];
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

/** A BasicScheduler where the planner's sigmas went. @param {GraphNode} planner @param {Target} target */
function stockSigmas(planner, target) {
  const { graph } = planner;
  const { scheduler, max_steps } = valuesOf(planner);
  const made = create("BasicScheduler");
  graph.add(made);
  made.pos = [...planner.pos];
  setValues(made, { scheduler, steps: max_steps, denoise: 1 });
  const link = linkInto(planner, "model");
  if (link) join(graph, sourceOfLink(graph, link), made, "model");
  joinOutput(graph, made, 0, target);
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
