// Where two arms part: the sentence above them and the ring around the token.

import { element, nats, visible } from "./format.js";

/** Index of the first span in which two texts differ, -1 if there is none; `complete` says that both are whole. */
export function firstDifference(a, b, complete) {
  const shared = Math.min(a.length, b.length);
  for (let i = 0; i < shared; i++) if (a[i].text !== b[i].text || a[i].kind !== b[i].kind) return i;
  return complete && a.length !== b.length ? shared : -1;
}

const quoted = (span) => (span ? `“${visible(span.text)}”` : "nothing more");

export class Comparison {
  #shown = ""; // announced once, not at every token

  /** `root` gets the sentence; `arms` are the two Arms compared. */
  constructor(root, arms) {
    this.root = root;
    this.arms = arms;
  }

  clear() {
    this.#shown = "";
    this.root.replaceChildren();
    for (const arm of this.arms) arm.tokens.ring(null);
  }

  update() {
    const [a, b] = this.arms.map((arm) => arm.tokens.spans);
    const complete = this.arms.every((arm) => arm.complete);
    const at = firstDifference(a, b, complete);
    if (at >= 0) this.#part(at, a[at], b[at]);
    else if (complete && a.length) this.#say("same", `Both arms sampled the same ${a.length} tokens.`);
  }

  #part(at, inBaseline, inSteered) {
    for (const arm of this.arms) arm.tokens.ring(at);
    // Text before the parting is shared, and so is the distribution there: either arm's H will do.
    const h = (inSteered ?? inBaseline).tokens[0]?.entropyNats ?? null;
    const go = element("button", "link", `token ${at + 1}`);
    go.type = "button";
    go.addEventListener("click", () => this.arms[inSteered ? 1 : 0].tokens.focus(at));
    const sampled = `: ${quoted(inBaseline)} in the baseline, ${quoted(inSteered)} in the steered arm`;
    this.#say(`at ${at}`, "The arms part at ", go, sampled, h === null ? "." : `, where H is ${nats(h)} nats.`);
  }

  #say(key, ...parts) {
    if (this.#shown === key) return;
    this.#shown = key;
    this.root.replaceChildren(...parts);
  }
}
