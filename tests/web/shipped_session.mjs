/**
 * One host with the shipped weights and one page, for all files that import this in one process: page_shipped.mjs. Each
 * of them also runs by itself (node --test tests/web/page_menu.mjs).
 */
import { after, before } from "node:test";

import { Session, makeShippedBase, remove, scratchFolder, skip, startBrowser, startHost } from "./harness.mjs";

/** @type {string} */
export let base;
/** @type {Session} */
export let session;
/** @type {any} */
export let page;

let scratch, host, browser;

before(async () => {
  if (skip) return;
  scratch = scratchFolder();
  base = makeShippedBase(scratch);
  host = await startHost(base);
  browser = await startBrowser();
  session = await Session.open(host, browser);
  page = session.page;
});

after(async () => {
  await browser?.close();
  await host?.stop();
  remove(scratch);
});
