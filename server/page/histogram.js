// How the entropies are spread, with the threshold as a line to drag. Bars wear the tokens' colors, so the
// axis is the color legend too. First arm upwards, second arm downwards.

import { element, nats } from "./format.js";
import { MAX_NATS, axis, axisInverse, heat, setHeat } from "./scale.js";

const BINS = 44;
const TICKS_NATS = [0, 0.01, 0.1, 0.3, 1, 2, 4, 8];
const STEP_NATS = 0.01;
const PAGE_NATS = 0.1;

const clamp = (value) => Math.min(MAX_NATS, Math.max(0, value));
const binCentre = (bin) => axisInverse((bin + 0.5) / BINS);
const round = (value) => (value < 0.1 ? Math.round(value * 1000) / 1000 : Math.round(value * 100) / 100);

export class Histogram {
  /** `labels` names the arms; `onThreshold(nats)` is called while the line is moved. */
  constructor(root, labels, onThreshold) {
    this.onThreshold = onThreshold;
    this.plot = element("div", "plot");
    this.sides = labels.map((label, i) => this.#side(label, i === 0 ? "up" : "down"));
    const ramp = element("div", "ramp");
    ramp.append(...Array.from({ length: BINS }, (_, bin) => this.#colored("i", bin)));
    this.line = this.#slider();
    this.plot.append(this.sides[0].element, ramp, this.sides[1].element, this.line);
    const ticks = element("div", "ticks");
    ticks.setAttribute("aria-hidden", "true");
    for (const tick of TICKS_NATS) {
      const mark = element("span", "", String(tick));
      mark.style.left = `${100 * axis(tick)}%`;
      ticks.append(mark);
    }
    root.append(this.plot, ticks);
    this.plot.addEventListener("pointerdown", (event) => this.#onPointer(event));
    this.plot.addEventListener(
      "pointermove",
      (event) => this.plot.hasPointerCapture(event.pointerId) && this.#toPointer(event),
    );
  }

  #colored(tag, bin) {
    const node = element(tag);
    setHeat(node, heat(binCentre(bin)));
    return node;
  }

  #side(label, direction) {
    const side = element("div", `side ${direction}`);
    side.setAttribute("aria-hidden", "true");
    const bars = Array.from({ length: BINS }, (_, bin) => this.#colored("i", bin));
    side.append(...bars, element("span", "side-label", label));
    return { element: side, bars };
  }

  #slider() {
    const line = element("div", "threshold");
    line.tabIndex = 0;
    line.setAttribute("role", "slider");
    line.setAttribute("aria-label", "Fork threshold");
    line.setAttribute("aria-valuemin", 0);
    line.setAttribute("aria-valuemax", MAX_NATS);
    line.append(element("span", "threshold-label"));
    line.addEventListener("keydown", (event) => this.#onKey(event));
    return line;
  }

  /** `entropies`: one list of nats per arm; a second list that is null hides the lower half. */
  draw(entropies) {
    const shares = entropies.map((list) => {
      const counts = new Array(BINS).fill(0);
      for (const h of list ?? []) counts[Math.min(BINS - 1, Math.floor(axis(h) * BINS))]++;
      return counts.map((count) => count / Math.max(1, list?.length ?? 0));
    });
    const highest = Math.max(...shares.flat(), 1e-9);
    this.sides.forEach(({ element: side, bars }, i) => {
      side.hidden = entropies[i] === null;
      bars.forEach((bar, bin) => {
        bar.style.setProperty("--share", `${(100 * shares[i][bin]) / highest}%`);
        bar.classList.toggle("empty", shares[i][bin] === 0);
      });
    });
  }

  /** Moves the line. `text` is what a screen reader says beside the number; `enabled` false greys it out. */
  setThreshold(threshold, text, enabled) {
    this.value = threshold;
    this.enabled = enabled;
    const x = axis(threshold);
    this.line.style.left = `${100 * x}%`;
    this.line.classList.toggle("at-end", x > 0.75);
    this.line.firstChild.textContent = `${nats(threshold)} nats`;
    this.line.setAttribute("aria-valuenow", clamp(threshold));
    this.line.setAttribute("aria-valuetext", `${nats(threshold)} nats${text && `; ${text}`}`);
    this.line.setAttribute("aria-disabled", String(!enabled));
    this.plot.classList.toggle("disabled", !enabled);
  }

  #move(threshold) {
    if (this.enabled) this.onThreshold(round(clamp(threshold)));
  }

  #onKey(event) {
    const target = {
      ArrowRight: this.value + STEP_NATS,
      ArrowUp: this.value + STEP_NATS,
      ArrowLeft: this.value - STEP_NATS,
      ArrowDown: this.value - STEP_NATS,
      PageUp: this.value + PAGE_NATS,
      PageDown: this.value - PAGE_NATS,
      Home: 0,
      End: MAX_NATS,
    }[event.key];
    if (target === undefined) return;
    event.preventDefault();
    this.#move(target);
  }

  #onPointer(event) {
    if (!this.enabled || event.button !== 0) return;
    this.plot.setPointerCapture(event.pointerId);
    this.line.focus({ preventScroll: true });
    event.preventDefault();
    this.#toPointer(event);
  }

  #toPointer(event) {
    const box = this.plot.getBoundingClientRect();
    this.#move(axisInverse(Math.min(1, Math.max(0, (event.clientX - box.left) / box.width))));
  }
}
