// The form: its values as one settings object, and where an error belongs.

import { Fields } from "./fields.js";
import { element } from "./format.js";
import { labelOf } from "./schema.js";

const NUMBERS = ["temperature", "max_tokens", "seed"];

export class Form {
  #policies = [];

  /** `onChange(settings)` is called after every change, and by `refresh`. */
  constructor(form, onChange) {
    this.form = form;
    this.controls = form.elements;
    this.onChange = onChange;
    this.fields = new Fields(form.querySelector("#fields"));
    form.addEventListener("input", ({ target }) => {
      this.clearInvalid(target);
      if (target === this.controls.policy) this.#showPolicy();
      this.refresh();
    });
    form.addEventListener("invalid", ({ target }) => reveal(target), { capture: true }); // invalid does not bubble
    this.controls.prompt.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
    });
  }

  /**
   * { prompt, mode, model, temperature, max_tokens, seed, steered, steering, api_key }. A number that is missing or
   * not one reads as NaN; the browser stops such a form at submit.
   */
  get settings() {
    const text = Object.fromEntries(
      ["prompt", "mode", "model", "api_key"].map((name) => [name, this.controls[name].value]),
    );
    const numbers = Object.fromEntries(NUMBERS.map((name) => [name, this.controls[name].valueAsNumber]));
    const steering = { policy: this.controls.policy.value, ...this.fields.steering };
    return { ...text, ...numbers, steered: this.controls.steering.checked, steering };
  }

  /** Names of the steering fields that every policy has; the baseline is measured with the same. */
  get shared() {
    return this.#policies[0]?.shared ?? new Set();
  }

  get policies() {
    return this.#policies;
  }

  setPolicies(policies) {
    this.#policies = policies;
    const before = this.controls.policy.value;
    const options = policies.map(({ name }) => new Option(name.replaceAll("_", " "), name, false, name === before));
    this.controls.policy.replaceChildren(...options);
    this.#showPolicy();
    this.refresh();
  }

  #showPolicy() {
    const policy = this.#policies.find(({ name }) => name === this.controls.policy.value);
    if (!policy) return;
    this.fields.show(policy);
    const [first] = policy.about.split("\n\n");
    const list = element("dl");
    for (const { name, description } of policy.fields) {
      list.append(element("dt", "", labelOf(name).join(" ").trim()), element("dd", "", plain(description)));
    }
    this.form.querySelector("#policy-about").textContent = plain(first);
    this.form.querySelector("#field-notes").replaceChildren(list);
  }

  set(name, value) {
    if (!this.fields.set(name, value)) this.controls[name].value = value;
    this.refresh();
  }

  /** Puts checked settings (see settings.js) into the form; the model only if the server has it. */
  apply(settings) {
    for (const name of ["prompt", "mode", ...NUMBERS]) this.controls[name].value = settings[name];
    if ([...this.controls.model.options].some(({ value }) => value === settings.model))
      this.controls.model.value = settings.model;
    this.controls.steering.checked = settings.steered;
    this.controls.policy.value = settings.steering.policy;
    this.fields.reset(settings.steering);
    this.#showPolicy();
    this.clearInvalid();
    this.refresh();
  }

  setModels(ids) {
    const before = this.controls.model.value;
    this.controls.model.replaceChildren(...ids.map((id) => new Option(id, id, false, id === before)));
    this.refresh();
  }

  /** Marks the control `name`, if there is one, as the culprit that #error explains. */
  setInvalid(name) {
    const control = name ? this.controls[name] : null;
    if (!(control instanceof HTMLElement)) return;
    reveal(control);
    control.setAttribute("aria-invalid", "true");
    control.setAttribute("aria-describedby", "error");
  }

  clearInvalid(scope = this.form) {
    for (const control of [scope, ...scope.querySelectorAll("[aria-invalid]")]) {
      control.removeAttribute("aria-invalid");
      if (control !== this.form) control.removeAttribute("aria-describedby");
    }
  }

  /** Shows the rows that have a meaning, and tells `onChange`. */
  refresh() {
    const steered = this.controls.steering.checked;
    this.controls.policy.disabled = !steered;
    this.fields.refresh(steered, (name) => !this.shared.has(name));
    this.onChange(this.settings);
  }
}

/** A docstring's text without the marks around names. */
const plain = (text) => text.replaceAll("`", "");

/** Opens what `control` is folded away in. */
function reveal(control) {
  for (let fold = control.closest("details"); fold; fold = fold.parentElement.closest("details")) fold.open = true;
}
