// @ts-check
/**
 * The words of the page and of what Python says. They are defined in locales/<language>/main.json alone, which the host
 * serves. The host imports each .js file of this folder as an extension, so importing this one does nothing.
 */

/**
 * What Python says: a code and its values (core/messages.py); a plain text in results of earlier versions.
 * @typedef {string | {code: string, values: Record<string, Value>}} Message
 * @typedef {string | number | Message | null} Value
 */

/** @type {Record<string, string>} */
let shown = {};
let language = "en";

/** @type {Map<string, Intl.NumberFormat>} */
const formats = new Map();

/**
 * Takes the words of a language. What it lacks is taken from English.
 * @param {string} name as in "pt-BR" @param {Record<string, string> | null | undefined} table
 * @param {Record<string, string> | null} [english]
 */
export function setMessages(name, table, english = null) {
  shown = { ...english, ...table };
  language = table ? name : "en";
  formats.clear();
}

/**
 * A text by its key. `{name}` is filled in, `{name:.2f}` with so many decimals, `{name:.0%}` as a share.
 * @param {string} key @param {Record<string, Value>} [values]
 */
export function t(key, values = {}) {
  return (shown[key] ?? key).replace(/\{(\w+)(?::([^}]*))?\}/g, (braces, name, spec) =>
    name in values ? filled(values[name], spec) : braces,
  );
}

/** A number with its word. @param {number} n @param {"steps" | "calls" | "images"} word */
export function count(n, word) {
  return t(`${word}_${n === 1 ? "one" : "other"}`, { n });
}

/** What Python says, in the page's language. @param {Message} message */
export function said(message) {
  if (typeof message === "string") return message;
  const { code, values = {} } = message;
  const key = `said_${code}`;
  if (key in shown) return t(key, values);
  return `${code}: ${Object.entries(values).map(([name, value]) => `${name} ${filled(value)}`).join(", ")}`;
}

/** @param {number} value @param {number} digits decimals, all of them shown */
export function fixed(value, digits) {
  return Number.isFinite(value) ? number(value, `.${digits}f`) : t("unknown");
}

/** @param {Value} value @param {string} [spec] */
function filled(value, spec = "") {
  if (typeof value === "number") return number(value, spec);
  if (value && typeof value === "object") return said(value);
  return String(value ?? "?");
}

/** @param {number} value @param {string} spec of Python: ".2f", ".0%" or nothing */
function number(value, spec) {
  const known = formats.get(spec) ?? numberFormat(spec);
  formats.set(spec, known);
  return known.format(value);
}

/** @param {string} spec */
function numberFormat(spec) {
  const [, digits, kind] = /^\.(\d+)([f%])$/.exec(spec) ?? [];
  if (!kind) return new Intl.NumberFormat(language, { maximumSignificantDigits: 6 });
  const exact = { minimumFractionDigits: Number(digits), maximumFractionDigits: Number(digits) };
  return new Intl.NumberFormat(language, kind === "%" ? { style: "percent", ...exact } : exact);
}
