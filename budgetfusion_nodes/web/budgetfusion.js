// @ts-check
/** The host's side: puts a panel on each node, feeds it, and takes it away again. */

// @ts-ignore served by the host
import { api } from "../../scripts/api.js";
// @ts-ignore served by the host
import { app } from "../../scripts/app.js";
import { BlindTestPanel, waitingAt } from "./blind_test.js";
import { CalibrationPanel, listenForCalibrations } from "./calibration.js";
import { chain, executionIds, fit, isLinked, outputKey, workflowId } from "./host_nodes.js";
import { keep, recall } from "./kept.js";
import { Learner } from "./learn.js";
import { count, said, setMessages, t } from "./messages.js";
import { PlanPanel, options } from "./plan_panel.js";
import { readPlan, sentence } from "./plan_view.js";
import { Totals, showTotals } from "./totals.js";

/**
 * @typedef {import("./host_nodes.js").GraphNode} GraphNode
 * @typedef {import("./host_nodes.js").Widget} Widget
 */

const WIDTH = 340; // pixels at which headline and receipt need no second line
const PAIR_WIDTH = 640; // two pictures side by side
const BLIND_TEST = "/budgetfusion/blind_test"; // nodes/routes.py
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

const QUALITY = "BudgetFusion.DefaultQuality";
const ON_FALLBACK = "BudgetFusion.OnFallback";
const BAND = "BudgetFusion.ShowBand";
const LEARN = "BudgetFusion.LearnPerHour";
const SHIPPED_QUALITY = 0.9; // core/plan.py DEFAULT_QUALITY

/** @type {Map<GraphNode, PlanPanel>} the nodes that are on a graph now */
const panels = new Map();
/** @type {Map<GraphNode, CalibrationPanel>} the same */
const calibrations = new Map();
/** @type {Map<GraphNode, BlindTestPanel>} the same */
const blindTests = new Map();
const totals = new Totals();
totals.watchers.add(() => {
  for (const panel of panels.values()) if (panel.result.plans.length > 1) panel.refresh(); // a forecast knows the time now
});

app.registerExtension({
  name: "BudgetFusion",

  settings: [
    {
      id: BAND,
      category: ["BudgetFusion", "Chart", "ShowBand"],
      name: "Show the likely range in charts",
      tooltip: "The band between the careful and the hopeful prediction. The decision is the same without it.",
      type: "boolean",
      defaultValue: true,
      onChange: (/** @type {boolean} */ shown) => {
        options.band = shown;
        for (const panel of panels.values()) panel.refresh();
      },
    },
    {
      id: ON_FALLBACK,
      category: ["BudgetFusion", "Planning", "OnFallback"],
      name: "When no plan can be made",
      tooltip: "All max_steps are rendered then, and the node says why. This decides what else happens.",
      type: "combo",
      defaultValue: "once",
      options: [
        { text: "Say each reason once", value: "once" },
        { text: "Say it for every image", value: "always" },
        { text: "Say it and stop the queue", value: "stop" },
      ],
    },
    {
      id: QUALITY,
      category: ["BudgetFusion", "Planning", "DefaultQuality"],
      name: "Quality of new nodes",
      tooltip: "Where the quality slider stands on a node that you add. Nodes of saved workflows keep theirs.",
      type: "slider",
      attrs: { min: 0.5, max: 0.99, step: 0.01 },
      defaultValue: SHIPPED_QUALITY,
    },
    {
      id: LEARN,
      category: ["BudgetFusion", "Memory", "LearnPerHour"],
      name: "Learn from my renders: pictures an hour",
      tooltip: "0: off. While the queue is empty, a planned picture of a nested schedule is finished to the target, measured and remembered, so that later plans know. It stops as soon as you queue something.",
      type: "slider",
      attrs: { min: 0, max: 60, step: 1 },
      defaultValue: 0,
    },
  ],

  async setup() {
    const style = document.createElement("link");
    style.rel = "stylesheet";
    style.href = new URL("./budgetfusion.css", import.meta.url).href;
    document.head.append(style);
    listen();
    await useLanguage();
    addTotals();
  },

  /** @param {GraphNode} node */
  nodeCreated(node) {
    if (node.comfyClass === "BudgetFusion_Calibrate") addCalibration(node);
    if (node.comfyClass === "BudgetFusion_BlindTest") addBlindTest(node);
    const kind = KINDS[node.comfyClass ?? ""];
    if (!kind) return;
    const quality = node.widgets?.find(({ name }) => name === "quality");
    // a node that is loaded gets its saved value after this
    if (quality) quality.value = settingOf(QUALITY) ?? SHIPPED_QUALITY;
    addPanel(node, kind);
  },

  afterConfigureGraph() {
    restoreAll();
    useLanguage(); // newer pages know their settings only after the set-up of extensions
  },

  onNodeOutputsUpdated() {
    queueMicrotask(restoreAll); // the queue's own Load fills the table only after it has announced it
  },
});

