// Stream chunks -> spans: what the page shows as one piece of text, nearly always one token.
//
// A span: { text, kind, tokens: [{ entropyNats, fork, temperature }], logprob, alternatives }
//   kind          "text"; "part" (bytes of a character that a later token completes); "special" (not in the text)
//   entropyNats   null where the server did not measure it
//   alternatives  [{ text, logprob }], the likeliest tokens, sampled one included, likeliest first; [] if unknown

/** One chunk of /v1/chat/completions or /v1/completions -> { spans, finish, summary }; null fields while unknown. */
export function readChunk(chunk) {
  const choice = chunk.choices?.[0];
  if (!choice) return { spans: [], finish: null, summary: null };
  const steering = choice.steering ?? null;
  const text =
    choice.text ?? (choice.delta?.reasoning ?? choice.delta?.reasoning_content ?? "") + (choice.delta?.content ?? "");
  const measured = (steering?.entropy_nats ?? []).map((entropyNats, i) => ({
    entropyNats,
    fork: steering.fork?.[i] ?? false,
    temperature: steering.temperature?.[i] ?? null,
  }));
  return {
    spans: spans(text, measured, sampled(choice.logprobs)),
    finish: choice.finish_reason ?? null,
    summary: typeof steering?.tokens === "number" ? steering : null,
  };
}

/** The two shapes of OpenAI logprobs -> [{ text, logprob, alternatives }], null when the chunk has none. */
function sampled(logprobs) {
  const ranked = (list) => list.sort((a, b) => b.logprob - a.logprob);
  if (logprobs?.content) {
    return logprobs.content.map(({ token, logprob, top_logprobs }) => ({
      text: token,
      logprob,
      alternatives: ranked((top_logprobs ?? []).map((top) => ({ text: top.token, logprob: top.logprob }))),
    }));
  }
  return logprobs?.tokens
    ? logprobs.tokens.map((token, i) => ({
        text: token,
        logprob: logprobs.token_logprobs?.[i] ?? null,
        alternatives: ranked(
          Object.entries(logprobs.top_logprobs?.[i] ?? {}).map(([text, logprob]) => ({ text, logprob })),
        ),
      }))
    : null;
}

function spans(text, measured, tokens) {
  if (!tokens || (measured.length && measured.length !== tokens.length)) {
    // Nothing says which token is which part of the text: one span carries them all.
    if (text === "" && measured.length === 0) return [];
    return [{ text, kind: text === "" ? "part" : "text", tokens: measured, logprob: null, alternatives: [] }];
  }
  const unmeasured = { entropyNats: null, fork: false, temperature: null };
  return place(
    tokens.map((token) => token.text),
    text,
  ).map((placed, i) => ({
    ...placed,
    tokens: [measured[i] ?? unmeasured],
    logprob: tokens[i].logprob,
    alternatives: tokens[i].alternatives,
  }));
}

/**
 * Token strings against the chunk's text -> [{ text, kind }], one a token.
 *
 * They agree except where a character is split over tokens (strings "" or U+FFFD until its last byte is there)
 * and where a token is not text at all (end of turn). Matching from both ends leaves only those in the middle.
 */
export function place(strings, text) {
  const placed = strings.map((string) => ({ text: string, kind: string === "" ? "part" : "text" }));
  let [head, tail] = [0, strings.length];
  for (; head < tail && text.startsWith(strings[head]); head++) text = text.slice(strings[head].length);
  for (; tail > head && text.endsWith(strings[tail - 1]); tail--)
    text = text.slice(0, text.length - strings[tail - 1].length);
  for (let i = tail - 1; i >= head; i--) {
    const split = strings[i].includes("\uFFFD");
    placed[i] =
      split && text ? { text, kind: "text" } : split ? { text: "", kind: "part" } : { ...placed[i], kind: "special" };
    if (split) text = ""; // the last split token completes the character
  }
  return placed;
}
