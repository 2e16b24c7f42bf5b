// The buttons that keep a run: a session file, a link, a picture.

import { copy, download } from "./clipboard.js";
import { picture } from "./picture.js";
import { colors, measurer, pngBlob, svgBlob } from "./render.js";
import { readSession, sessionText } from "./session.js";
import { InputError, checkSettings, publicSettings } from "./settings.js";
import { linkTo } from "./share.js";

/**
 * Wires the buttons in `root`. `page` gives { form, arms(), ran(), restore(session) }; `say(text)` tells what was done,
 * `fail(cause)` what went wrong.
 */
export function wireKeep(root, page, say, fail) {
  const guarded = (work) => async () => {
    try {
      await work();
    } catch (cause) {
      fail(cause);
    }
  };
  const button = (name) => root.querySelector(`[data-keep="${name}"]`);
  const on = (name, work) => button(name).addEventListener("click", guarded(work));
  const checked = (settings) => checkSettings(publicSettings(settings), page.form.policies); // as on loading
  const file = root.querySelector("input[type=file]");

  on("save", () => {
    const text = sessionText(checked(page.ran() ?? page.form.settings), page.ran() ? page.arms() : []);
    download(new Blob([text], { type: "application/json" }), "steerdec-session.json");
    say("Session saved.");
  });
  on("load", () => file.click());
  file.addEventListener(
    "change",
    guarded(async () => {
      const [chosen] = file.files;
      if (!chosen) return;
      try {
        page.restore(await readSession(chosen, page.form.policies, ["baseline", "steered"]));
        say(`${chosen.name} loaded.`);
      } finally {
        file.value = ""; // the same file can be chosen again
      }
    }),
  );
  on("link", async () => {
    const link = linkTo(checked(page.form.settings), new URL(".", document.baseURI).href);
    const shown = root.querySelector("output");
    shown.textContent = link;
    shown.hidden = false;
    say((await copy(link, shown)) ? "Link copied: settings and prompt, no key." : "Press Ctrl+C to copy the link.");
  });
  for (const [name, make] of [
    ["svg", svgBlob],
    ["png", pngBlob],
  ])
    on(name, async () => {
      download(await make(drawn(page)), `steerdec-run.${name}`);
      say(`Picture saved (${name.toUpperCase()}).`);
    });
}

function drawn(page) {
  const ran = page.ran();
  const arms = page.arms().filter((arm) => arm.tokens.spans.length);
  if (!ran || !arms.length) throw new InputError("There is no run to draw yet.");
  const facts = [
    ran.prompt.length > 300 ? `${ran.prompt.slice(0, 299)}…` : ran.prompt,
    `${ran.model}, seed ${ran.seed}`,
  ];
  const described = arms.map((arm) => ({
    title: arm.title,
    subtitle: arm.subtitle.textContent,
    statistics: arm.statistics,
    tokens: arm.tokens.spans.map((span, i) => ({
      text: span.text,
      kind: span.kind,
      nats: Math.max(...span.tokens.map((token) => token.entropyNats ?? 0), 0),
      fork: span.tokens.some(arm.isFork),
      first: i === arm.tokens.ringed,
    })),
  }));
  return picture({ title: "Forking tokens", facts, arms: described }, colors(), measurer());
}
