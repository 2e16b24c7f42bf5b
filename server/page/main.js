// Wires the parts together: form -> requests -> arms -> marks, histogram, comparison, snippets.

import { ApiError, getJson } from "./api.js";
import { Arm } from "./arm.js";
import { Comparison } from "./comparison.js";
import { nats, percent } from "./format.js";
import { Form } from "./form.js";
import { Histogram } from "./histogram.js";
import { buildRequest, describe } from "./requests.js";
import { setHeat } from "./scale.js";
import { showSnippets } from "./snippets.js";

const byId = (id) => document.getElementById(id);

let ran = null; // settings of the run on display
let stop = null; // AbortController of the run in progress
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
const armsOnDisplay = () => (settingsOnDisplay().steering ? arms : arms.slice(0, 1));

function onSettings(settings) {
  showSnippets(settings);
  if (!ran) showArms(settings);
  const byEntropy = settingsOnDisplay().select === "entropy" && !Number.isNaN(settings.threshold_nats);
  const isFork = byEntropy
    ? ({ entropyNats }) => entropyNats !== null && entropyNats > settings.threshold_nats
    : ({ fork }) => fork;
  for (const arm of arms) arm.mark(isFork);
  showEntropies();
}

function showArms(settings) {
  for (const arm of arms) arm.describe(describe(settings, arm.name));
  arms[1].element.hidden = !settings.steering;
}

function onTokens() {
  if (drawing) return;
  drawing = true; // many tokens, one drawing
  requestAnimationFrame(() => {
    drawing = false;
    if (ran.steering) comparison.update();
    for (const arm of arms) arm.showStats();
    showEntropies();
  });
}

function showEntropies() {
  const { select, threshold_nats: threshold } = form.settings;
  const shown = armsOnDisplay();
  histogram.draw(arms.map((arm) => (shown.includes(arm) ? arm.entropies : null)));
  const rates = shown
    .filter((arm) => arm.measured.length)
    .map((arm) => `${percent(arm.forks / arm.measured.length)} of ${arm.name} tokens`);
  if (!Number.isNaN(threshold)) histogram.setThreshold(threshold, rates.join(", "), select === "entropy");
  const movable = select === "entropy" ? "; drag the line to move the threshold" : "";
  byId("histogram-hint").textContent = `share of tokens by H, in nats${movable}`;
  const chosen = { entropy: `H above ${nats(threshold)} nats`, random: "a random share", all: "all tokens" }[
    settingsOnDisplay().select
  ];
  byId("rates").textContent = rates.length ? `Forks (${chosen}): ${rates.join(", ")}.` : "";
  showStale(threshold);
}

/** Says so when the line has left the threshold that the run on display used. */
function showStale(threshold) {
  const used = arms[0].summary?.threshold_nats ?? ran?.threshold_nats;
  const stale = ran?.select === "entropy" && Math.abs(used - threshold) > 1e-6;
  byId("stale").hidden = !stale;
  byId("stale").textContent = stale ? `This run used ${nats(used)} nats; the new threshold is for the next run.` : "";
}

// ---- running -----------------------------------------------------------------------------------------------------

async function generate() {
  if (stop) return;
  stop = new AbortController();
  showError(null);
  showRunning(true);
  try {
    if (!form.settings.model) await loadServer(); // it could not be reached before
    ran = form.settings;
    for (const arm of arms) arm.clear();
    comparison.clear();
    showArms(ran);
    form.refresh();
    if (!wide.matches) byId("results").scrollIntoView(); // below the form there
    await Promise.all(
      armsOnDisplay().map((arm) => arm.run(buildRequest(ran, arm.name), ran.api_key, stop.signal).catch(showError)),
    );
  } catch (cause) {
    showError(cause);
  } finally {
    stop = null;
    showRunning(false);
  }
}

function showRunning(running) {
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
  else if (cause) throw cause; // ours to fix: let the console have it
}

byId("form").addEventListener("submit", (event) => {
  event.preventDefault();
  generate();
});
byId("stop").addEventListener("click", () => stop?.abort());

// ---- server ------------------------------------------------------------------------------------------------------

async function loadServer() {
  const { api_key: key } = form.settings;
  const models = await getJson("v1/models", key);
  form.setModels(models.data.map((model) => model.id));
  const steering = await getJson("v1/steering", key).catch(() => ({})); // an older server: the page works without
  const threshold = steering.threshold_nats ?? steering.calibration?.threshold_nats;
  if (typeof threshold === "number" && !ran) form.set("threshold_nats", threshold);
  const facts = [
    steering.vllm && `vLLM ${steering.vllm}`,
    steering.runner && `runner ${steering.runner}`,
    steering.processor === false && "no steering processor",
  ];
  byId("server").textContent = facts.filter(Boolean).join(" · ");
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
