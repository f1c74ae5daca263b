// @ts-check
/**
 * Numbers as an artist says them.
 * The host imports each .js file of this folder as an extension, so importing this one does nothing.
 */

import { fixed, t } from "./messages.js";

/** "76% fewer", "50% more" or "none saved". @param {number} steps @param {number} of */
export function fewer(steps, of) {
  const share = 1 - steps / of;
  if (Math.round(Math.abs(share) * 100) === 0) return t(steps === of ? "none_saved" : "about_the_same");
  return t(share > 0 ? "fewer" : "more", { share: Math.abs(share) });
}

/** Seconds saved (positive) or spent. @param {number} seconds */
export function difference(seconds) {
  if (Math.abs(seconds) < 0.0005) return t("no_difference");
  return t(seconds > 0 ? "time_saved" : "time_more", { time: duration(Math.abs(seconds)) });
}

/** @param {number} energy in watt-hours */
export function wattHours(energy) {
  return energy < 1 ? `${(1000 * energy).toPrecision(3)} mWh` : `${energy.toPrecision(3)} Wh`;
}

/** @param {number} seconds */
export function duration(seconds) {
  if (seconds < 0.9995) return `${Math.round(seconds * 1000)} ms`;
  if (seconds < 9.995) return `${fixed(seconds, 2)} s`;
  if (seconds < 59.95) return `${fixed(seconds, 1)} s`;
  const whole = Math.round(seconds);
  const [hours, minutes, rest] = [Math.floor(whole / 3600), Math.floor(whole / 60) % 60, whole % 60];
  return hours ? `${hours} h ${minutes} min` : `${minutes} min ${rest} s`;
}

/** @param {number} value @param {number} low @param {number} high */
export function clamp(value, low, high) {
  return Math.min(Math.max(value, low), high);
}
