// @ts-check
/**
 * Every word that the page shows, in English; locales/<language>/main.json has the same keys under "budgetfusion".
 * The host imports each .js file of this folder as an extension, so importing this one does nothing.
 */

/** A name in braces is filled in. `_one` stands beside `_other` where a number decides. @type {Record<string, string>} */
export const EN = {
  steps_one: "{n} step",
  steps_other: "{n} steps",
  calls_one: "{n} model call",
  calls_other: "{n} model calls",
  images_one: "{n} image",
  images_other: "{n} images",
  fewer: "{share} fewer",
  more: "{share} more",
  none_saved: "none saved",
  about_the_same: "about the same",
  no_difference: "no difference",
  time_saved: "{time} saved",
  time_more: "{time} more",
  unknown: "unknown",

  metric_l_snr: "fine detail against noise (L-SNR)",
  metric_d_sim: "shapes and layout (D-SIM)",
  metric_i_clip: "meaning (I-CLIP)",
  view_quality: "Quality",
  view_l_snr: "Detail",
  view_d_sim: "Layout",
  view_i_clip: "Meaning",
  view_quality_title: "Predicted quality: the worst of the three measures sets it",
  view_l_snr_title: "Distance from the full-step image in fine detail (L-SNR, dB)",
  view_d_sim_title: "Distance from the full-step image in shapes and layout (D-SIM)",
  view_i_clip_title: "Distance from the full-step image in meaning (I-CLIP)",
  views: "What the chart shows",

  headline: "{steps} of {max} ({saved})",
  all_steps: "All {steps}",
  wanted: "Quality {wanted} wanted, {predicted} predicted; risk of less: {risk}",
  set_by: "Set by {metric}",
  last_run: "The last run took {steps}",
  no_plan: "No plan",
  other_version: "this result was made by another version of BudgetFusion. Queue again.",
  min_above_max: "min_steps {min} is above max_steps {max}: lower min_steps or raise max_steps.",
  max_too_low:
    "Quality {quality} needs {steps}, but max_steps is {max}: the quality may not be reached. Raise max_steps or lower quality.",
  risk_moved: "risk is {now} now; the chart is for {then}. Queue to apply it.",
  toast_title: "{node}: no plan, all {steps}",

  promise_planner:
    "Queue once: this shows the predicted quality for every step count, the threshold that the quality slider sets, and the chosen count. Then drag quality or max_steps and watch both move.",
  promise_sampler:
    "Queue once: this shows the predicted quality for every step count, the chosen count, and a receipt of the steps and seconds saved. Then drag quality or max_steps and watch the count move.",
  promise_probe:
    "Queue once: this shows the distance of every image from the reference. With a plan connected, the measured points lie over the predicted curve.",

  cached:
    "ComfyUI took this from its cache: nothing was rendered anew, so there is nothing new to show. Change the seed and queue again.",

  receipt: "Receipt of the last run",
  row_steps: "Steps",
  row_time: "Time",
  row_against: "Against {n}",
  row_set_by: "Set by",
  row_planner: "Planner",
  row_made_for: "Made for",
  row_energy: "Energy",
  row_draft: "From the draft",
  nothing_to_sample: "nothing to sample",
  time_row: "{time}, {each} a step, {calls}",
  against_row: "{time} ({steps} instead of {usual})",
  draft_row: "{n} of {calls}",
  nested_steps: "{prefix} + {tail} steps",
  energy_row: "{energy}, about {saved} saved against {max}",

  axis_steps: "steps",
  axis_image: "image",
  column_quality: "quality",
  hint: "Point at the chart, or use its arrow keys, to read a count.",
  slider: "Step count to read out",
  nothing_yet: "Nothing to read before the first run",
  image_number: "image {n}",
  read: "{what}: {values}",
  predicted: "{value} predicted",
  predicted_range: "{value} predicted ({low} to {high})",
  measured: "{value} measured",
  not_predicted: "not predicted",
  value_quality: "quality {value}",
  value_db: "{value} dB away",
  value_away: "{value} away",

  commit_mark: "Up to here every count is the same: {prefix} steps",
  legend_predicted: "predicted",
  legend_distance: "predicted distance; up is nearer",
  legend_band: "likely range",
  legend_floor: "the range must stay above this",
  legend_wanted: "quality slider",
  legend_chosen: "chosen steps",
  legend_taken: "steps taken",
  legend_measured: "measured",
  distances: "Distances from {reference}; 0 is equal.",
  measured_with: "Measured with {backends}.",

  prompt_of: "Prompt {i} of {n}",
  previous_prompt: "Previous prompt",
  next_prompt: "Next prompt",
  forecast: "{n} prompts: {steps} in all; max_steps would take {max}, {usual} each would take {fixed}",
  forecast_time: "About {time}; max_steps {max}, {usual} each {fixed}",
  forecast_no_time: "The time is known after the first render.",

  totals: "BudgetFusion: running total",
  totals_about: "What Adaptive KSampler rendered in this window, and what that saved. Cached results are not counted.",
  totals_queue: "This queue",
  totals_all: "Since reset",
  totals_images: "Images",
  totals_steps: "Steps",
  totals_of: "{steps} of {max} ({saved})",
  totals_seconds: "Sampling time",
  totals_saved: "Saved against max_steps",
  totals_against: "Saved against {n} steps",
  totals_energy: "Energy",
  totals_fallbacks: "Renders without a plan",
  totals_reset: "Reset",
  totals_empty: "Nothing rendered yet. Queue a graph with Adaptive KSampler.",

  stopped: "The queue was stopped, as the setting “When no plan can be made” wants it.",

  host_no_planner:
    "no planner was calibrated for {model} (there are planners for: {known}). Calibrate one with '{command}', or choose a file in planner.",
  host_other_model:
    "planner {planner} was calibrated for {was}, and this is {now}. Set planner to auto, or calibrate one for this model.",
  host_other_sampler:
    "planner {planner} was calibrated for the sampler {was}, and {now} needs other step counts. Set sampler_name to {again}, or calibrate a planner for it.",
  host_dpm_adaptive:
    "sampler_name: dpm_adaptive chooses its own steps, so nothing can be planned. Choose dpmpp_2m or euler.",
  host_noisy_sampler:
    "sampler_name: {sampler} adds fresh noise at each step or is not known to be deterministic, so its image does not settle with more steps and no count can be planned. Choose dpmpp_2m or euler, for instance.",
  host_differs: "The planner was calibrated for {what} {was}, this render uses {now}.",
  host_size: "The planner was calibrated for {was} pixels, this render is {now}.",
  host_changed: "The planner was calibrated for {model} as it is; this one is changed (a LoRA or a patch).",
  host_lora: "The model carries a LoRA or merge ({n} patched weights) that was not there at calibration.",
  host_max_too_low:
    "Quality {quality} needs {n} steps, but max_steps is {max}: the quality may not be reached. Raise max_steps or lower quality.",
  host_prediction_error: "The plan's predicted quality is off by {error} on average.",
  host_beyond_target:
    "max_steps is {max}, but this planner knows nothing beyond {target} steps, its full-step image: plans end at {again}.",
  host_min_decides: "min_steps {min} is above the planner's {target} steps: min_steps decides here.",
  host_not_vouched:
    "{n} calibration prompts cannot vouch for a risk of {risk}: all {target} steps are planned. Raise risk, or calibrate on more prompts.",
  host_unlike:
    "This prompt is unlike the prompts the planner was calibrated on (distance {distance}, 1 is the edge): the risk is not vouched for.",
  host_no_pooled: "The conditioning has no pooled output, which the planner was calibrated with.",
  host_area: "{input} has an area: the plan treats its text as if it filled the image.",
  host_mask: "{input} has a mask: the plan treats its text as if it filled the image.",
  host_range: "{input} is limited to a range of the sampling: the plan treats it as if it applied all along.",
  host_controlnet: "{input} carries a ControlNet, which was not there at calibration.",
};

