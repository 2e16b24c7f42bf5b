// The server, over its OpenAI API. Every failure becomes an ApiError whose message can be shown as it is.

import { events } from "./sse.js";

export class ApiError extends Error {
  /** `field` is the control that `param` of the server's answer names, "" when it names none. */
  constructor(message, param = null) {
    super(message);
    this.name = "ApiError";
    this.field = typeof param === "string" ? param.split(".").pop() : "";
  }
}

const headers = (apiKey) => (apiKey ? { Authorization: `Bearer ${apiKey}` } : {});

async function reach(path, options) {
  try {
    return await fetch(path, { ...options, cache: "no-store" });
  } catch (cause) {
    if (cause.name === "AbortError") throw cause;
    throw new ApiError(`The server at ${location.host} cannot be reached. Is it still running?`);
  }
}

async function refusal(response) {
  let error = {};
  try {
    error = (await response.json()).error ?? {};
  } catch {
    // not JSON: a proxy's page, or nothing; the status has to do
  }
  const said = typeof error === "string" ? error : error.message;
  if (response.status === 401)
    return new ApiError("The server wants an API key, or does not know this one.", "api_key");
  if (said) return new ApiError(`The server refused: ${said}`, error.param);
  return new ApiError(`The server answered ${response.status} ${response.statusText}`.trimEnd() + ".");
}

export async function getJson(path, apiKey) {
  const response = await reach(path, { headers: headers(apiKey) });
  if (!response.ok) throw await refusal(response);
  return response.json();
}

/** Posts `body` and yields the parsed chunks up to [DONE]. Rejects with AbortError when `signal` aborts. */
export async function* streamChunks(path, body, apiKey, signal) {
  const response = await reach(path, {
    method: "POST",
    headers: { "Content-Type": "application/json", ...headers(apiKey) },
    body: JSON.stringify(body),
    signal,
  });
  if (!response.ok) throw await refusal(response);
  try {
    for await (const data of events(response.body)) {
      if (data === "[DONE]") return;
      const chunk = JSON.parse(data);
      if (chunk.error || chunk.object === "error") {
        const { message = "no reason given", param } = chunk.error ?? chunk;
        throw new ApiError(`The server gave up while answering: ${message}`, param);
      }
      yield chunk;
    }
  } catch (cause) {
    if (cause instanceof ApiError || cause.name === "AbortError") throw cause;
    if (cause instanceof SyntaxError) throw new ApiError("The server sent something that is not JSON.");
    // a connection that breaks is a TypeError here; it ends like one that closes too early
  }
  if (signal.aborted) throw signal.reason;
  throw new ApiError("The connection was cut before the answer was complete. What arrived is kept.");
}
