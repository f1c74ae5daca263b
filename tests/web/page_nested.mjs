/**
 * A nested plan on the node in the genuine page; part of page.mjs, after its run with a planner. What the host sends for
 * one is shown in place of the stock run's, so that nothing is rendered.
 */
import assert from "node:assert/strict";
import { test } from "node:test";

import { skip } from "./harness.mjs";

const PANEL = '.bf-panel[data-kind="sampler"]';

/** @param {() => import("./harness.mjs").Session} session */
export function testNested(session) {
  test("a nested result marks the commit point, and its receipt says both parts", { skip }, async () => {
    const { page } = session();
    const panel = page.locator(PANEL);
    /** Shows the executed run again, with these values in place of its own. */
    const show = (nested) =>
      page.evaluate((nested) => {
        const node = window.app.graph.nodes.find((n) => n.comfyClass === "BudgetFusion_AdaptiveKSampler");
        const { budget_plan, receipt } = window.app.nodeOutputs[node.id];
        node.onExecuted({ budget_plan: [{ ...budget_plan[0], ...nested }], receipt: [{ ...receipt[0], ...nested }] });
      }, nested);
    await show({ prefix_steps: 5, steps: 9 });
    await session().frames();
    assert.equal(await panel.locator("svg .bf-commit").count(), 1);
    const [commit, chosen] = await Promise.all(
      [".bf-commit", ".bf-chosen"].map(async (mark) => Number(await panel.locator(`svg ${mark}`).getAttribute("x1"))),
    );
    assert.ok(commit < chosen, "left of the chosen count");
    assert.match(await panel.locator(".bf-receipt").innerText(), /5 \+ 4 steps/);
    assert.match(await panel.locator(".bf-legend").innerText(), /5/);
    assert.deepEqual(await session().overflow(), [], "text is cut off");
    await show({});
    await session().frames();
    assert.equal(await panel.locator("svg .bf-commit").count(), 0);
    assert.doesNotMatch(await panel.locator(".bf-receipt").innerText(), /\+/);
  });
}
