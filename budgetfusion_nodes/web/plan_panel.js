// @ts-check
/**
 * The panel on a node: headline, badge, chart, read-out, receipt. Knows the page's DOM but not the host.
 * The host imports each .js file of this folder as an extension, so importing this one does nothing.
 */

import { axes, curve, marks, outside } from "./chart.js";
import { chartLayout, nearestCount } from "./chart_layout.js";
import { attribute, element, say, svg } from "./dom.js";
import { said, t } from "./messages.js";
import { legend, measuredWith, numbers, receiptList, titleLines } from "./plan_parts.js";
import { VIEWS, forecast, outlook, planCurves, probePoints, readout, rememberedPoints } from "./plan_view.js";

/**
 * @typedef {import("./plan_view.js").Plan} Plan
 * @typedef {import("./plan_view.js").Receipt} Receipt
 * @typedef {import("./plan_view.js").Probe} Probe
 * @typedef {import("./plan_view.js").Controls} Controls
 * @typedef {import("./plan_view.js").View} View
 * @typedef {import("./chart_layout.js").ChartModel} ChartModel
 * @typedef {import("./chart_layout.js").ChartLayout} ChartLayout
 *
 * @typedef {{plans: Plan[], receipts: Receipt[], probe: Probe | null}} Result
 * Several plans (and receipts) where a list of prompts was queued.
 */

const CHART_HEIGHT = 150;
const PADDING = 16; // pixels: the panel's own, and the two gaps

/** @type {Result} */
const NO_RESULT = { plans: [], receipts: [], probe: null };

/** What the settings of the page decide for all panels. */
export const options = { band: true };

export class PlanPanel {
  /**
   * @param {"planner" | "sampler" | "probe"} kind
   * @param {() => Partial<Controls> | null} controls where the sliders stand; null if they do not decide
   * @param {(model: string) => number | null} pace seconds a step of this model, as last measured
   * @param {() => void} onHeight called when `minHeight` changed
   */
  constructor(kind, controls, pace, onHeight) {
    this.kind = kind;
    this.controls = controls;
    this.pace = pace;
    this.onHeight = onHeight;
    /** @type {Result} */
    this.result = NO_RESULT;
    /** How many results were shown so far. */
    this.shown = 0;
    /** The host answered from its cache, and sends no result for such a node. */
    this.cached = false;
    /** Which prompt of a list is on show. */
    this.index = 0;
    /** @type {View} */
    this.view = "quality";
    /** @type {ReturnType<typeof planCurves>} */
    this.curves = null;
    /** @type {number | null} */
    this.cursor = null;
    /** @type {ChartModel | null} */
    this.model = null;
    /** @type {ChartLayout | null} */
    this.layout = null;
    this.minHeight = CHART_HEIGHT;
    /** Of the chart, as the page last laid it out: asking for it while drawing would make the page lay out at once. */
    this.size = { width: 280, height: CHART_HEIGHT };
    /** What each part shows, so that a draw touches only what changed. @type {Map<Element, string>} */
    this.drawn = new Map();
    this.frame = 0;
    this.listening = new AbortController();

    this.head = element("div", "bf-head");
    this.title = element("div", "");
    this.reason = element("p", "bf-reason");
    this.reason.setAttribute("role", "status");
    this.details = element("div", "");
    this.head.append(this.title, this.reason, this.details);
    this.views = element("div", "bf-views");
    this.views.setAttribute("role", "group");
    this.chart = element("div", "bf-chart");
    this.svg = svg("svg", { tabindex: 0, role: "slider" });
    this.layers = { axes: svg("g", {}), outside: svg("g", {}), curve: svg("g", {}), marks: svg("g", {}) };
    this.svg.append(...Object.values(this.layers));
    this.chart.append(this.svg);
    this.readout = element("div", "bf-readout");
    this.tail = element("div", "bf-tail");
    this.above = element("div", "bf-above");
    this.below = element("div", "bf-below");
    this.pager = element("div", "bf-pager");
    this.above.append(this.pager, this.head, this.views);
    this.below.append(this.readout, this.tail);
    this.element = element("div", "bf-panel");
    this.element.dataset.kind = kind;
    this.element.append(this.above, this.chart, this.below);
    this.listen();
    this.relabel();
  }

  /** What is made once, in the language that is set now. */
  relabel() {
    this.views.setAttribute("aria-label", t("views"));
    this.drawn.clear(); // all is made again with the next draw
    this.svg.setAttribute("aria-label", t("slider"));
    this.fillPager();
    this.refresh();
  }

  /** What a run gave. @param {Result} result */
  show(result) {
    this.result = result;
    this.shown += 1;
    this.cached = false;
    this.turnTo(0);
  }

  /** The plan on show. */
  get plan() {
    return this.result.plans[this.index] ?? null;
  }

  /** Shows this prompt of the list. @param {number} index */
  turnTo(index) {
    this.index = Math.min(Math.max(index, 0), Math.max(this.result.plans.length - 1, 0));
    this.curves = this.plan ? planCurves(this.plan) : null;
    this.cursor = null;
    this.refresh();
  }