/** @param {string} id */
function settingOf(id) {
  return app.extensionManager?.setting?.get(id);
}

let language = "";

/** The page's language, from the same files that name the nodes. */
async function useLanguage() {
  const wanted = settingOf("Comfy.Locale") ?? "en";
  if (wanted === language) return;
  try {
    const all = await (await api.fetchApi("/i18n")).json();
    const own = all[wanted] ?? all[wanted.split("-")[0]];
    setMessages(wanted, own?.budgetfusion, all.en?.budgetfusion);
    language = wanted;
    for (const panel of panels.values()) panel.relabel();
    for (const panel of calibrations.values()) panel.refresh();
    for (const panel of blindTests.values()) panel.relabel();
  } catch (error) {
    console.warn("BudgetFusion: the words of its panels could not be read from this ComfyUI.", error);
  }
}

/** What the host says over its socket, for as long as the page is open. */
function listen() {
  api.addEventListener("status", (/** @type {CustomEvent} */ { detail }) => {
    totals.onStatus(detail?.exec_info?.queue_remaining);
  });
  api.addEventListener("execution_cached", (/** @type {CustomEvent} */ { detail }) => {
    const nodes = (detail.nodes ?? []).map(String);
    totals.onCached(detail.prompt_id, nodes);
    for (const [node, panel] of panels) {
      if (!executionIds(node).some((id) => nodes.includes(id))) continue;
      panel.cached = true; // said only where the node has nothing to show
      panel.refresh();
    }
  });
  api.addEventListener("executed", (/** @type {CustomEvent} */ { detail }) => {
    totals.onExecuted(detail.prompt_id, detail.node, detail.output);
  });
  const learner = new Learner(api, () => Number(settingOf(LEARN) ?? 0));
  api.addEventListener("execution_success", (/** @type {CustomEvent} */ { detail }) => {
    learner.onSuccess(detail?.prompt_id);
  });
  listenForCalibrations(api, calibrations, executionIds);
}

/** @param {string} model */
function paceOf(model) {
  return totals.paces.get(model) ?? null;
}

/** The running total, in the page's side bar. */
function addTotals() {
  /** @type {(() => void) | null} */
  let remove = null;
  app.extensionManager?.registerSidebarTab?.({
    id: "budgetfusion-totals",
    icon: "pi pi-stopwatch",
    title: t("totals"),
    tooltip: t("totals"),
    type: "custom",
    render: (/** @type {HTMLElement} */ place) => {
      remove?.();
      remove = showTotals(place, totals);
    },
    destroy: () => {
      remove?.();
      remove = null;
    },
  });
}

/** @param {GraphNode} node @param {"planner" | "sampler" | "probe"} kind */
function addPanel(node, kind) {
  const panel = new PlanPanel(kind, () => controlsOf(node), paceOf, () => fit(node));
  panels.set(node, panel);
  attach(node, panel).push(
    chain(node, "onExecuted", () => announce(node)), // what was shown just now
    chain(node, "onConnectionsChange", () => panel.refresh()),
    ...(node.widgets ?? [])
      .filter(({ name }) => name in LIVE)
      .map((live) => chain(live, "callback", () => panel.refresh())),
  );
}

/** @param {GraphNode} node */
function addCalibration(node) {
  const panel = new CalibrationPanel(() => fit(node));
  calibrations.set(node, panel);
  attach(node, panel);
}

/** @param {GraphNode} node */
function addBlindTest(node) {
  const host = { answer: answerPair, address: previewAddress, csv: api.apiURL(`${BLIND_TEST}.csv`) };
  const panel = new BlindTestPanel(host, () => fit(node));
  blindTests.set(node, panel);
  attach(node, panel, PAIR_WIDTH);
}

/** @param {string} pair @param {string} choice */
async function answerPair(pair, choice) {
  const body = JSON.stringify({ pair, choice });
  const sent = { method: "POST", headers: { "Content-Type": "application/json" }, body };
  const answer = await api.fetchApi(BLIND_TEST, sent);
  if (!answer.ok) throw new Error(`ComfyUI answered ${answer.status}`);
  return answer.json();
}

/** @param {import("./blind_test.js").File} file */
function previewAddress({ filename, subfolder = "", type = "temp" }) {
  return api.apiURL(`/view?${new URLSearchParams({ filename, subfolder, type })}`);
}

