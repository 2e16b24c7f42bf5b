// One arm: a request, its stream, and the card that shows it.

import { streamChunks } from "./api.js";
import { readChunk } from "./chunks.js";
import { element, nats, percent } from "./format.js";
import { Tokens } from "./tokens.js";

const FINISH = { stop: "ended by itself", length: "stopped at max tokens" };

export class Arm {
  /** `onChange` is called after every change of the tokens. */
  constructor(name, title, onChange) {
    this.name = name;
    this.title = title;
    this.onChange = onChange;
    this.complete = false; // the whole answer is here
    this.summary = null;
    this.ending = "";
    this.isFork = (token) => token.fork;
    this.tokens = new Tokens(title);
    this.element = element("section", `card arm ${name}`);
    this.element.setAttribute("aria-label", title);
    this.subtitle = element("p", "hint");
    this.stats = element("p", "stats");
    this.empty = element("p", "empty hint", "Tokens will appear here.");
    const head = element("div", "card-head");
    head.append(element("h2", "", title), this.subtitle);
    this.element.append(head, this.empty, this.tokens.element, this.stats);
  }

  /** Streams one answer in. Rejects with ApiError or AbortError; what arrived before stays. */
  async run({ path, body }, apiKey, signal) {
    this.clear();
    this.empty.hidden = true;
    this.element.classList.add("streaming");
    let finish = null;
    let ending = "cut short";
    try {
      for await (const chunk of streamChunks(path, body, apiKey, signal)) {
        const read = readChunk(chunk);
        finish = read.finish ?? finish;
        this.summary = read.summary ?? this.summary;
        this.tokens.append(read.spans);
        this.onChange();
      }
      ending = FINISH[finish] ?? finish ?? "";
      this.complete = true;
    } catch (cause) {
      if (cause.name === "AbortError") ending = "stopped by you";
      throw cause;
    } finally {
      this.ending = this.tokens.spans.length ? ending : "";
      this.empty.hidden = this.tokens.spans.length > 0;
      this.element.classList.remove("streaming");
      this.onChange();
    }
  }

  /** Shows an answer that was kept: { spans, summary, ending, complete }. */
  restore({ spans, summary, ending, complete }) {
    this.clear();
    this.tokens.append(spans);
    Object.assign(this, { summary, ending, complete });
    this.empty.hidden = spans.length > 0;
    this.onChange();
  }

  describe(text) {
    this.subtitle.textContent = text;
  }

  clear() {
    this.tokens.clear();
    this.summary = null;
    this.complete = false;
    this.ending = "";
    this.stats.replaceChildren();
    this.empty.hidden = false;
  }

  /** Marks as forks what `isFork` says, now and for tokens still to come. */
  mark(isFork) {
    this.isFork = isFork;
    this.tokens.mark(isFork);
    this.showStats();
  }

  /** Entropies of all measured tokens, nats. */
  get entropies() {
    return this.measured.map((token) => token.entropyNats);
  }

  get measured() {
    return this.tokens.spans.flatMap((span) => span.tokens).filter((token) => token.entropyNats !== null);
  }

  get forks() {
    return this.measured.filter(this.isFork).length;
  }

  /** "94 tokens · 12 forks (12.8%) · ..." */
  get statistics() {
    return this.stats.textContent;
  }

  showStats() {
    const entropies = this.entropies;
    const [count, forks] = [entropies.length, this.forks];
    const counts = [`${count} tokens`, `${forks} forks (${percent(forks / count)})`];
    const mean = `mean H ${nats(entropies.reduce((sum, h) => sum + h, 0) / count)} nats`;
    const unmeasured = this.tokens.spans.length ? ["no entropies came with this answer"] : [];
    const parts = count ? [...counts, mean] : unmeasured;
    this.stats.textContent = [...parts, ...(this.ending ? [this.ending] : [])].join(" · ");
  }
}
