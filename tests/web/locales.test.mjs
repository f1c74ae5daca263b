// node --test tests/web
import assert from "node:assert/strict";
import { readFileSync, readdirSync } from "node:fs";
import { test } from "node:test";

const FOLDER = new URL("../../locales/", import.meta.url);
const LANGUAGES = ["de", "en", "es", "fr", "ja", "ko", "zh"];
const FILES = ["main.json", "nodeDefs.json", "settings.json"];
const read = (language, file) => JSON.parse(readFileSync(new URL(`${language}/${file}`, FOLDER), "utf8"));
const source = readFileSync(new URL("../../budgetfusion_nodes/web/budgetfusion.js", import.meta.url), "utf8");

/** Every text by its path. */
function texts(value, path = "") {
  if (typeof value === "string") return [[path, value]];
  return Object.entries(value).flatMap(([key, inner]) => texts(inner, `${path}/${key}`));
}

test("all seven languages are there", () => assert.deepEqual(readdirSync(FOLDER).sort(), LANGUAGES));

test("every word that the page asks for is there, and every word of the page is asked for", () => {
  const web = new URL("../../budgetfusion_nodes/web/", import.meta.url);
  const code = readdirSync(web).filter((name) => name.endsWith(".js")).map((name) => readFileSync(new URL(name, web), "utf8"));
  const python = readFileSync(new URL("../../budgetfusion_nodes/core/plan.py", import.meta.url), "utf8");
  const asked = new Set([...code, python].join("\n").match(/[\w$]+/g));
  const built = ["steps", "calls", "images", "metric", "view", "before"]; // `${word}_one`, `view_${view}_title`
  for (const key of Object.keys(read("en", "main.json").budgetfusion)) {
    if (key.startsWith("said_") || built.includes(key.split("_")[0])) continue;
    assert.ok(asked.has(key), key);
  }
  const english = read("en", "main.json").budgetfusion;
  for (const [, key] of code.join("\n").matchAll(/\bt\("(\w+)"/g)) assert.ok(key in english, key);
});

for (const language of LANGUAGES) {
  for (const file of FILES) {
    test(`${language}/${file}: the keys of English, no text empty, the same names in braces`, () => {
      const english = new Map(texts(read("en", file)));
      const own = new Map(texts(read(language, file)));
      assert.deepEqual([...own.keys()].sort(), [...english.keys()].sort());
      const named = (text) => [...new Set(text.match(/\{[^}]*\}/g) ?? [])].sort();
      for (const [key, text] of own) {
        assert.ok(text.trim(), key);
        assert.deepEqual(named(text), named(english.get(key)), key);
      }
    });
  }
}

for (const language of LANGUAGES.filter((one) => one !== "en")) {
  test(`${language}: sentences are translated, not copied`, () => {
    const english = new Map(FILES.flatMap((file) => texts(read("en", file), file)));
    const own = FILES.flatMap((file) => texts(read(language, file), file));
    const copied = own.filter(([key, text]) => text === english.get(key) && text.replace(/\{[^}]*\}/g, "").split(/\s+/).length > 3);
    assert.deepEqual(copied, []);
  });
}

test("the settings that the page registers are the ones that are translated", () => {
  const english = read("en", "settings.json");
  const declared = [...source.matchAll(/= "BudgetFusion\.(\w+)"/g)].map(([, name]) => `BudgetFusion_${name}`);
  assert.deepEqual(Object.keys(english).sort(), declared.sort());
  for (const { name, tooltip, options = {} } of Object.values(english)) {
    for (const text of [name, tooltip, ...Object.keys(options)]) assert.ok(source.includes(`"${text}"`), text);
  }
  for (const category of Object.keys(read("en", "main.json").settingsCategories)) {
    assert.ok(source.includes(`["BudgetFusion", "${category}", `), category);
  }
});
