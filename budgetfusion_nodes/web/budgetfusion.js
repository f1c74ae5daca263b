// @ts-check
/** The host's side: puts a panel on each node, feeds it, and takes it away again. */

// @ts-ignore served by the host
import { app } from "../../scripts/app.js";
import { NO_RESULT, PlanPanel } from "./plan_panel.js";
import { readPlan, sentence } from "./plan_view.js";

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
 * @typedef {import("./plan_view.js").Plan} Plan
 */

const WIDTH = 340; // pixels at which headline and receipt need no second line
const WIDGET_MARGIN = 10; // what the page leaves on each side of a DOM widget unless it says otherwise
const TOAST_MS = 12000;

/** @type {Record<string, "planner" | "sampler" | "probe">} */
const KINDS = {
  BudgetFusion_BudgetPlanner: "planner",
  BudgetFusion_AdaptiveKSampler: "sampler",
  BudgetFusion_PerceptualMetricProbe: "probe",
};

/** Inputs that decide in the browser too. */
const LIVE = { quality: "quality", min_steps: "minSteps", max_steps: "maxSteps", risk: "risk" };

/** @type {Map<GraphNode, PlanPanel>} the nodes that are on a graph now */
const panels = new Map();

app.registerExtension({
  name: "BudgetFusion",

  setup() {
    const style = document.createElement("link");
    style.rel = "stylesheet";
    style.href = new URL("./budgetfusion.css", import.meta.url).href;
    document.head.append(style);
  },

  /** @param {GraphNode} node */
  nodeCreated(node) {
    const kind = KINDS[node.comfyClass ?? ""];
    if (kind) addPanel(node, kind);
  },

  afterConfigureGraph: restoreAll,

  onNodeOutputsUpdated() {
    queueMicrotask(restoreAll); // the queue's own Load fills the table only after it has announced it
  },
});

/** @param {GraphNode} node @param {"planner" | "sampler" | "probe"} kind */
function addPanel(node, kind) {
  const panel = new PlanPanel(kind, () => controlsOf(node), () => fit(node));
  /** @type {Widget} */
  const widget = node.addDOMWidget("budgetfusion", "budgetfusion_panel", panel.element, {
    serialize: false,
    hideOnZoom: false,
    getMinHeight: () => panel.minHeight + 2 * (widget.margin ?? WIDGET_MARGIN),
  });
  widget.serialize = false; // the option alone does not keep it out of widgets_values
  panels.set(node, panel);

  const undo = [
    chain(node, "onExecuted", (/** @type {any} */ output) => {
      show(node, output);
      announce(node);
    }),
    chain(node, "onConnectionsChange", () => panel.refresh()),
    ...(node.widgets ?? [])
      .filter(({ name }) => name in LIVE)
      .map((live) => chain(live, "callback", () => panel.refresh())),
  ];
  undo.push(
    chain(node, "onRemoved", () => {
      panels.delete(node);
      announced.delete(node);
      panel.destroy();
      for (const restore of undo) restore();
    }),
  );
  node.setSize([Math.max(node.size[0], WIDTH), node.size[1]]);
}

/**
 * Calls `after` whenever this object's own `name` is called; returns what takes it off again.
 * @param {any} owner one node or widget, never a prototype
 * @param {string} name @param {(...values: any[]) => void} after
 */
function chain(owner, name, after) {
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

/**
 * Where the sliders stand; null where a connected plan decides. A linked slider is left out: its value is not known.
 * @param {GraphNode} node
 */
function controlsOf(node) {
  if (isLinked(node, "plan")) return null;
  /** @type {Partial<import("./plan_view.js").Controls>} */
  const now = {};
  for (const widget of node.widgets ?? []) {
    const key = /** @type {keyof typeof now | undefined} */ (LIVE[/** @type {keyof typeof LIVE} */ (widget.name)]);
    if (key && !isLinked(node, widget.name)) now[key] = Number(widget.value);
  }
  return now;
}

/** @param {GraphNode} node @param {string} name */
function isLinked(node, name) {
  return (node.inputs ?? []).some((slot) => (slot.widget?.name ?? slot.name) === name && slot.link != null);
}

/** Grows the node where its panel needs more room. @param {GraphNode} node */
function fit(node) {
  const needed = node.computeSize()[1];
  if (node.size[1] < needed) node.setSize([node.size[0], needed]);
  node.setDirtyCanvas(true, true);
}

// ------------------------------------------------------------------------------------------------------ results

/** @param {GraphNode} node @param {any} output the node's `ui` dict */
function show(node, output) {
  const panel = panels.get(node);
  if (!panel || !output) return;
  const plans = (output.budget_plan ?? []).map(readPlan).filter(Boolean);
  const probe = output.probe?.at(-1) ?? null;
  const plan = plans.at(-1) ?? (probe ? connectedPlan(node) : null);
  if (!plan && !probe) return;
  const others = plans.map((/** @type {Plan} */ { steps }) => steps);
  panel.show({ plan, others, receipt: output.receipt?.at(-1) ?? null, probe });
}

/** The plan that the Probe was given: the one on show at the node it comes from. @param {GraphNode} node */
function connectedPlan(node) {
  const slot = (node.inputs ?? []).findIndex(({ name }) => name === "plan");
  const source = slot < 0 ? null : node.getInputNode(slot);
  return (source && panels.get(source)?.result.plan) ?? NO_RESULT.plan;
}

/** The results that the page keeps, after a workflow was loaded, switched to or taken from the queue. */
function restoreAll() {
  // Planners first: the Probe shows the curve of the one it is connected to.
  const nodes = [...panels.keys()].sort((a, b) => Number(isProbe(a)) - Number(isProbe(b)));
  for (const node of nodes) show(node, app.nodeOutputs?.[outputKey(node)]);
}

/** @param {GraphNode} node */
function isProbe(node) {
  return KINDS[node.comfyClass ?? ""] === "probe";
}

/** The page's name for a node's output: inside a subgraph the graph's id goes first. @param {GraphNode} node */
function outputKey(node) {
  const inside = node.graph && node.graph !== (app.rootGraph ?? app.graph);
  return inside ? `${node.graph.id}:${node.id}` : String(node.id);
}

/** @type {WeakMap<GraphNode, string>} the reason that was last announced, so that a long queue says it once */
const announced = new WeakMap();

/** A toast for a render that was not planned. @param {GraphNode} node */
function announce(node) {
  const plan = panels.get(node)?.result.plan;
  if (isProbe(node) || !plan?.fallback) {
    announced.delete(node);
    return;
  }
  if (announced.get(node) === plan.fallback) return;
  announced.set(node, plan.fallback);
  app.extensionManager?.toast?.add({
    severity: "warn",
    summary: `${node.title}: no plan, all ${plan.steps} steps`,
    detail: sentence(plan.fallback),
    life: TOAST_MS,
  });
}
