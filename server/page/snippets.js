// A request as a curl command and as a Python program, quoted so that any prompt survives.

import { copy } from "./clipboard.js";
import { buildRequest } from "./requests.js";

/** POSIX shell: single quotes protect everything but themselves. */
const shellQuoted = (text) => `'${text.replaceAll("'", `'\\''`)}'`;

const JSON_STYLE = { true: "true", false: "false", null: "null", lastComma: "", step: "  " };
const PYTHON_STYLE = { true: "True", false: "False", null: "None", lastComma: ",", step: "    " };

/** `value` as a literal, on one line where it fits. JSON's strings and numbers are Python's too. */
function literal(value, style, indent = "") {
  if (typeof value === "string" || typeof value === "number") return JSON.stringify(value);
  if (typeof value !== "object" || value === null) return style[value];
  const inner = indent + style.step;
  const [open, close] = Array.isArray(value) ? "[]" : "{}";
  const items = Array.isArray(value)
    ? value.map((item) => literal(item, style, inner))
    : Object.entries(value).map(([key, item]) => `${JSON.stringify(key)}: ${literal(item, style, inner)}`);
  const line = open + items.join(", ") + close;
  if (line.length < 72 && !line.includes("\n")) return line;
  return `${open}\n${inner}${items.join(`,\n${inner}`)}${style.lastComma}\n${indent}${close}`;
}

/** The key itself is never written out: both read it from $STEERDEC_API_KEY. */
export function curl({ path, body }, base, withKey) {
  return [
    `curl -N ${shellQuoted(base + path)}`,
    `-H 'Content-Type: application/json'`,
    ...(withKey ? [`-H "Authorization: Bearer $STEERDEC_API_KEY"`] : []),
    `-d ${shellQuoted(literal(body, JSON_STYLE))}`,
  ].join(" \\\n  ");
}

export function python({ path, body }, base, withKey) {
  const { steering, ...standard } = body;
  const chat = path.endsWith("chat/completions");
  const argument = ([key, value]) => `    ${key}=${literal(value, PYTHON_STYLE, "    ")},\n`;
  return `${withKey ? "import os\n\n" : ""}from openai import OpenAI

client = OpenAI(base_url=${JSON.stringify(base + "v1")}, api_key=${withKey ? 'os.environ["STEERDEC_API_KEY"]' : '"none"'})
stream = client.${chat ? "chat.completions" : "completions"}.create(
${Object.entries(standard).map(argument).join("")}    extra_body={"steering": ${literal(steering, PYTHON_STYLE, "    ")}},
)
for chunk in stream:
    for choice in chunk.choices:
        print(choice.${chat ? 'delta.content or ""' : "text"}, end="", flush=True)
        if choice.finish_reason:
            print("\\n", choice.steering)  # the summary, and H of the last tokens
`;
}

const byId = (id) => document.getElementById(id);

/** Fills the section "The same request" with the request that Generate would send. */
export function showSnippets(settings, shared) {
  const arm = settings.steered ? "steered" : "baseline";
  const request = buildRequest(settings, arm, shared);
  const base = new URL(".", document.baseURI).href;
  const withKey = settings.api_key !== "";
  byId("curl").textContent = curl(request, base, withKey);
  byId("python").textContent = python(request, base, withKey);
  byId("snippets-note").textContent = `${arm} arm${withKey ? "; set STEERDEC_API_KEY to your key first" : ""}`;
}

for (const button of document.querySelectorAll("[data-copy]")) {
  button.addEventListener("click", async () => {
    const code = byId(button.dataset.copy);
    const copied = await copy(code.textContent, code);
    button.textContent = copied ? "Copied" : "Press Ctrl+C";
    byId("copied").textContent = copied ? "Copied." : "Selected; press Ctrl+C to copy.";
    setTimeout(() => {
      button.textContent = "Copy";
      byId("copied").textContent = "";
    }, 2000);
  });
}
