// @ts-check
/**
 * What a bypassed node of ours hands on. The page gives the first input of a consumer's type to it, so a linked seed
 * would become the steps of another sampler. While bypassed, only max_steps is an INT by name; the page then hands its
 * link on, or leaves the consumer its own value.
 */

// @ts-ignore served by the host
import { app } from "../../scripts/app.js";
import { ADAPTIVE, PLANNER } from "./swap.js";

const BYPASSED = 4; // LiteGraph's mode
const HANDED_ON = "max_steps";
const WHOLE = "INT";
const OTHER_WHOLE = "INT,BUDGETFUSION"; // still takes every INT

app.registerExtension({
  name: "BudgetFusion.Bypass",
  /** @param {any} node */
  nodeCreated(node) {
    if (node.comfyClass !== ADAPTIVE && node.comfyClass !== PLANNER) return;
    guard(node);
    const before = node.onConfigure; // slots are made anew when a node is loaded, copied or pasted
    node.onConfigure = function configured(/** @type {any[]} */ ...values) {
      guard(node);
      return before?.apply(this, values);
    };
  },
});

/** @param {any} node */
function guard(node) {
  for (const slot of node.inputs ?? []) {
    if ((slot.type !== WHOLE && slot.type !== OTHER_WHOLE) || (slot.widget?.name ?? slot.name) === HANDED_ON) continue;
    Object.defineProperty(slot, "type", {
      get: () => (node.mode === BYPASSED ? OTHER_WHOLE : WHOLE),
      set: () => {},
      enumerable: true,
      configurable: true,
    });
  }
}
