// The form: its values as one settings object, paired sliders and numbers, and where an error belongs.

const NUMBERS = [
  "threshold_nats",
  "fork_rate",
  "fork_temperature",
  "other_temperature",
  "temperature",
  "max_tokens",
  "seed",
];

export class Form {
  /** `onChange(settings)` is called after every change, and by `refresh`. */
  constructor(form, onChange) {
    this.form = form;
    this.fields = form.elements;
    this.onChange = onChange;
    for (const slider of form.querySelectorAll("[data-pair]")) {
      const number = this.fields[slider.dataset.pair];
      slider.value = number.value;
      slider.addEventListener("input", () => (number.value = slider.value));
      number.addEventListener("input", () => (slider.value = number.value));
    }
    this.#keepTogether();
    form.addEventListener("input", ({ target }) => {
      this.clearInvalid(target);
      this.refresh();
    });
    form.addEventListener("invalid", ({ target }) => reveal(target), { capture: true }); // invalid does not bubble
    this.fields.prompt.addEventListener("keydown", (event) => {
      if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) form.requestSubmit();
    });
  }

  /** A number field that is empty or not a number reads as NaN; the browser stops such a form at submit. */
  get settings() {
    const text = Object.fromEntries(
      ["prompt", "model", "mode", "select", "api_key"].map((name) => [name, this.fields[name].value]),
    );
    const numbers = Object.fromEntries(NUMBERS.map((name) => [name, this.fields[name].valueAsNumber]));
    return { ...text, ...numbers, steering: this.fields.steering.checked };
  }

  set(name, value) {
    this.fields[name].value = value;
    const slider = this.form.querySelector(`[data-pair="${name}"]`);
    if (slider) slider.value = value;
    this.refresh();
  }

  setModels(ids) {
    const before = this.fields.model.value;
    this.fields.model.replaceChildren(...ids.map((id) => new Option(id, id, false, id === before)));
    this.refresh();
  }

  /** Marks the control `name`, if there is one, as the culprit that #error explains. */
  setInvalid(name) {
    const control = name ? this.fields[name] : null;
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

  /** Shows the rows that the chosen kind of fork has, and tells `onChange`. */
  refresh() {
    const { select, steering } = this.settings;
    for (const row of this.form.querySelectorAll(".slider")) {
      row.hidden = row.dataset.select !== undefined && !row.dataset.select.split(" ").includes(select);
      const idle = row.hidden || (!steering && row.dataset.arm === "steered"); // disabled fields are not validated
      for (const input of row.querySelectorAll("input")) input.disabled = idle;
    }
    this.onChange(this.settings);
  }

  /** While the temperature elsewhere equals the base temperature it follows it: only the forks then differ. */
  #keepTogether() {
    const { temperature, other_temperature: other } = this.fields;
    let last = temperature.value;
    temperature.addEventListener("input", () => {
      if (other.value === last) {
        other.value = temperature.value;
        this.form.querySelector('[data-pair="other_temperature"]').value = temperature.value;
      }
      last = temperature.value;
    });
  }
}

/** Opens what `control` is folded away in. */
function reveal(control) {
  for (let fold = control.closest("details"); fold; fold = fold.parentElement.closest("details")) fold.open = true;
}
