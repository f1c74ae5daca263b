/** The page's words, as the host serves them. */
import { readFileSync } from "node:fs";

import { setMessages } from "../../budgetfusion_nodes/web/messages.js";

/** @param {string} language */
export function wordsOf(language) {
  const file = new URL(`../../locales/${language}/main.json`, import.meta.url);
  return JSON.parse(readFileSync(file, "utf8")).budgetfusion;
}

export function speakEnglish() {
  setMessages("en", wordsOf("en"));
}
