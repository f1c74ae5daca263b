// @ts-check
/**
 * The panel on Blind Test: two pictures, unlabelled, and a choice by mouse or keys. Where the full-step picture stands
 * is not known here. Knows the page's DOM but not the host. The host imports each .js file of this folder as an
 * extension, so importing this one does nothing.
 */

import { attribute, element, say } from "./dom.js";
import { said, t } from "./messages.js";

/**
 * @typedef {import("./messages.js").Message} Message
 * @typedef {{filename: string, subfolder?: string, type?: string}} File
 * @typedef {{id: string, key: string, question: "better" | "nearer", left: File, right: File, reference: File | null}} Pair
 * `id`: what is answered with; `key`: the same for the same two pictures.
 * @typedef {{run: string, pairs: Pair[], messages: Message[]}} Sent
 * What a run of the node asks (calibration/host_blind_test.py). `run`: another one for each.
 * @typedef {"left" | "right" | "same"} Choice
 * @typedef {{state: "kept" | "once" | "unknown" | "failed", messages: Message[]}} Reply
 * @typedef {{answer: (id: string, choice: Choice) => Promise<Reply>, address: (file: File) => string, csv: string}} Host
 * @typedef {{pairs: Pair[], judged: number, messages: Message[], seen: Set<string>}} Waiting
 */

const STAGE_HEIGHT = 260;
const PADDING = 24; // pixels: the panel's own, and the gaps

/** @type {Record<string, Choice>} */
const KEYS = { 1: "left", ArrowLeft: "left", 2: "right", ArrowRight: "right", " ": "same" };

const QUESTIONS = { better: "blind_better", nearer: "blind_nearer" };

/** Pairs that wait for a choice outlive the panel, when another workflow is looked at. @type {Map<string, Waiting>} */
const waiting = new Map();
/** Answered in this page. @type {Set<string>} */
const answered = new Set();

/** @param {string} place a workflow and a node */
export function waitingAt(place) {
  const known = waiting.get(place) ?? { pairs: [], judged: 0, messages: [], seen: new Set() };
  waiting.set(place, known);
  return known;
}

/**
 * Adds what a run asks: pairs that wait already are asked once, with the newest pictures.
 * @param {Waiting} state @param {Sent[]} sent
 */
export function addPairs(state, sent) {
  for (const one of sent) {
    if (state.seen.has(one.run)) continue; // the page announces a result again when others arrive
    state.seen.add(one.run);
    if (!state.pairs.length) state.judged = 0;
    for (const pair of one.pairs) {
      if (answered.has(pair.id)) continue;
      const at = state.pairs.findIndex(({ key }) => key === pair.key);
      if (at < 0) state.pairs.push(pair);
      else state.pairs[at] = pair;
    }
    state.messages = one.messages;
  }
}

export class BlindTestPanel {
  /** @param {Host} host @param {() => void} onHeight called when `minHeight` changed */
  constructor(host, onHeight) {
    this.host = host;
    this.onHeight = onHeight;
    this.state = waitingAt("");
    /** The pair on show. @type {Pair | null} */
    this.pair = null;
    this.ready = false;
    this.busy = false;
    this.minHeight = STAGE_HEIGHT;
    this.frame = 0;
    this.listening = new AbortController();

    this.question = element("strong", "bf-headline");
    this.place = element("span", "bf-detail");
    this.before = element("p", "bf-before");
    this.above = element("div", "bf-above");
    this.above.append(this.question, this.place, this.before);
    this.left = this.pick("left");
    this.right = this.pick("right");
    this.reference = figure("div", "bf-beside");
    this.stage = element("div", "bf-stage");
    this.stage.append(this.left.box, this.reference.box, this.right.box);
    this.same = this.button(() => this.choose("same"));
    this.screen = this.button(() => this.toggleScreen());
    this.csv = element("a", "bf-csv");
    this.csv.href = host.csv;
    this.csv.download = "";
    this.tools = element("div", "bf-views");
    this.tools.append(this.same, this.screen, this.csv);
    this.told = element("div", "bf-told");
    this.told.setAttribute("role", "status");
    this.below = element("div", "bf-below");
    this.below.append(this.tools, this.told);
    this.element = element("div", "bf-panel");
    this.element.dataset.kind = "blind";
    this.element.tabIndex = 0;
    this.element.append(this.above, this.stage, this.below);
    this.element.addEventListener("keydown", (event) => this.key(event), { signal: this.listening.signal });
    this.sizes = new ResizeObserver(() => this.measure());
    for (const watched of [this.above, this.below]) this.sizes.observe(watched);
    this.relabel();
  }

  /** @param {"left" | "right"} side */
  pick(side) {
    const made = figure("button", "bf-pick");
    made.box.addEventListener("click", () => this.choose(side), { signal: this.listening.signal });
    return made;
  }

  /** @param {() => void} act */
  button(act) {
    const made = element("button", "bf-view");
    made.type = "button";
    made.addEventListener("click", act, { signal: this.listening.signal });
    return made;
  }

  /** In the language that is set now. */
  relabel() {
    say(this.left.label, t("blind_left"));
    say(this.right.label, t("blind_right"));
    say(this.reference.label, t("blind_beside"));
    say(this.same, t("blind_same"));
    say(this.screen, t("blind_screen"));
    say(this.csv, t("blind_csv"));
    this.refresh();
  }

