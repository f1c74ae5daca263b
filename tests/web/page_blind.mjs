/**
 * Blind Test in the genuine page; part of page.mjs, whose host and page it uses. Pictures are plain colours, so that
 * nothing is rendered and this test knows which one is which.
 */
import assert from "node:assert/strict";
import { test } from "node:test";

import { SLOW, skip, until } from "./harness.mjs";
import { LABEL } from "./page_markup.mjs";

const PANEL = '.bf-panel[data-kind="blind"]';
const COLORS = { planned: [0x200000, 0x400000, 0x600000], full: [0x000020, 0x000040, 0x000060] };

/** @param {() => import("./harness.mjs").Session} session */
export function testBlind(session) {
  const panel = () => session().page.locator(PANEL);
  const open = async () => Number(await panel().getAttribute("data-open"));
  const ready = () => session().page.locator(`${PANEL}[data-ready="true"]`).waitFor({ timeout: SLOW });
  const told = () => panel().locator(".bf-told").innerText();

  /** The side on which the picture of `full`, the blue one, stands. */
  const sideOfFull = () =>
    session().page.evaluate((selector) => {
      const blue = (image) => {
        const canvas = Object.assign(document.createElement("canvas"), { width: 1, height: 1 });
        canvas.getContext("2d").drawImage(image, 0, 0, 1, 1);
        const [red, , found] = canvas.getContext("2d").getImageData(0, 0, 1, 1).data;
        return found > red;
      };
      const images = [...document.querySelectorAll(`${selector} .bf-pick img`)];
      return blue(images[0]) ? "left" : "right";
    }, PANEL);

  test("Blind Test asks pair by pair, by keys and by mouse, and says what the choices show", { skip }, async () => {
    const { page } = session();
    await page.evaluate(buildGraph, [COLORS, LABEL]);
    await session().frames();
    assert.equal(await panel().getAttribute("data-state"), "empty");
    await session().queue();
    await ready();
    assert.equal(await open(), 3);
    assert.match(await panel().locator(".bf-above").innerText(), /Which picture is better\?\s*Pair 1 of 3/);
    assert.deepEqual(await session().overflow(), []);
    const chosen = [];
    const choices = [
      async (side) => page.keyboard.press(side === "left" ? "1" : "2"),
      async (side) => panel().locator(".bf-pick").nth(side === "left" ? 0 : 1).click(),
      async () => page.keyboard.press("Space"), // straight after the mouse: no second press of the picture
    ];
    await panel().focus();
    for (const [i, choose] of choices.entries()) {
      await ready();
      const side = await sideOfFull();
      chosen.push(side);
      await choose(side);
      await until(async () => (await open()) === 2 - i);
      if (i < 2) assert.match(await told(), new RegExp(`chose full over planned in ${i + 1} of ${i + 1} pairs`));
    }
    assert.match(await told(), /1 of these choices were made by a coin/);
    assert.match(await panel().locator(".bf-before").innerText(), /No pair waits for a choice/);
    const csv = await (await page.request.get(await panel().locator(".bf-csv").evaluate((link) => link.href))).text();
    const rows = csv.trim().split("\n").slice(1).map((line) => line.split(","));
    assert.deepEqual(rows.map((row) => row[1]), Array(3).fill(LABEL));
    assert.deepEqual(rows.map((row) => row[6]), chosen.map((side) => (side === "left" ? "full" : "planned")));
    assert.deepEqual(rows.map((row) => row[5]), ["0", "0", "1"]);
  });

  test("Blind Test does not ask again, and a choice that is not kept is asked once more", { skip }, async () => {
    const { page } = session();
    await session().queue();
    await until(async () => /3 of 3 pairs are not asked: you judged them before/.test(await told()));
    assert.equal(await open(), 0);
    await session().setWidget("BudgetFusion_BlindTest", "label", "second");
    await session().queue();
    await ready();
    await page.route("**/budgetfusion/blind_test", (route) => route.abort());
    await panel().focus();
    await page.keyboard.press("ArrowLeft");
    await until(async () => /ComfyUI did not answer/.test(await told()));
    assert.equal(await open(), 3);
    await page.unroute("**/budgetfusion/blind_test");
    await page.keyboard.press("ArrowLeft");
    await until(async () => (await open()) === 2);
    session().complaints.splice(0, Infinity, ...session().complaints.filter((text) => !/ERR_FAILED/.test(text)));
    const saved = await page.evaluate(() => JSON.stringify(window.app.graph.serialize()));
    assert.doesNotMatch(saved, /ComfyUI_temp|"pairs"/);
  });
}

/** In the page: batches of plain colours into a Blind Test. */
function buildGraph([colors, label]) {
  const { graph, canvas } = window.app;
  graph.clear();
  const add = (type, at, values) => {
    const node = window.LiteGraph.createNode(type);
    node.pos = at;
    graph.add(node);
    for (const [name, value] of Object.entries(values)) node.widgets.find((w) => w.name === name).value = value;
    return node;
  };
  const batch = (wanted, y) => {
    const single = wanted.map((color, i) => add("EmptyImage", [i * 240, y], { width: 64, height: 64, batch_size: 1, color }));
    return single.reduce((before, one, i) => {
      const joined = add("ImageBatch", [i * 240, y + 250], {});
      before.connect(0, joined, 0);
      one.connect(0, joined, 1);
      return joined;
    });
  };
  const [planned, full] = [batch(colors.planned, 900), batch(colors.full, 1400)];
  const test = add("BudgetFusion_BlindTest", [0, 0], { label, quality: 0.8 });
  planned.connect(0, test, test.findInputSlot("planned"));
  full.connect(0, test, test.findInputSlot("full"));
  canvas.ds.scale = 0.9;
  canvas.ds.offset = [90, 80];
  canvas.setDirty(true, true);
}
