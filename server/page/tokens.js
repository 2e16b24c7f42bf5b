// Tokens as colored text: one element a span, reachable by pointer and by keyboard.

import { element } from "./format.js";
import { hide, inspect, leave } from "./inspector.js";
import { heat, setHeat } from "./scale.js";

export class Tokens {
  #spans = [];
  #nodes = [];
  #isFork = (token) => token.fork;
  #ringed = null;

  /** `label` names the text to a screen reader. */
  constructor(label) {
    this.element = element("div", "tokens");
    this.element.setAttribute("role", "group");
    this.element.setAttribute(
      "aria-label",
      `${label}: tokens. Left and right go token by token, up and down from fork to fork.`,
    );
    this.element.addEventListener("keydown", (event) => this.#onKey(event));
    for (const type of ["focusin", "mouseover"]) {
      this.element.addEventListener(type, ({ target }) => this.#show(this.#indexOf(target)));
    }
    this.element.addEventListener("focusout", hide);
    this.element.addEventListener("mouseleave", leave);
  }

  get spans() {
    return this.#spans;
  }

  /** Index of the ringed token, null for none. */
  get ringed() {
    return this.#ringed;
  }

  clear() {
    hide();
    this.#spans = [];
    this.#nodes = [];
    this.#ringed = null;
    this.element.replaceChildren();
  }

  append(spans) {
    for (const span of spans) {
      const node = element("span", `tok ${span.kind}`);
      // The space before a word stays uncolored: it hangs at the end of a line when the word wraps.
      const space = /^ +(?=[^\s])/.exec(span.text)?.[0] ?? "";
      node.append(space, element("span", "ink", span.text.slice(space.length)));
      node.dataset.index = this.#nodes.length;
      node.tabIndex = this.#nodes.length === 0 ? 0 : -1; // one tab stop; arrows go on from there
      if (span.text.includes("\n")) node.classList.add("line-end");
      setHeat(node, heat(Math.max(...span.tokens.map((token) => token.entropyNats ?? 0), 0)));
      node.classList.toggle("fork", span.tokens.some(this.#isFork));
      this.#spans.push(span);
      this.#nodes.push(node);
      this.element.append(node);
    }
  }

  /** Underlines the tokens for which `isFork` holds, these and those still to come. */
  mark(isFork) {
    this.#isFork = isFork;
    this.#nodes.forEach((node, i) => node.classList.toggle("fork", this.#spans[i].tokens.some(isFork)));
  }

  /** Rings one token, or none for null. */
  ring(index) {
    if (this.#ringed !== null) this.#nodes[this.#ringed]?.classList.remove("first");
    this.#ringed = index;
    if (index !== null) this.#nodes[index]?.classList.add("first");
  }

  focus(index) {
    const node = this.#nodes[index];
    if (!node) return;
    this.element.querySelector("[tabindex='0']").tabIndex = -1;
    node.tabIndex = 0;
    node.focus({ preventScroll: true });
    node.scrollIntoView({ block: "nearest" });
  }

  #indexOf(node) {
    return Number(node.closest?.(".tok")?.dataset.index ?? -1);
  }

  #show(index) {
    if (index >= 0) inspect(this.#nodes[index], this.#spans[index], this.#nodes[index].classList.contains("fork"));
  }

  #onKey(event) {
    const at = this.#indexOf(document.activeElement);
    if (at < 0 || event.ctrlKey || event.altKey || event.metaKey) return;
    const isFork = (node) => node.classList.contains("fork");
    const target = {
      ArrowRight: () => at + 1,
      ArrowLeft: () => at - 1,
      ArrowDown: () => this.#nodes.findIndex((node, i) => i > at && isFork(node)),
      ArrowUp: () => this.#nodes.findLastIndex((node, i) => i < at && isFork(node)),
      Home: () => 0,
      End: () => this.#nodes.length - 1,
    }[event.key]?.();
    if (target === undefined) return;
    event.preventDefault();
    this.focus(target);
  }
}
