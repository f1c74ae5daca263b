// @ts-check
/**
 * The last results of each workflow, kept in the browser's own storage, so that a reloaded page shows them again.
 * Nothing of it goes into the workflow file. The host imports each .js file of this folder as an extension, so
 * importing this one does nothing.
 */

const KEY = "BudgetFusion.results";
const MOST_WORKFLOWS = 12;
// In characters. Storage is 5 MB for the whole page, and the page's own drafts need most of it.
const MOST_OF_A_RESULT = 100_000;
const MOST_IN_ALL = 500_000;

/**
 * @typedef {Record<string, {at: number, nodes: Record<string, {type: string, output: any}>}>} Kept
 * By the workflow's id; then by the node's.
 * @typedef {Pick<Storage, "getItem" | "setItem">} Store
 */

/** @param {Store} store @returns {Kept} */
function read(store) {
  try {
    const kept = JSON.parse(store.getItem(KEY) ?? "{}");
    return kept && typeof kept === "object" ? kept : {};
  } catch {
    return {}; // unreadable: as if there were none
  }
}

/**
 * @param {Store} store @param {string | undefined} workflow @param {string} node @param {string} type
 * @param {any} output the node's `ui` dict @param {number} now
 */
export function keep(store, workflow, node, type, output, now) {
  if (!workflow) return;
  const { budget_plan, receipt, probe, calibration } = output;
  const result = { type, output: { budget_plan, receipt, probe, calibration } };
  if (JSON.stringify(result).length > MOST_OF_A_RESULT) return; // a very long list of prompts
  const kept = read(store);
  kept[workflow] = { at: now, nodes: { ...kept[workflow]?.nodes, [node]: result } };
  const newest = Object.entries(kept).sort(([, a], [, b]) => b.at - a.at);
  for (let count = Math.min(MOST_WORKFLOWS, newest.length); count > 0; count--) {
    const text = JSON.stringify(Object.fromEntries(newest.slice(0, count)));
    if (text.length > MOST_IN_ALL) continue;
    try {
      store.setItem(KEY, text);
      return;
    } catch {
      // full: once more without the oldest; or forbidden: a reloaded page then shows what it shows before the first run
    }
  }
}

/**
 * What finds the `ui` dict of a node's last run, or null. The storage is read once, for all nodes of the workflow.
 * @param {Store} store @param {string | undefined} workflow
 * @returns {(node: string, type: string) => any}
 */
export function recall(store, workflow) {
  const nodes = (workflow && read(store)[workflow]?.nodes) || {};
  return (node, type) => (nodes[node]?.type === type ? nodes[node].output : null);
}