  /** @param {Waiting} state @param {Sent[]} sent what a run asks */
  show(state, sent) {
    this.state = state;
    addPairs(state, sent);
    this.refresh();
  }

  /** Draws in the next frame, once however often it is called. */
  refresh() {
    if (this.frame || this.listening.signal.aborted) return;
    this.frame = requestAnimationFrame(() => {
      this.frame = 0;
      this.render();
    });
  }

  destroy() {
    this.listening.abort();
    this.sizes.disconnect();
    cancelAnimationFrame(this.frame);
    this.element.remove();
  }

  measure() {
    const needed = this.above.offsetHeight + this.below.offsetHeight + STAGE_HEIGHT + PADDING;
    if (!this.element.isConnected || document.fullscreenElement || needed === this.minHeight) return;
    this.minHeight = needed;
    this.onHeight();
  }

  // ------------------------------------------------------------------------------------------------ choosing

  /** @param {KeyboardEvent} event */
  key(event) {
    const choice = KEYS[event.key];
    const onButton = event.target !== this.element && event.key === " "; // presses the button
    if (!choice || onButton || event.ctrlKey || event.metaKey || event.altKey) return;
    event.preventDefault();
    event.stopPropagation(); // the canvas has shortcuts of its own
    if (!event.repeat) this.choose(choice);
  }

  /** @param {Choice} choice */
  async choose(choice) {
    const { pair, state } = this;
    if (!pair || !this.ready || this.busy) return;
    this.busy = true;
    this.element.focus({ preventScroll: true }); // a space that follows is no second press of this button
    /** @type {Reply} */
    let reply;
    try {
      reply = await this.host.answer(pair.id, choice);
    } catch {
      reply = { state: "failed", messages: [t("blind_no_reply")] };
    }
    this.busy = false;
    state.messages = reply.messages;
    if (reply.state !== "failed") {
      answered.add(pair.id);
      state.judged += 1;
      this.drop(pair);
    }
    this.refresh();
  }

  /** @param {Pair} pair */
  drop(pair) {
    this.state.pairs = this.state.pairs.filter(({ id }) => id !== pair.id);
    this.refresh();
  }

  toggleScreen() {
    const done = document.fullscreenElement ? document.exitFullscreen() : this.element.requestFullscreen();
    done.catch(() => {}); // the browser may forbid it: the panel stays as it is
    this.element.focus({ preventScroll: true });
  }

  // ------------------------------------------------------------------------------------------------- drawing

  render() {
    const { pairs, judged, messages } = this.state;
    const pair = pairs[0] ?? null;
    const state = pair ? "asking" : messages.length ? "done" : "empty";
    attribute(this.element, "data-state", state);
    attribute(this.element, "data-open", String(pairs.length));
    if (pair?.id !== this.pair?.id) this.load(pair);
    say(this.question, pair ? t(QUESTIONS[pair.question]) : "");
    say(this.place, pair ? t("blind_place", { i: judged + 1, n: judged + pairs.length }) : "");
    say(this.before, state === "empty" ? t("before_blind") : state === "done" ? t("blind_done") : "");
    this.question.hidden = this.place.hidden = this.same.hidden = this.screen.hidden = !pair;
    this.stage.classList.toggle("bf-stage-empty", !pair);
    this.renderMessages(messages);
  }

  /** @param {Message[]} messages */
  renderMessages(messages) {
    const words = messages.map(said);
    const lines = this.told.children;
    while (lines.length > words.length) lines[lines.length - 1].remove();
    while (lines.length < words.length) this.told.append(element("p", "bf-line-told"));
    words.forEach((text, i) => say(lines[i], text));
  }

  /** Shows both pictures at once, when both are there. @param {Pair | null} pair */
  async load(pair) {
    this.pair = pair;
    this.ready = false;
    attribute(this.element, "data-ready", "false");
    const beside = pair?.reference ?? null;
    this.reference.box.hidden = !beside;
    /** @type {[HTMLImageElement, File | null | undefined][]} */
    const places = [
      [this.left.image, pair?.left], [this.right.image, pair?.right], [this.reference.image, beside],
    ];
    const shown = places.map(([image, file]) => {
      if (!file) {
        image.removeAttribute("src");
        return null;
      }
      image.src = this.host.address(file);
      return image.decode();
    });
    try {
      await Promise.all(shown);
    } catch {
      if (this.pair !== pair || !pair) return; // replaced meanwhile
      this.state.messages = [t("blind_gone")];
      this.drop(pair);
      return;
    }
    if (this.pair !== pair || !pair) return;
    this.ready = true;
    attribute(this.element, "data-ready", "true");
  }
}

/**
 * A picture with its label.
 * @template {"button" | "div"} T
 * @param {T} tag @param {string} className
 */
function figure(tag, className) {
  const box = /** @type {HTMLElement} */ (element(tag, className));
  if (box instanceof HTMLButtonElement) box.type = "button";
  const frame = element("span", "bf-frame");
  const image = element("img", "");
  image.alt = "";
  image.draggable = false;
  const label = element("span", "bf-label");
  frame.append(image);
  box.append(frame, label);
  return { box, image, label };
}
