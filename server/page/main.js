// Wires the parts together: form -> requests -> arms -> marks, histogram, comparison, snippets.

import { ApiError, getJson } from "./api.js";
import { Arm } from "./arm.js";
import { Comparison } from "./comparison.js";
import { nats, percent } from "./format.js";
import { Form } from "./form.js";
import { ASK_ABOVE_TOKENS, confirmed, costOf, guardLeaving } from "./guard.js";
import { Histogram } from "./histogram.js";
import { wireKeep } from "./keep.js";
import { buildRequest, describe } from "./requests.js";
import { setHeat } from "./scale.js";
import { readSchema } from "./schema.js";
import { InputError } from "./settings.js";
import { settingsIn } from "./share.js";
import { showSnippets } from "./snippets.js";

const byId = (id) => document.getElementById(id);

let ran = null; // settings of the run on display
let stop = null; // AbortController of the run in progress
let asking = false; // the dialog before a long run is open
let serverThreshold = NaN; // nats; of requests that set none
let drawing = false; // a frame is asked for

const arms = [new Arm("baseline", "Baseline", onTokens), new Arm("steered", "Steered", onTokens)];
byId("arms").append(...arms.map((arm) => arm.element));
const comparison = new Comparison(byId("parting"), arms);
const form = new Form(byId("form"), onSettings);
const histogram = new Histogram(byId("histogram"), ["baseline", "steered"], (threshold) =>
  form.set("threshold_nats", threshold),
);
for (const sample of document.querySelectorAll(".legend [data-heat]")) setHeat(sample, Number(sample.dataset.heat));

// ---- forks: what the settings of the run and the line as it stands now make of the tokens ------------------------

const settingsOnDisplay = () => ran ?? form.settings;
const armsOnDisplay = () => (settingsOnDisplay().steered ? arms : arms.slice(0, 1));
const thresholdOf = ({ steering }) => steering.threshold_nats ?? serverThreshold;

/** Whether "H above the line" says which tokens are forks; the server's own marks are shown otherwise. */
const byLine = ({ steering: { select, scope } }) => select === "entropy" && (scope ?? "all") === "all";

function onSettings(settings) {
  showSnippets(settings, form.shared);
  const { tokens, text } = costOf(settings);
  byId("cost").textContent = tokens > ASK_ABOVE_TOKENS ? `${text} You will be asked first.` : text;
  if (!ran) showArms(settings);
  const threshold = thresholdOf(settings);
  const isFork =
    byLine(settingsOnDisplay()) && !Number.isNaN(threshold)
      ? ({ entropyNats }) => entropyNats !== null && entropyNats > threshold
      : ({ fork }) => fork;
  for (const arm of arms) arm.mark(isFork);
  showEntropies();
}

function showArms(settings) {
  for (const arm of arms) arm.describe(describe(settings, arm.name, form.shared));
  arms[1].element.hidden = !settings.steered;
}

function onTokens() {
  if (drawing) return;
  drawing = true; // many tokens, one drawing
  requestAnimationFrame(() => {
    drawing = false;
    if (ran?.steered) comparison.update();
    for (const arm of arms) arm.showStats();
    showEntropies();
  });
}

function showEntropies() {
  const threshold = thresholdOf(form.settings);
  const movable = byLine(form.settings);
  const shown = armsOnDisplay();
  histogram.draw(arms.map((arm) => (shown.includes(arm) ? arm.entropies : null)));
  const rates = shown
    .filter((arm) => arm.measured.length)
    .map((arm) => `${percent(arm.forks / arm.measured.length)} of ${arm.name} tokens`);
  if (!Number.isNaN(threshold)) histogram.setThreshold(threshold, rates.join(", "), movable);
  const drag = movable ? "; drag the line to move the threshold" : "";
  byId("histogram-hint").textContent = `share of tokens by H, in nats${drag}`;
  const { select, scope } = settingsOnDisplay().steering;
  const where = (scope ?? "all") === "all" ? "" : `, in ${scope} only`;
  const chosen = { entropy: `H above ${nats(threshold)} nats`, random: "a random share", all: "all tokens" }[select];
  byId("rates").textContent = rates.length ? `Forks (${chosen ?? select}${where}): ${rates.join(", ")}.` : "";
  showStale(threshold);
}

/** Says so when the line has left the threshold that the run on display used. */
function showStale(threshold) {
  const used = arms[0].summary?.threshold_nats ?? (ran && thresholdOf(ran));
  const stale = ran !== null && byLine(ran) && Math.abs(used - threshold) > 1e-6;
  byId("stale").hidden = !stale;
  byId("stale").textContent = stale ? `This run used ${nats(used)} nats; the new threshold is for the next run.` : "";
}

