// @ts-check
/** What is asked of the host's nodes: their names, links and sizes, and being called with them. */

// @ts-ignore served by the host
import { app } from "../../scripts/app.js";

/**
 * @typedef {{name: string, value: any, margin?: number, serialize?: boolean, callback?: (...values: any[]) => any}} Widget
 * @typedef {{name: string, link: number | null, widget?: {name: string}}} Slot
 * @typedef {{id: number | string, comfyClass?: string, title: string, size: [number, number],
 *   graph: any, widgets?: Widget[], inputs?: Slot[],
 *   addDOMWidget(name: string, type: string, element: HTMLElement, options: object): Widget,
 *   setSize(size: [number, number]): void, computeSize(): [number, number],
 *   getInputNode(slot: number): GraphNode | null, setDirtyCanvas(front: boolean, back: boolean): void,
 *   onExecuted?: Function, onRemoved?: Function, onConnectionsChange?: Function}} GraphNode
 * What of LiteGraph's node is used here.
 */

/**
 * Calls `after` whenever this object's own `name` is called; returns what takes it off again.
 * @param {any} owner one node or widget, never a prototype
 * @param {string} name @param {(...values: any[]) => void} after
 */
export function chain(owner, name, after) {
  const had = Object.hasOwn(owner, name);
  const before = owner[name];
  /** @this {any} @param {any[]} values */
  function chained(...values) {
    const result = before?.apply(this, values);
    after(...values);
    return result;
  }
  owner[name] = chained;
  return () => {
    if (owner[name] !== chained) return; // another extension chained after us and still calls us
    if (had) owner[name] = before;
    else delete owner[name];
  };
}

/** @param {GraphNode} node @param {string} name */
export function isLinked(node, name) {
  return (node.inputs ?? []).some((slot) => (slot.widget?.name ?? slot.name) === name && slot.link != null);
}

/** Grows the node where its panel needs more room. @param {GraphNode} node */
export function fit(node) {
  const needed = node.computeSize()[1];
  if (node.size[1] < needed) node.setSize([node.size[0], needed]);
  node.setDirtyCanvas(true, true);
}

/** @returns {string | undefined} */
export function workflowId() {
  return rootGraph()?.id;
}

/** The workflow's outermost graph. */
export function rootGraph() {
  return app.rootGraph ?? app.graph;
}

/** The page's name for a node's output: inside a subgraph the graph's id goes first. @param {GraphNode} node */
export function outputKey(node) {
  const inside = node.graph && node.graph !== rootGraph();
  return inside ? `${node.graph.id}:${node.id}` : String(node.id);
}

/**
 * The host's names for a node: those of the subgraph nodes around it go first, and a subgraph may be used twice.
 * @param {GraphNode} node
 * @returns {string[]}
 */
export function executionIds(node, graph = rootGraph(), before = "") {
  if (node.graph === graph) return [`${before}${node.id}`];
  const outer = (graph?.nodes ?? []).filter((/** @type {any} */ other) => other.subgraph);
  return outer.flatMap((/** @type {any} */ other) => executionIds(node, other.subgraph, `${before}${other.id}:`));
}
