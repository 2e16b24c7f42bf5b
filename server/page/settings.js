// Settings from outside (a file, a link), checked against what the server takes before anything uses them.

const MAX_PROMPT = 200_000; // characters
const MAX_SEED = 2 ** 53 - 1;

/** Bad input; the message is one plain line. */
export class InputError extends Error {}

const shown = (value) => {
  const text = JSON.stringify(value) ?? String(value);
  return text.length > 40 ? `${text.slice(0, 37)}...` : text;
};

export function demand(ok, where, value, allowed) {
  if (!ok) throw new InputError(`${where} is ${shown(value)}; allowed: ${allowed}.`);
}

export const isObject = (value) => typeof value === "object" && value !== null && !Array.isArray(value);

export function requireText(value, where, most) {
  demand(typeof value === "string" && value.length <= most, where, value, `text of at most ${most} characters`);
  return value;
}

export function requireNumber(value, where, { min = -Infinity, max = Infinity, integer = false }) {
  const ok = typeof value === "number" && Number.isFinite(value) && value >= min && value <= max;
  const kind = integer ? "a whole number" : "a number";
  const range = min === -Infinity ? "" : max === Infinity ? `, ${min} or more` : ` from ${min} to ${max}`;
  demand(ok && (!integer || Number.isInteger(value)), where, value, kind + range);
  return value;
}

export function requireKeys(value, where, known) {
  demand(isObject(value), where, value, "an object");
  const unknown = Object.keys(value).find((key) => !known.includes(key));
  if (unknown !== undefined)
    throw new InputError(`${where} has an unknown entry ${shown(unknown)}; allowed: ${known.join(", ")}.`);
}

const ENTRIES = ["prompt", "mode", "model", "temperature", "max_tokens", "seed", "steered", "steering"];

/** Returns a copy of `value` that has exactly the entries of settings without the key, or throws InputError. */
export function checkSettings(value, policies, where = "settings") {
  requireKeys(value, where, ENTRIES);
  demand(["chat", "completion"].includes(value.mode), `${where}.mode`, value.mode, '"chat" or "completion"');
  demand(typeof value.steered === "boolean", `${where}.steered`, value.steered, "true or false");
  return {
    prompt: requireText(value.prompt, `${where}.prompt`, MAX_PROMPT),
    mode: value.mode,
    model: requireText(value.model, `${where}.model`, 300),
    temperature: requireNumber(value.temperature, `${where}.temperature`, { min: 0, max: 100 }),
    max_tokens: requireNumber(value.max_tokens, `${where}.max_tokens`, { min: 1, max: 2 ** 31 - 1, integer: true }),
    seed: requireNumber(value.seed, `${where}.seed`, { min: 0, max: MAX_SEED, integer: true }),
    steered: value.steered,
    steering: checkSteering(value.steering, policies, `${where}.steering`),
  };
}

function checkSteering(value, policies, where) {
  demand(isObject(value), where, value, "an object");
  const policy = policies.find(({ name }) => name === value.policy);
  demand(policy, `${where}.policy`, value.policy, policies.map(({ name }) => name).join(", "));
  requireKeys(value, where, ["policy", ...policy.fields.map(({ name }) => name)]);
  const checked = { policy: policy.name };
  for (const field of policy.fields) {
    const given = value[field.name];
    if (given === undefined) continue;
    if (field.kind === "choice")
      demand(field.choices.includes(given), `${where}.${field.name}`, given, field.choices.join(", "));
    else requireNumber(given, `${where}.${field.name}`, { ...field, integer: field.kind === "integer" });
    checked[field.name] = given;
  }
  const missing = policy.fields.find(({ name, required }) => required && !(name in checked));
  if (missing) throw new InputError(`${where}.${missing.name} is missing.`);
  return checked;
}

/** The settings that may leave the page: without the API key. */
export function publicSettings(settings) {
  return Object.fromEntries(ENTRIES.map((name) => [name, settings[name]]));
}
