// Before a long run: what it may cost, and a question. While one runs: a warning before the page is left.

/** A run that may generate more tokens than this, over all arms, is asked about first. */
export const ASK_ABOVE_TOKENS = 2000;

const count = (tokens) => tokens.toLocaleString("en");

/** { tokens, text: "Up to 400 tokens: 2 arms of 200." } */
export function costOf(settings) {
  const arms = settings.steered ? 2 : 1;
  const each = Number.isInteger(settings.max_tokens) ? settings.max_tokens : 0;
  return {
    tokens: arms * each,
    text: `Up to ${count(arms * each)} tokens: ${arms} ${arms > 1 ? "arms" : "arm"} of ${count(each)}.`,
  };
}

/** Resolves to whether to go on: at once for a short run, else when the dialog is answered. */
export function confirmed(dialog, settings) {
  const { tokens, text } = costOf(settings);
  if (tokens <= ASK_ABOVE_TOKENS) return Promise.resolve(true);
  dialog.querySelector("p").textContent =
    `${text} That is more than ${count(ASK_ABOVE_TOKENS)}. Stop ends it at any time.`;
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "go"), { once: true });
  });
}

const warn = (event) => event.preventDefault();

/** While `running`, the browser asks before the page is left. */
export function guardLeaving(running) {
  if (running) addEventListener("beforeunload", warn);
  else removeEventListener("beforeunload", warn);
}
