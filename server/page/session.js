// A session as a JSON file: settings, and the tokens of the run on display. Never the API key.

import { InputError, checkSettings, isObject, demand, requireKeys, requireNumber, requireText } from "./settings.js";

const VERSION = 1;
const MAX_BYTES = 64 * 1024 * 1024;
const MAX_SPANS = 200_000;
const ENDING = 100; // characters
const TEXT = 100_000;

/** The file's text. `settings` are checked; `arms`: those on display, none before a run. */
export function sessionText(settings, arms) {
  const kept = arms.map((arm) => [
    arm.name,
    { spans: arm.tokens.spans.map(toFile), summary: arm.summary, ending: arm.ending, complete: arm.complete },
  ]);
  const session = { steerdec_session: VERSION, settings, arms: Object.fromEntries(kept) };
  return `${JSON.stringify(session)}\n`;
}

const toFile = ({ text, kind, tokens, logprob, alternatives }) => ({
  text,
  kind,
  tokens: tokens.map(({ entropyNats, fork, temperature }) => ({ entropy_nats: entropyNats, fork, temperature })),
  logprob,
  alternatives,
});

/** -> { settings, arms: { name: { spans, summary, ending, complete } } }, every part checked; throws InputError. */
export async function readSession(file, policies, armNames) {
  if (file.size > MAX_BYTES)
    throw new InputError(`The file has ${file.size} bytes; a session has at most ${MAX_BYTES}.`);
  let session;
  try {
    session = JSON.parse(await file.text());
  } catch {
    throw new InputError("The file is not JSON, so it is not a session.");
  }
  demand(
    isObject(session) && session.steerdec_session === VERSION,
    "steerdec_session",
    session?.steerdec_session,
    `${VERSION}`,
  );
  requireKeys(session, "The session", ["steerdec_session", "settings", "arms"]);
  requireKeys(session.arms, "arms", armNames);
  const arms = Object.entries(session.arms).map(([name, arm]) => [name, checkArm(arm, `arms.${name}`)]);
  return { settings: checkSettings(session.settings, policies), arms: Object.fromEntries(arms) };
}

function checkArm(arm, where) {
  requireKeys(arm, where, ["spans", "summary", "ending", "complete"]);
  demand(
    Array.isArray(arm.spans) && arm.spans.length <= MAX_SPANS,
    `${where}.spans`,
    arm.spans,
    `at most ${MAX_SPANS} pieces of text`,
  );
  demand(typeof arm.complete === "boolean", `${where}.complete`, arm.complete, "true or false");
  const threshold = isObject(arm.summary) ? (arm.summary.threshold_nats ?? null) : null;
  return {
    spans: arm.spans.map((span, i) => checkSpan(span, `${where}.spans[${i}]`)),
    summary:
      arm.summary === null ? null : { threshold_nats: numberOrNull(threshold, `${where}.summary.threshold_nats`) },
    ending: requireText(arm.ending, `${where}.ending`, ENDING),
    complete: arm.complete,
  };
}

const KINDS = ["text", "part", "special"];
const numberOrNull = (value, where, bounds = {}) => (value === null ? null : requireNumber(value, where, bounds));

function checkSpan(span, where) {
  requireKeys(span, where, ["text", "kind", "tokens", "logprob", "alternatives"]);
  demand(KINDS.includes(span.kind), `${where}.kind`, span.kind, KINDS.join(", "));
  demand(Array.isArray(span.tokens) && span.tokens.length <= MAX_SPANS, `${where}.tokens`, span.tokens, "a list");
  demand(
    Array.isArray(span.alternatives) && span.alternatives.length <= 100,
    `${where}.alternatives`,
    span.alternatives,
    "a list",
  );
  return {
    text: requireText(span.text, `${where}.text`, TEXT),
    kind: span.kind,
    tokens: span.tokens.map((token, i) => checkToken(token, `${where}.tokens[${i}]`)),
    logprob: numberOrNull(span.logprob, `${where}.logprob`),
    alternatives: span.alternatives.map((other, i) => {
      requireKeys(other, `${where}.alternatives[${i}]`, ["text", "logprob"]);
      return {
        text: requireText(other.text, `${where}.alternatives[${i}].text`, TEXT),
        logprob: requireNumber(other.logprob, `${where}.alternatives[${i}].logprob`, {}),
      };
    }),
  };
}

function checkToken(token, where) {
  requireKeys(token, where, ["entropy_nats", "fork", "temperature"]);
  demand(typeof token.fork === "boolean", `${where}.fork`, token.fork, "true or false");
  return {
    entropyNats: numberOrNull(token.entropy_nats, `${where}.entropy_nats`),
    fork: token.fork,
    temperature: numberOrNull(token.temperature, `${where}.temperature`, { min: 0 }),
  };
}