  fillPager() {
    this.place = element("span", "bf-place");
    this.place.setAttribute("role", "status");
    /** @param {string} sign @param {string} label @param {number} by */
    const button = (sign, label, by) => {
      const made = element("button", "bf-view", sign);
      made.type = "button";
      made.title = label;
      made.setAttribute("aria-label", label);
      made.addEventListener("click", () => this.turnTo(this.index + by), { signal: this.listening.signal });
      return made;
    };
    const [back, on] = [button("\u2039", t("previous_prompt"), -1), button("\u203A", t("next_prompt"), 1)];
    this.pager.replaceChildren(back, this.place, on);
  }

  /** Draws in the next frame, once however often it is called. */
  refresh() {
    if (this.frame || this.listening.signal.aborted) return;
    this.frame = requestAnimationFrame(() => {
      this.frame = 0;
      this.render();
    });
  }

  destroy() {
    this.listening.abort();
    this.sizes?.disconnect();
    cancelAnimationFrame(this.frame);
    this.frame = 0;
    this.element.remove();
  }

  listen() {
    const { signal } = this.listening;
    this.svg.addEventListener("pointermove", (event) => this.point(event), { signal });
    this.svg.addEventListener("pointerleave", () => this.setCursor(null), { signal });
    this.svg.addEventListener("blur", () => this.setCursor(null), { signal });
    this.svg.addEventListener("keydown", (event) => this.key(event), { signal });
    this.sizes = new ResizeObserver((entries) => {
      const chart = entries.find((entry) => entry.target === this.chart)?.contentRect;
      if (chart?.width) {
        this.size = { width: chart.width, height: chart.height };
        this.refresh();
      }
      this.measure(); // also what a draw changed: reading is free here, after the page's own layout
    });
    for (const watched of [this.above, this.chart, this.below]) this.sizes.observe(watched);
  }

  measure() {
    const chart = this.chart.hidden ? 0 : CHART_HEIGHT;
    const needed = this.above.offsetHeight + this.below.offsetHeight + chart + PADDING;
    if (!this.element.isConnected || needed === this.minHeight) return;
    this.minHeight = needed;
    this.onHeight();
  }

  // -------------------------------------------------------------------------------------------------- reading

  /** @param {PointerEvent} event */
  point(event) {
    if (!this.layout) return;
    const box = this.svg.getBoundingClientRect(); // on screen: the canvas may be zoomed
    const px = ((event.clientX - box.left) / box.width) * this.size.width;
    this.setCursor(nearestCount(this.layout, px));
  }

  /** @param {KeyboardEvent} event */
  key(event) {
    if (!this.layout || !this.model) return;
    const { first, last } = this.layout;
    const at = this.cursor ?? this.model.chosen ?? first;
    /** @type {Record<string, number | null>} */
    const moves = {
      ArrowLeft: at - 1, ArrowDown: at - 1, ArrowRight: at + 1, ArrowUp: at + 1, Home: first, End: last, Escape: null,
    };
    if (!(event.key in moves)) return;
    event.preventDefault();
    event.stopPropagation(); // the canvas has shortcuts of its own
    const to = moves[event.key];
    this.setCursor(to === null ? null : Math.min(Math.max(to, first), last));
  }

  /** @param {number | null} n */
  setCursor(n) {
    if (n === this.cursor) return;
    this.cursor = n;
    this.refresh();
  }

  // -------------------------------------------------------------------------------------------------- drawing

  render() {
    const { plan } = this;
    const { probe } = this.result;
    const state = plan?.fallback != null ? "fallback" : plan || probe ? "result" : "empty";
    attribute(this.element, "data-state", state);
    this.renderHead();
    this.renderViews();
    this.renderChart();
    this.renderTail();
  }

  /**
   * Fills a part unless it already shows what `key` stands for.
   * @param {Element} part @param {unknown} key @param {() => Element[]} make
   */
  fill(part, key, make) {
    const wanted = JSON.stringify(key);
    if (this.drawn.get(part) === wanted) return;
    this.drawn.set(part, wanted);
    part.replaceChildren(...make());
  }

  renderHead() {
    const { plan } = this;
    const { plans } = this.result;
    this.pager.hidden = plans.length < 2 || this.kind === "probe";
    if (this.place) say(this.place, t("prompt_of", { i: this.index + 1, n: plans.length }));
    if (!plan || this.kind === "probe") {
      const before = this.kind === "probe" && this.result.probe ? [] : [t(this.cached ? "cached" : `before_${this.kind}`)];
      this.fill(this.title, before, () => before.map((text) => element("p", "bf-before", text)));
      this.fill(this.details, [], () => []);
      this.reason.hidden = true;
      delete this.element.dataset.steps;
      return;
    }
    const now = outlook(plan, this.controls());
    this.element.dataset.steps = String(now.steps);
    const whole = forecast(plans, this.controls(), this.pace(plan.setting?.model_name ?? "")) ?? [];
    this.fill(this.title, [whole, now.badge, now.headline], () => titleLines(now, whole));
    say(this.reason, now.reason ?? "");
    this.reason.hidden = !now.reason;
    this.fill(this.details, [now.details, now.notes], () => [
      ...now.details.map((text) => element("div", "bf-detail", text)),
      ...now.notes.map((text) => element("p", "bf-note", `\u26A0 ${text}`)),
    ]);
  }

