/**
 * The chart's colours for people who confuse some: each pair of marks that a reader must tell apart stays apart for
 * protanopia, deuteranopia and tritanopia, on the page's dark and light theme, and each mark stands out.
 *
 * Colours come from budgetfusion.css. Simulation: Machado, Oliveira & Fernandes 2009 at severity 1, in linear RGB.
 * Contrast: WCAG 2.2 (3:1 for graphics). Distance: CIE 1976 in CIELAB; 10 is seen at a glance.
 */
import assert from "node:assert/strict";
import { readFileSync } from "node:fs";
import { test } from "node:test";

const CSS = readFileSync(new URL("../../budgetfusion_nodes/web/budgetfusion.css", import.meta.url), "utf8");
const SIGHT = {
  normal: [[1, 0, 0], [0, 1, 0], [0, 0, 1]],
  protanopia: [[0.152286, 1.052583, -0.204868], [0.114503, 0.786281, 0.099216], [-0.003882, -0.048116, 1.051998]],
  deuteranopia: [[0.367322, 0.860646, -0.227968], [0.280085, 0.672501, 0.047413], [-0.01182, 0.04294, 0.968881]],
  tritanopia: [[1.255528, -0.076749, -0.178779], [-0.078411, 0.930809, 0.147602], [0.004733, 0.691367, 0.3039]],
};
/** Text and panel background of the page's two themes. */
const THEMES = { dark: ["#dddddd", "#222222"], light: ["#222222", "#c9c9c9"] };
const GRAPHIC_CONTRAST = 3;
const AT_A_GLANCE = 10;

const parse = (hex) => [1, 3, 5].map((at) => parseInt(hex.slice(at, at + 2), 16) / 255);
const linear = (v) => (v <= 0.04045 ? v / 12.92 : ((v + 0.055) / 1.055) ** 2.4);
const clamp = (v) => Math.min(Math.max(v, 0), 1);
const luminance = (rgb) => [0.2126, 0.7152, 0.0722].reduce((sum, w, i) => sum + w * rgb[i], 0);

/** `--bf-line: color-mix(in srgb, #0072b2 62%, var(--bf-text))` over this text colour, in linear RGB. */
function mark(name, text) {
  const found = CSS.match(new RegExp(`--bf-${name}: color-mix\\(in srgb, (#[0-9a-f]{6}) (\\d+)%, var\\(--bf-text\\)\\)`));
  assert.ok(found, `--bf-${name} is in the style sheet`);
  const [own, other, share] = [parse(found[1]), parse(text), Number(found[2]) / 100];
  return own.map((value, i) => linear(value * share + other[i] * (1 - share)));
}

const seen = (rgb, sight) => SIGHT[sight].map((row) => clamp(row.reduce((sum, w, i) => sum + w * rgb[i], 0)));

function lab(rgb) {
  const xyz = [[0.4124564, 0.3575761, 0.1804375], [0.2126729, 0.7151522, 0.072175], [0.0193339, 0.119192, 0.9503041]]
    .map((row, i) => row.reduce((sum, w, j) => sum + w * rgb[j], 0) / [0.95047, 1, 1.08883][i]);
  const [x, y, z] = xyz.map((v) => (v > 216 / 24389 ? Math.cbrt(v) : (24389 / 27 * v + 16) / 116));
  return [116 * y - 16, 500 * (x - y), 200 * (y - z)];
}

const distance = (a, b) => Math.hypot(...lab(a).map((value, i) => value - lab(b)[i]));
const contrast = (a, b) => {
  const [high, low] = [luminance(a), luminance(b)].sort((x, y) => y - x);
  return (high + 0.05) / (low + 0.05);
};

for (const [theme, [text, ground]] of Object.entries(THEMES)) {
  const marks = Object.fromEntries(["line", "chosen", "floor"].map((name) => [name, mark(name, text)]));
  test(`${theme}: marks stand out from the ground`, () => {
    for (const [name, rgb] of Object.entries(marks)) {
      const found = contrast(rgb, parse(ground).map(linear));
      assert.ok(found >= GRAPHIC_CONTRAST, `${name}: ${found.toFixed(2)}`);
    }
  });
  for (const sight of Object.keys(SIGHT)) {
    test(`${theme}, ${sight}: marks are told apart by colour alone`, () => {
      for (const [a, b] of [["line", "chosen"], ["line", "floor"], ["chosen", "floor"]]) {
        const found = distance(seen(marks[a], sight), seen(marks[b], sight));
        assert.ok(found >= AT_A_GLANCE, `${a} and ${b}: ${found.toFixed(1)}`);
      }
    });
  }
}

test("the measures are right: black and white, and a known pair", () => {
  assert.ok(Math.abs(contrast([0, 0, 0], [1, 1, 1]) - 21) < 1e-9);
  const [l, a, b] = lab(parse("#ff0000").map(linear));
  assert.ok(Math.hypot(l - 53.24, a - 80.09, b - 67.2) < 0.2, "sRGB red in CIELAB, D65");
});
