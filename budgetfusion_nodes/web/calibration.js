// @ts-check
/**
 * The panel on Calibrate: how far it is, what the planner is good for so far, and the curve so far. Knows the page's
 * DOM but not the host. The host imports each .js file of this folder as an extension, so importing this one does
 * nothing.
 */

import { axes, curve, marks } from "./chart.js";
import { chartLayout } from "./chart_layout.js";
import { attribute, element, say, svg } from "./dom.js";
import { said, t } from "./messages.js";

/**
 * @typedef {import("./messages.js").Message} Message
 * @typedef {import("./chart_layout.js").ChartModel} ChartModel
 * @typedef {{counts: number[], quality_low: number[], quality_median: number[], quality_high: number[],
 *   steps: number}} Curve
 * `steps`: mean planned steps at the nodes' default quality and risk.
 * @typedef {{messages: Message[], prompts: number, wanted: number, curve: Curve | null}} Progress
 * What the host sends while a calibration runs, and as its result (calibration/host_job.py, calibration/report.py).
 */

const CHART_HEIGHT = 150;
const PADDING = 20; // pixels: the panel's own, and the gaps

export class CalibrationPanel {
  /** @param {() => void} onHeight called when `minHeight` changed */
  constructor(onHeight) {
    this.onHeight = onHeight;
    /** @type {"empty" | "running" | "stopped" | "done"} */
    this.state = "empty";
    /** @type {Progress | null} */
    this.progress = null;
    /** The last one that was sent: a job that goes on sends none before its next planner. @type {Curve | null} */
    this.curve = null;
    this.minHeight = CHART_HEIGHT;
    this.size = { width: 280, height: CHART_HEIGHT };
    this.frame = 0;

    this.bar = document.createElement("progress");
    this.bar.className = "bf-progress";
    this.told = element("div", "bf-told");
    this.told.setAttribute("role", "status");
    this.above = element("div", "bf-above");
    this.above.append(this.bar, this.told);
    this.chart = element("div", "bf-chart");
    this.svg = svg("svg", { role: "img" });
    this.chart.append(this.svg);
    this.element = element("div", "bf-panel");
    this.element.dataset.kind = "calibration";
    this.element.append(this.above, this.chart);
    this.sizes = new ResizeObserver((entries) => this.measure(entries));
    for (const watched of [this.above, this.chart]) this.sizes.observe(watched);
    this.render();
  }

  /** @param {Progress} progress @param {"running" | "done"} state */
  show(progress, state) {
    this.progress = progress;
    this.curve = progress.curve ?? this.curve;
    this.state = state;
    this.refresh();
  }

  /** The run that was on show ended before its end: cancelled, or by an error that the page tells. */
  stop() {
    if (this.state !== "running") return;
    this.state = "stopped";
    this.refresh();
  }

  /** Draws in the next frame, once however often it is called. */
  refresh() {
    this.frame ||= requestAnimationFrame(() => {
      this.frame = 0;
      this.render();
    });
  }

  destroy() {
    this.sizes.disconnect();
    cancelAnimationFrame(this.frame);
    this.element.remove();
  }

  /** @param {ResizeObserverEntry[]} entries */
  measure(entries) {
    const chart = entries.find((entry) => entry.target === this.chart)?.contentRect;
    if (chart?.width) {
      this.size = { width: chart.width, height: chart.height };
      this.refresh();
    }
    const needed = this.above.offsetHeight + CHART_HEIGHT + PADDING;
    if (!this.element.isConnected || needed === this.minHeight) return;
    this.minHeight = needed;
    this.onHeight();
  }

  render() {
    const { progress, state } = this;
    attribute(this.element, "data-state", state);
    attribute(this.element, "data-prompts", String(progress?.prompts ?? 0));
    this.bar.hidden = progress === null;
    this.bar.max = Math.max(1, progress?.wanted ?? 1);
    this.bar.value = state === "done" ? this.bar.max : (progress?.prompts ?? 0); // it may end before all are rendered
    this.renderWords();
    this.renderChart();
  }

  renderWords() {
    const words = this.progress ? this.progress.messages.map(said) : [t("before_calibration")];
    if (this.state === "stopped") words.unshift(t("calibration_stopped"));
    const lines = this.told.children;
    while (lines.length > words.length) lines[lines.length - 1].remove();
    while (lines.length < words.length) this.told.append(element("p", "bf-line-told"));
    words.forEach((text, i) => say(lines[i], text));
  }

  renderChart() {
    const { width, height } = this.size;
    const model = chartModel(this.curve);
    const layout = chartLayout(model, width, height);
    attribute(this.svg, "viewBox", `0 0 ${width} ${height}`);
    attribute(this.svg, "aria-label", t("legend_predicted"));
    this.svg.replaceChildren(...axes(layout, model), ...curve(layout), ...marks(layout, model, null));
    this.chart.classList.toggle("bf-chart-empty", this.curve === null);
  }
}

/** @param {Curve | null} found @returns {ChartModel} */
function chartModel(found) {
  const none = { points: [], floor: null, wanted: null, minSteps: null, maxSteps: null };
  const drawn = found && {
    counts: found.counts, line: found.quality_median, low: found.quality_low, high: found.quality_high,
  };
  return { view: "quality", counted: true, curve: drawn, chosen: found ? Math.round(found.steps) : null, ...none };
}

/**
 * Feeds the panels with what the host says over its socket, for as long as the page is open.
 * @template Node
 * @param {EventTarget} api @param {Map<Node, CalibrationPanel>} panels
 * @param {(node: Node) => string[]} executionIds the host's names for a node
 */
export function listenForCalibrations(api, panels, executionIds) {
  api.addEventListener("budgetfusion.calibration", (event) => {
    const { detail } = /** @type {CustomEvent} */ (event);
    for (const [node, panel] of panels) {
      if (executionIds(node).includes(String(detail.node))) panel.show(detail, "running");
    }
  });
  for (const end of ["execution_interrupted", "execution_error"]) {
    api.addEventListener(end, () => panels.forEach((panel) => panel.stop()));
  }
}
