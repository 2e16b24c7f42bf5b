// Settings of the form -> the request of one arm. The page sends exactly what the snippets show.

/**
 * `arm` is "baseline" or "steered". The baseline is steered too, to the temperature it would have anyway:
 * the same tokens as without steering, but measured.
 */
export function buildRequest(settings, arm) {
  const steered = arm === "steered";
  const common = {
    model: settings.model,
    max_tokens: settings.max_tokens,
    temperature: settings.temperature,
    seed: settings.seed,
    stream: true,
  };
  const steering = {
    policy: "split",
    select: settings.select,
    ...(settings.select === "entropy" && { threshold_nats: settings.threshold_nats }),
    ...(settings.select === "random" && { fork_rate: settings.fork_rate }),
    fork_temperature: steered ? settings.fork_temperature : settings.temperature,
    ...(settings.select !== "all" && {
      other_temperature: steered ? settings.other_temperature : settings.temperature,
    }),
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
export function describe(settings, arm) {
  if (arm === "baseline") return `T = ${settings.temperature} everywhere`;
  if (settings.select === "all") return `T = ${settings.fork_temperature} everywhere`;
  const forks = settings.select === "random" ? "at random forks" : "at forks";
  return `T = ${settings.fork_temperature} ${forks}, ${settings.other_temperature} elsewhere`;
}