  renderViews() {
    const shown = VIEWS.filter((view) => this.has(view));
    this.views.hidden = shown.length < 2;
    if (shown.length && !this.has(this.view)) this.view = shown[0];
    // kept between draws, so that a focused button stays focused
    this.fill(this.views, shown, () => shown.map((view) => this.viewButton(view)));
    for (const button of this.views.querySelectorAll("button")) {
      attribute(button, "aria-pressed", String(button.dataset.view === this.view));
    }
  }

  /** @param {View} view */
  viewButton(view) {
    const button = element("button", "bf-view", t(`view_${view}`));
    button.type = "button";
    button.title = t(`view_${view}_title`);
    button.dataset.view = view;
    const choose = () => {
      this.view = view;
      this.refresh();
    };
    button.addEventListener("click", choose, { signal: this.listening.signal });
    return button;
  }

  /** Whether there is something to draw. @param {View} view */
  has(view) {
    const measured = this.result.probe?.[view];
    return Boolean(this.curves?.[view] || measured?.length);
  }

  /** @returns {ChartModel} */
  chartModel() {
    const { plan } = this;
    const { probe } = this.result;
    const counted = probe?.counted ?? true;
    const now = plan && counted ? outlook(plan, this.kind === "probe" ? null : this.controls()) : null;
    const planned = now !== null && now.floor !== null;
    return {
      view: this.view,
      curve: counted ? this.curve() : null,
      points: probe ? probePoints(probe, this.view) : rememberedPoints(plan, this.view),
      counted,
      chosen: now ? now.steps : null,
      floor: planned ? now.floor : null,
      wanted: planned ? now.quality : null,
      minSteps: planned ? now.minSteps : null,
      maxSteps: planned ? now.maxSteps : null,
      commit: planned ? plan?.prefix_steps : null,
    };
  }

  /** The line on show, with its band unless the setting hides it. */
  curve() {
    const curve = this.curves?.[this.view] ?? null;
    return curve && !options.band ? { ...curve, low: null, high: null } : curve;
  }

  renderChart() {
    const { width, height } = this.size;
    const model = this.chartModel();
    const layout = chartLayout(model, width, height);
    const empty = !model.curve && !model.points.length;
    this.model = model;
    this.layout = empty ? null : layout;
    // A fallback has no curve: the room goes to the reason. Before the first run the empty axes show what will come.
    this.chart.hidden = this.readout.hidden = empty && this.plan !== null;
    attribute(this.svg, "viewBox", `0 0 ${width} ${height}`);
    const { x0, x1, y0, y1, xTicks, yTicks, floorY, wantedY, commitX, chosen, points } = layout;
    const frame = [x0, x1, y0, y1, xTicks];
    this.fill(this.layers.axes, [frame, yTicks, model.counted], () => axes(layout, model));
    this.fill(this.layers.outside, [frame, layout.outside], () => outside(layout));
    this.fill(this.layers.curve, [layout.band, layout.line], () => curve(layout));
    const marked = [frame, floorY, wantedY, commitX, chosen, model.chosen, points, this.cursor];
    this.fill(this.layers.marks, marked, () => marks(layout, model, this.cursor));
    this.renderReadout(model, empty);
  }

  /** @param {ChartModel} model @param {boolean} empty */
  renderReadout(model, empty) {
    const at = this.cursor ?? model.chosen;
    const text = empty || at === null ? "" : readout(at, model.view, model.curve, model.points, model.counted);
    const unpointed = empty ? "" : t("hint");
    say(this.readout, this.cursor === null ? unpointed : text);
    attribute(this.svg, "aria-valuetext", text || t("nothing_yet"));
    attribute(this.svg, "aria-valuemin", String(this.layout?.first ?? 0));
    attribute(this.svg, "aria-valuemax", String(this.layout?.last ?? 0));
    attribute(this.svg, "aria-valuenow", String(at ?? 0));
  }

  renderTail() {
    const { plan } = this;
    const { probe } = this.result;
    const receipt = this.result.receipts[this.index] ?? null;
    this.fill(this.tail, [this.shown, this.index, this.view, options.band], () => [
      ...(plan?.decision || probe ? [legend(plan, probe, this.view, options.band)] : []),
      ...(receipt ? [receiptList(receipt, plan)] : []),
      ...(probe ? [numbers(probe), ...probe.notes.map((note) => element("p", "bf-note", said(note))), measuredWith(probe)] : []),
    ]);
  }
}