/**
 * Puts a panel on its node and feeds it what the node's runs give, until the node is removed.
 * @param {GraphNode} node @param {PlanPanel | CalibrationPanel | BlindTestPanel} panel @param {number} [width] at least
 * @returns {(() => void)[]} what is called when it is removed; takes more
 */
function attach(node, panel, width = WIDTH) {
  /** @type {Widget} */
  const widget = node.addDOMWidget("budgetfusion", "budgetfusion_panel", panel.element, {
    serialize: false,
    hideOnZoom: false,
    getMinHeight: () => panel.minHeight + 2 * (widget.margin ?? WIDGET_MARGIN),
  });
  widget.serialize = false; // the option alone does not keep it out of widgets_values
  /** @type {(() => void)[]} */
  const undo = [
    chain(node, "onExecuted", (/** @type {any} */ output) => {
      show(node, output);
      keepResult(node, output);
    }),
    chain(node, "onRemoved", () => {
      panels.delete(node);
      calibrations.delete(node);
      blindTests.delete(node);
      announced.delete(node);
      panel.destroy();
      for (const restore of undo.reverse()) restore(); // the last that was chained comes off first
    }),
  ];
  node.setSize([Math.max(node.size[0], width), node.size[1]]);
  return undo;
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

// ------------------------------------------------------------------------------------------------------ results

/** @param {GraphNode} node @param {any} output the node's `ui` dict */
function show(node, output) {
  const calibration = output?.calibration?.at(-1);
  if (calibration) calibrations.get(node)?.show(calibration, "done");
  blindTests.get(node)?.show(waitingAt(`${workflowId()} ${outputKey(node)}`), output?.blind_test ?? []);
  const panel = panels.get(node);
  if (!panel || !output) return;
  const sent = (output.budget_plan ?? []).map(readPlan).filter(Boolean);
  const probe = output.probe?.at(-1) ?? null;
  const plans = sent.length || !probe ? sent : connectedPlans(node);
  if (!plans.length && !probe) return;
  panel.show({ plans, receipts: output.receipt ?? [], probe });
}

/** The plan on show where the Probe's comes from, for a result of a version whose Probe sent none. @param {GraphNode} node */
function connectedPlans(node) {
  const slot = (node.inputs ?? []).findIndex(({ name }) => name === "plan");
  const source = slot < 0 ? null : node.getInputNode(slot);
  return (source && panels.get(source)?.result.plans) ?? [];
}

/** The results that the page keeps, after a workflow was loaded, switched to or taken from the queue. */
function restoreAll() {
  const kept = recall(localStorage, workflowId());
  for (const node of [...panels.keys(), ...calibrations.keys(), ...blindTests.keys()]) {
    const key = outputKey(node);
    show(node, app.nodeOutputs?.[key] ?? kept(key, node.comfyClass ?? ""));
  }
}

/** @param {GraphNode} node @param {any} output */
function keepResult(node, output) {
  if (output) keep(localStorage, workflowId(), outputKey(node), node.comfyClass ?? "", output, Date.now());
}

/** @param {GraphNode} node */
function isProbe(node) {
  return KINDS[node.comfyClass ?? ""] === "probe";
}

/** @type {WeakMap<GraphNode, string>} the reason that was last announced, so that a long queue says it once */
const announced = new WeakMap();

/** A toast for a render that was not planned, and what the setting wants done about it. @param {GraphNode} node */
function announce(node) {
  const plan = panels.get(node)?.result.plans.find(({ fallback }) => fallback);
  if (isProbe(node) || !plan?.fallback) {
    announced.delete(node);
    return;
  }
  const policy = settingOf(ON_FALLBACK) ?? "once";
  const reason = said(plan.fallback);
  if (policy === "once" && announced.get(node) === reason) return;
  announced.set(node, reason);
  const told = [sentence(reason)];
  if (policy === "stop") {
    stopQueue(KINDS[node.comfyClass ?? ""] === "planner");
    told.push(t("stopped"));
  }
  app.extensionManager?.toast?.add({
    severity: "warn",
    summary: t("toast_title", { node: node.title, steps: count(plan.steps, "steps") }),
    detail: told.join(" "),
    life: TOAST_MS,
  });
}

/**
 * Takes the waiting prompts away, and ends the running one where nothing is rendered yet: a picture that is already
 * there is still saved.
 * @param {boolean} running
 */
function stopQueue(running) {
  Promise.all([api.clearItems("queue"), ...(running ? [api.interrupt()] : [])]).catch((error) => {
    console.warn("BudgetFusion: the queue could not be stopped.", error);
  });
}
