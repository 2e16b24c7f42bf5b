// The small panel with one token's numbers, beside the token that is pointed at or focused.

import { element, nats, percent, short, visible } from "./format.js";

const panel = document.getElementById("inspector");
let shownFor = null;
let ofFocus = null; // the arguments of `inspect` for the focused token

/** Shows `span` (see chunks.js) at `node`; `isFork` is what the page marks now. */
export function inspect(node, span, isFork) {
  hide();
  shownFor = node;
  if (node === document.activeElement) ofFocus = [node, span, isFork];
  panel.replaceChildren(...content(span, isFork));
  panel.hidden = false;
  node.setAttribute("aria-describedby", panel.id);
  place(node);
}

/** The pointer is elsewhere: back to the focused token, if there is one. */
export function leave() {
  if (ofFocus?.[0] === document.activeElement) inspect(...ofFocus);
  else hide();
}

export function hide() {
  shownFor?.removeAttribute("aria-describedby");
  shownFor = null;
  panel.hidden = true;
}

function content(span, isFork) {
  const head = element("p", "inspector-head");
  head.append(
    element("code", "", visible(span.text)),
    element("span", isFork ? "badge is-fork" : "badge", isFork ? "fork" : "not a fork"),
  );
  return [head, ...notes(span), measurements(span), ...alternatives(span)];
}

function notes(span) {
  if (span.kind === "part") return [element("p", "hint", "Part of a character; a later token completes it.")];
  if (span.kind === "special") return [element("p", "hint", "A control token: sampled, but not part of the text.")];
  if (span.tokens.length > 1)
    return [element("p", "hint", `${span.tokens.length} tokens that arrived as one piece of text.`)];
  return [];
}

function measurements({ tokens, logprob, alternatives }) {
  const list = element("dl");
  const add = (term, value) => list.append(element("dt", "", term), element("dd", "", value));
  const each = (read) => tokens.map(read).join(", ");
  add(
    "Entropy H",
    tokens.length
      ? each((t) => (t.entropyNats === null ? "not measured" : `${nats(t.entropyNats)} nats`))
      : "not measured",
  );
  if (tokens.some((t) => t.temperature !== null)) {
    add(
      "Sampled at T",
      each((t) => (t.temperature === null ? "?" : t.temperature === 0 ? "0 (greedy)" : short(t.temperature))),
    );
  }
  if (logprob !== null) {
    add("Probability", percent(Math.exp(logprob)));
    add("Log probability", short(logprob).replace("-", "−"));
    const above = alternatives.filter((other) => other.logprob > logprob).length;
    // The list ends somewhere: a sampled token at its very end may stand lower in truth.
    const atEnd = above > 0 && above === alternatives.length - 1;
    if (alternatives.length) add("Rank", atEnd ? `${above + 1} or lower` : String(above + 1));
  }
  return list;
}

/** The likeliest tokens as bars; probabilities are the model's own, before any temperature. */
function alternatives({ text, logprob, alternatives: list }) {
  if (list.length < 2) return [];
  const table = element("ol", "alternatives");
  for (const other of list) {
    const p = Math.exp(other.logprob);
    const row = element("li", other.text === text && other.logprob === logprob ? "sampled" : "");
    row.style.setProperty("--p", percent(p));
    row.append(element("code", "", visible(other.text)), element("span", "", percent(p)));
    table.append(row);
  }
  return [table, element("p", "hint", "The model's own probabilities, before temperature.")];
}

/** Below the token's first line, or above it when there is no room; never outside the window. */
function place(node) {
  const box = node.getClientRects()[0] ?? node.getBoundingClientRect();
  const { width, height } = panel.getBoundingClientRect();
  const gap = 8;
  const left = Math.min(Math.max(gap, box.left - gap), document.documentElement.clientWidth - width - gap);
  const below = box.bottom + gap;
  const top = below + height > window.innerHeight && box.top - gap - height > 0 ? box.top - gap - height : below;
  panel.style.left = `${left}px`;
  panel.style.top = `${top}px`;
}

// A focused token takes its panel along; one that was only pointed at has moved from under the pointer.
addEventListener("scroll", () => shownFor && leave(), { passive: true, capture: true });
addEventListener("keydown", (event) => event.key === "Escape" && hide());
