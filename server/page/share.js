// Settings in the fragment of a link. A fragment is not sent to the server, and it holds settings and prompt only.

import { InputError, checkSettings } from "./settings.js";

const NAME = "#settings=";
export const MAX_FRAGMENT = 8000; // characters; longer links break in mail and chat

/** -> the link to checked settings, or throws InputError when the prompt makes it too long. */
export function linkTo(settings, base) {
  const bytes = new TextEncoder().encode(JSON.stringify(settings));
  const binary = Array.from(bytes, (byte) => String.fromCharCode(byte)).join("");
  const text = btoa(binary).replaceAll("+", "-").replaceAll("/", "_").replaceAll("=", "");
  const [length, most] = [text.length, MAX_FRAGMENT].map((n) => n.toLocaleString("en"));
  if (text.length > MAX_FRAGMENT)
    throw new InputError(
      `A link would have ${length} characters, at most ${most} are allowed: save a session instead.`,
    );
  return base + NAME + text;
}

/** The settings in `fragment`, null when it is not one of ours; throws InputError when they are not valid. */
export function settingsIn(fragment, policies) {
  if (!fragment.startsWith(NAME)) return null;
  const text = fragment.slice(NAME.length);
  if (text.length > MAX_FRAGMENT) throw new InputError("The link's settings are too long.");
  let value;
  try {
    const binary = atob(text.replaceAll("-", "+").replaceAll("_", "/"));
    const bytes = Uint8Array.from(binary, (character) => character.charCodeAt(0));
    value = JSON.parse(new TextDecoder("utf-8", { fatal: true }).decode(bytes));
  } catch {
    throw new InputError("The link's settings are damaged.");
  }
  return checkSettings(value, policies, "The link: settings");
}