let shown = EN;

/** Takes a language; what it lacks stays English. @param {Record<string, string> | null | undefined} table */
export function setMessages(table) {
  shown = table ? { ...EN, ...table } : EN;
}

/** @param {string} key @param {Record<string, string | number>} [values] */
export function t(key, values = {}) {
  return (shown[key] ?? key).replace(/\{(\w+)\}/g, (_, name) => String(values[name] ?? `{${name}}`));
}

/** A number with its word. @param {number} n @param {"steps" | "calls" | "images"} word */
export function count(n, word) {
  return t(`${word}_${n === 1 ? "one" : "other"}`, { n });
}

/** @type {{key: string, pattern: RegExp}[] | null} */
let patterns = null;

/**
 * A sentence that the host wrote in English, in the page's language where it is one of those that are known.
 * @param {string} text
 */
export function fromHost(text) {
  if (shown === EN) return text;
  patterns ??= Object.keys(EN)
    .filter((key) => key.startsWith("host_"))
    .map((key) => ({ key, pattern: new RegExp(`^${asPattern(EN[key])}$`, "s") }));
  for (const { key, pattern } of patterns) {
    const found = pattern.exec(text);
    if (found) return t(key, found.groups);
  }
  return text;
}

/** @param {string} message */
function asPattern(message) {
  return message
    .split(/\{(\w+)\}/)
    .map((part, i) => (i % 2 ? `(?<${part}>.+?)` : part.replace(/[.*+?^${}()|[\]\\]/g, "\\$&")))
    .join("");
}