// ---- running -----------------------------------------------------------------------------------------------------

async function generate() {
  if (stop || asking) return;
  asking = true;
  const go = await confirmed(byId("long-run"), form.settings);
  asking = false;
  if (!go) return;
  stop = new AbortController();
  showError(null);
  showRunning(true);
  try {
    if (!form.settings.model) await loadServer(); // it could not be reached before
    show(form.settings);
    if (!wide.matches) byId("results").scrollIntoView(); // below the form there
    await Promise.all(
      armsOnDisplay().map((arm) =>
        arm.run(buildRequest(ran, arm.name, form.shared), ran.api_key, stop.signal).catch(showError),
      ),
    );
  } catch (cause) {
    showError(cause);
  } finally {
    stop = null;
    showRunning(false);
  }
}

/** Empties the display for a run of `settings`. */
function show(settings) {
  ran = settings;
  for (const arm of arms) arm.clear();
  comparison.clear();
  showArms(ran);
  form.refresh();
}

function showRunning(running) {
  guardLeaving(running);
  for (const button of document.querySelectorAll("[data-keep]")) button.disabled = running;
  byId("generate").setAttribute("aria-disabled", String(running));
  byId("generate").textContent = running ? "Generating…" : "Generate";
  byId("results").setAttribute("aria-busy", String(running));
  if (document.activeElement === byId("stop")) byId("generate").focus(); // a disabled button cannot keep the focus
  byId("stop").disabled = !running;
}

function showError(cause) {
  if (cause?.name === "AbortError") return;
  byId("error").hidden = cause === null;
  byId("error").textContent = cause?.message ?? "";
  form.clearInvalid();
  if (cause) byId("error").scrollIntoView({ block: "nearest" });
  if (cause instanceof ApiError) form.setInvalid(cause.field);
  else if (cause && !(cause instanceof InputError)) throw cause; // ours to fix: let the console have it
}

byId("form").addEventListener("submit", (event) => {
  event.preventDefault();
  generate();
});
byId("stop").addEventListener("click", () => stop?.abort());

// ---- keeping ------------------------------------------------------------------------------------------------------

/** Shows a session that was read and checked. */
function restore({ settings, arms: kept }) {
  showError(null);
  form.apply(settings);
  ran = null;
  for (const arm of arms) arm.clear();
  comparison.clear();
  if (Object.keys(kept).length) {
    show({ ...form.settings, model: settings.model });
    for (const arm of arms) if (kept[arm.name]) arm.restore(kept[arm.name]);
  } else {
    form.refresh();
  }
}

const said = (text) => (byId("kept").textContent = text);
wireKeep(byId("keep"), { form, arms: () => arms, ran: () => ran, restore }, said, showError);

/** Takes settings out of the address, once; nothing is generated by following a link. */
function takeLink() {
  const { hash } = location;
  if (!form.policies.length || !hash.startsWith("#settings=")) return;
  history.replaceState(null, "", location.pathname + location.search);
  const settings = settingsIn(hash, form.policies);
  form.apply(settings);
  said("Settings and prompt are from the link. Nothing was generated yet.");
}

addEventListener("hashchange", () => {
  try {
    takeLink();
  } catch (cause) {
    showError(cause);
  }
});

// ---- server ------------------------------------------------------------------------------------------------------

async function loadServer() {
  const { api_key: key } = form.settings;
  const [models, steering, schema] = await Promise.all(
    ["v1/models", "v1/steering", "v1/steering/schema"].map((path) => getJson(path, key)),
  );
  form.setModels(models.data.map((model) => model.id));
  serverThreshold = steering.threshold_nats ?? NaN;
  if (!form.policies.length) {
    form.setPolicies(readSchema(schema));
    if (!Number.isNaN(serverThreshold)) form.set("threshold_nats", serverThreshold);
  }
  const facts = [
    steering.vllm && `vLLM ${steering.vllm}`,
    steering.runner && `runner ${steering.runner}`,
    steering.processor === false && "no steering processor",
  ];
  byId("server").textContent = facts.filter(Boolean).join(" · ");
  takeLink();
}

function connect() {
  return loadServer().then(() => showError(null), showError);
}

byId("api_key").addEventListener("change", connect);

// On a narrow window the settings stand between the prompt and its answer: folded there, always open beside it.
const wide = matchMedia("(min-width: 62rem)");
const foldSettings = () => (byId("settings").open = wide.matches);
wide.addEventListener("change", foldSettings);
foldSettings();

form.refresh();
connect();
