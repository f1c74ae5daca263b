// @ts-check
/**
 * The last results of each workflow, kept in the browser's own storage, so that a reloaded page shows them again.
 * Nothing of it goes into the workflow file. The host imports each .js file of this folder as an extension, so
 * importing this one does nothing.
 */

const KEY = "BudgetFusion.results";
const MOST_WORKFLOWS = 12; // a result is about 10 kB, and storage is 5 MB for the whole page

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
  const { budget_plan, receipt, probe } = output;
  const kept = read(store);
  const nodes = { ...kept[workflow]?.nodes, [node]: { type, output: { budget_plan, receipt, probe } } };
  kept[workflow] = { at: now, nodes };
  const newest = Object.entries(kept).sort(([, a], [, b]) => b.at - a.at);
  try {
    store.setItem(KEY, JSON.stringify(Object.fromEntries(newest.slice(0, MOST_WORKFLOWS))));
  } catch {
    // full or forbidden: a reloaded page then shows what it would show before the first run
  }
}

/**
 * The `ui` dict of this node's last run, or null.
 * @param {Store} store @param {string | undefined} workflow @param {string} node @param {string} type
 */
export function recall(store, workflow, node, type) {
  const found = workflow ? read(store)[workflow]?.nodes?.[node] : null;
  return found?.type === type ? found.output : null;
}
