/**
 * How fast the page stays with the pack, measured in the real page:
 *
 *     python3 run.py page-speed
 *
 * - drawing one panel with a curve of 129 points (limit: one frame, 16 ms)
 * - ten Budget Planners with results while a slider moves: time for all of them to draw (limit: one frame)
 * - opening the page with and without the pack, alternately (limit: 100 ms more)
 *
 * No test holds these limits: a busy machine would fail it. The command tells the medians, with an interval, and whether
 * they hold.
 */
import { readFileSync } from "node:fs";
import { join } from "node:path";

import { ROOT, Session, makeShippedBase, remove, scratchFolder, skip, startBrowser, startHost } from "./harness.mjs";

const FRAME = 16;
const OPENING = 100;
const DRAWS = 40;
const OPENINGS = Number(process.env.BUDGETFUSION_OPENINGS ?? 15);

if (skip) throw new Error(skip);
const scratch = scratchFolder();
const hosts = [];
const browser = await startBrowser();
try {
  const [packed, bare] = [true, false].map((pack) => makeShippedBase(scratch, { pack }));
  const host = await startHost(packed);
  hosts.push(host);
  await drawing(host);
  hosts.push(await startHost(bare));
  await opening(...hosts);
} finally {
  await browser.close();
  for (const host of hosts) await host.stop();
  remove(scratch);
}

async function drawing(host) {
  const session = await Session.open(host, browser);
  const { plan } = JSON.parse(readFileSync(join(ROOT, "tests/cases/plan_case.json"), "utf8"));
  const times = await session.page.evaluate(
    async ([plan, draws, module]) => {
      const { PlanPanel } = await import(module);
      const { readPlan } = await import(module.replace("plan_panel", "plan_view"));
      const counts = Array.from({ length: 129 }, (_, i) => i + 2);
      const long = { ...plan, decision: { ...plan.decision, counts } };
      for (const name of ["upper", "quality"]) long.decision[name] = counts.map((n) => (name === "upper" ? 2 / n : 1 - 1 / n));
      long.decision.limiting = counts.map(() => "d_sim");
      let quality = 0.9;
      const panels = Array.from({ length: 10 }, () => {
        const panel = new PlanPanel("planner", () => ({ quality }), () => null, () => {});
        panel.element.style.width = "360px";
        document.body.append(panel.element);
        panel.show({ plans: [readPlan(long)], receipts: [], probe: null });
        return panel;
      });
      await new Promise((done) => setTimeout(done, 500));
      const measure = (some) =>
        Array.from({ length: draws }, (_, i) => {
          quality = 0.5 + (0.49 * (i + 1)) / draws;
          const started = performance.now();
          for (const panel of some) panel.render();
          document.body.getBoundingClientRect(); // layout is part of it
          return performance.now() - started;
        });
      const [one, ten] = [measure(panels.slice(0, 1)), measure(panels)];
      for (const panel of panels) panel.destroy();
      return { one, ten };
    },
    [plan, DRAWS, `${host.address}/extensions/budgetfusion/plan_panel.js`],
  );
  report("one panel, 129 points", times.one, FRAME);
  report("ten panels, 129 points each", times.ten, FRAME);
  await session.page.context().close();
}

/** Until the page is ready, a fresh browser profile each time. */
async function opening(packed, bare) {
  const times = { packed: [], bare: [] };
  for (let i = 0; i < OPENINGS + 1; i++) {
    for (const [name, host] of i % 2 ? [["packed", packed], ["bare", bare]] : [["bare", bare], ["packed", packed]]) {
      const context = await browser.newContext();
      const page = await context.newPage();
      const started = performance.now();
      await page.goto(host.address);
      await page.waitForFunction(() => window.app?.extensionManager && window.app.graph?.nodes?.length, null, { timeout: 120_000 });
      if (i > 0) times[name].push(performance.now() - started); // the first fills the servers' caches
      await context.close();
    }
  }
  report("opening the page without the pack", times.bare);
  report("opening the page with the pack", times.packed);
  const more = times.packed.map((time, i) => time - times.bare[i]);
  report("what the pack adds", more, OPENING);
}

function report(what, times, limit) {
  const sorted = times.toSorted((a, b) => a - b);
  const median = sorted[Math.floor(sorted.length / 2)];
  const [low, high] = medianInterval(sorted);
  const said = `${what}: median ${median.toFixed(1)} ms (95 % interval ${low.toFixed(1)} to ${high.toFixed(1)}), ${times.length} times`;
  const verdict = high <= limit ? "held" : low > limit ? "NOT held" : "cannot be told in this noise";
  process.stdout.write(`${said}${limit === undefined ? "" : `; limit ${limit} ms: ${verdict}`}\n`);
}

/** Of the median, by the ranks of sorted values: each lies below it with probability 1/2, whatever their law. */
function medianInterval(sorted) {
  const n = sorted.length;
  let [rank, outside, term] = [0, 0, 0.5 ** n]; // term: P(exactly `rank` of n lie below the median)
  while (outside + term <= 0.025) {
    outside += term;
    rank += 1;
    term *= (n - rank + 1) / rank;
  }
  const below = Math.max(rank - 1, 0);
  return [sorted[below], sorted[n - 1 - below]];
}
