// @ts-check
/**
 * A chart's parts as SVG.
 * The host imports each .js file of this folder as an extension, so importing this one does nothing.
 */

import { svg } from "./dom.js";
import { t } from "./messages.js";

/**
 * @typedef {import("./chart_layout.js").ChartModel} ChartModel
 * @typedef {import("./chart_layout.js").ChartLayout} ChartLayout
 */

/** @param {ChartLayout} layout @param {ChartModel} model */
export function axes(layout, model) {
  const { x0, x1, y0, y1 } = layout;
  const label = t(model.counted ? "axis_steps" : "axis_image");
  return [
    ...layout.yTicks.flatMap((tick) => [
      svg("line", { class: "bf-grid", x1: x0, x2: x1, y1: tick.at, y2: tick.at }),
      svg("text", { class: "bf-tick", x: x0 - 4, y: tick.at + 4, "text-anchor": "end" }, tick.label),
    ]),
    ...layout.xTicks.map((tick) =>
      svg("text", { class: "bf-tick", x: tick.at, y: y0 + 13, "text-anchor": "middle" }, tick.label),
    ),
    svg("line", { class: "bf-axis", x1: x0, x2: x1, y1: y0, y2: y0 }),
    svg("line", { class: "bf-axis", x1: x0, x2: x0, y1: y0, y2: y1 }),
    svg("text", { class: "bf-tick", x: (x0 + x1) / 2, y: y0 + 26, "text-anchor": "middle" }, label),
  ];
}

/** What the limits exclude. @param {ChartLayout} layout */
export function outside({ y0, y1, outside }) {
  return outside.map((strip) =>
    svg("rect", { class: "bf-outside", x: strip.x, y: y1, width: Math.max(strip.width, 0), height: y0 - y1 }),
  );
}

/** @param {ChartLayout} layout */
export function curve({ band, line }) {
  const drawn = [];
  if (band) drawn.push(svg("path", { class: "bf-band", d: band }));
  if (line) drawn.push(svg("path", { class: "bf-line", d: line }));
  return drawn;
}

/** @param {ChartLayout} layout @param {ChartModel} model @param {number | null} cursor */
export function marks(layout, model, cursor) {
  const { x0, x1, y0, y1 } = layout;
  /** @type {SVGElement[]} */
  const drawn = [];
  if (layout.floorY !== null) {
    drawn.push(svg("line", { class: "bf-floor", x1: x0, x2: x1, y1: layout.floorY, y2: layout.floorY }));
  }
  if (layout.wantedY !== null) {
    const y = layout.wantedY;
    drawn.push(svg("path", { class: "bf-wanted", d: `M${x1 + 1} ${y}l7 -4v8z` }));
  }
  if (layout.commitX !== null) {
    const line = svg("line", { class: "bf-commit", x1: layout.commitX, x2: layout.commitX, y1: y0, y2: y1 });
    const title = svg("title", {}, t("commit_mark", { prefix: model.commit ?? 0 }));
    line.append(title);
    drawn.push(line);
  }
  if (layout.chosen) {
    const { x, y } = layout.chosen;
    drawn.push(svg("line", { class: "bf-chosen", x1: x, x2: x, y1: y0, y2: y1 }));
    if (y !== null) drawn.push(svg("circle", { class: "bf-chosen-dot", cx: x, cy: y, r: 5 }));
    const left = x > (x0 + x1) / 2;
    const low = y === null || y < (y0 + y1) / 2; // where the dot is not
    const place = { x: x + (left ? -6 : 6), y: low ? y0 - 6 : y1 + 12, "text-anchor": left ? "end" : "start" };
    drawn.push(svg("text", { class: "bf-chosen-label", ...place }, String(model.chosen)));
  }
  for (const { x, y } of layout.points) drawn.push(svg("circle", { class: "bf-point", cx: x, cy: y, r: 3.5 }));
  if (cursor !== null) {
    const x = layout.x(cursor);
    drawn.push(svg("line", { class: "bf-cursor", x1: x, x2: x, y1: y0, y2: y1 }));
  }
  return drawn;
}
