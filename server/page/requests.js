// Settings of the form -> the request of one arm. The page sends exactly what the snippets show.

import { labelOf } from "./schema.js";

/**
 * `arm` is "baseline" or "steered"; `shared` names the steering fields that every policy has. The baseline is steered
 * too, by the policy split, which leaves every temperature as it is: the same tokens as without steering, but measured.
 */
export function buildRequest(settings, arm, shared) {
  const common = {
    model: settings.model,
    max_tokens: settings.max_tokens,
    temperature: settings.temperature,
    seed: settings.seed,
    stream: true,
  };
  const asked = Object.entries(settings.steering).filter(([name]) => arm === "steered" || shared.has(name));
  const steering = {
    ...(arm === "baseline" && { policy: "split" }),
    ...Object.fromEntries(asked),
    telemetry: "tokens",
  };
  return settings.mode === "chat"
    ? {
        path: "v1/chat/completions",
        body: {
          ...common,
          messages: [{ role: "user", content: settings.prompt }],
          logprobs: true,
          top_logprobs: 5,
          steering,
        },
      }
    : { path: "v1/completions", body: { ...common, prompt: settings.prompt, logprobs: 5, steering } };
}

/** What an arm does, in a few words. */
export function describe(settings, arm, shared) {
  if (arm === "baseline") return `T = ${settings.temperature} everywhere`;
  const own = Object.entries(settings.steering).filter(([name]) => name !== "policy" && !shared.has(name));
  const words = own.map(([name, value]) => `${labelOf(name).join(" ").trim().toLowerCase()} ${value}`);
  const { policy, scope } = settings.steering;
  const where = scope && scope !== "all" ? ` in ${scope}` : "";
  const name = String(policy).replaceAll("_", " ");
  return `${name}, ${forksOf(settings.steering)}${where}: ${words.join(", ") || "its defaults"}`;
}

const WORDS = { entropy: "forks by entropy", random: "random forks", all: "all tokens" };
const forksOf = ({ select, first_tokens: first }) =>
  select === "first" ? `first ${first} tokens` : (WORDS[select] ?? `forks: ${select}`);
