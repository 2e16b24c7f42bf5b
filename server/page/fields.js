// The controls of one policy, built from its fields (see schema.js).

import { element } from "./format.js";
import { applies, labelOf } from "./schema.js";

/** A slider covers the useful part of a wide range; null: no slider. */
function sliderRange({ name, min, max, initial, optional }) {
  if (name.endsWith("_temperature")) return optional ? null : [0, Math.max(3, initial), 0.05];
  if (name.endsWith("_nats")) return [Math.max(min ?? -4, -4), 4, 0.01];
  return min !== undefined && max !== undefined && max - min <= 64 ? [min, max, max - min > 10 ? 1 : 0.01] : null;
}

export class Fields {
  #values = new Map(); // also of the policies that are not shown, so that going back keeps them
  #fields = [];

  constructor(root) {
    this.root = root;
  }

  /** Builds the controls of `policy`; what a shared name held before stays, except the selector's own default. */
  show(policy) {
    this.read();
    this.#fields = policy.fields;
    const select = policy.fields.find(({ name }) => name === "select");
    if (select && this.policy !== policy.name) this.#values.set("select", select.initial);
    this.policy = policy.name;
    for (const { name, initial } of policy.fields) if (!this.#values.has(name)) this.#values.set(name, initial);
    this.root.replaceChildren(...policy.fields.map((field) => this.#row(field, this.#values.get(field.name))));
    this.refresh(true);
  }

  #row(field, value) {
    return field.kind === "choice" ? this.#segments(field, value) : this.#number(field, value);
  }

  #segments({ name, choices, description }, value) {
    const row = element("div", "choice");
    const [text] = labelOf(name);
    const label = element("span", "label", text);
    label.id = `label-${name}`;
    const group = element("div", "segments");
    group.setAttribute("role", "radiogroup");
    group.setAttribute("aria-labelledby", label.id);
    group.title = description;
    for (const choice of choices) {
      const input = document.createElement("input");
      Object.assign(input, { type: "radio", name, value: choice, checked: choice === value });
      const option = element("label");
      option.append(input, element("span", "", choice));
      group.append(option);
    }
    row.append(label, group);
    row.dataset.field = name;
    return row;
  }

  #number(field, value) {
    const { name, kind, min, max, optional, description } = field;
    const row = element("div", "slider");
    row.dataset.field = name;
    const [text, unit] = labelOf(name);
    const label = element("label", "", text);
    if (unit) label.append(" ", element("small", "", unit));
    label.htmlFor = name;
    const number = document.createElement("input");
    Object.assign(number, { type: "number", id: name, name, step: kind === "integer" ? "1" : "any" });
    Object.assign(number, { required: !optional, title: description, value });
    if (min !== undefined) number.min = min;
    if (max !== undefined) number.max = max;
    row.append(label);
    const range = sliderRange(field);
    if (range) row.append(slider(number, range, unit ? `${text} in ${unit}` : text));
    else row.classList.add("no-range");
    if (optional) number.placeholder = name.endsWith("_temperature") ? "as T" : "default";
    row.append(number);
    return row;
  }

  set(name, value) {
    const control = this.root.querySelector(`[name="${CSS.escape(name)}"]`);
    if (!control) return false;
    if (control.type === "radio") {
      for (const radio of this.root.querySelectorAll(`[name="${CSS.escape(name)}"]`))
        radio.checked = radio.value === value;
    } else {
      control.value = value;
      const range = control.parentElement.querySelector("[type=range]");
      if (range) range.value = value;
    }
    return true;
  }

  /** Forgets every value, so that the next `show` starts with `values`. */
  reset(values) {
    this.root.replaceChildren();
    this.#fields = [];
    this.#values = new Map(Object.entries(values));
    this.policy = values.policy; // its selector is among the values
  }

  /** Values by name as typed: a choice's text, a number, NaN for a number field that is empty. */
  read() {
    for (const { name, kind } of this.#fields) {
      const control = this.root.querySelector(`[name="${CSS.escape(name)}"]${kind === "choice" ? ":checked" : ""}`);
      this.#values.set(name, kind === "choice" ? (control?.value ?? "") : control.value);
    }
    return Object.fromEntries(this.#fields.map(({ name, kind }) => [name, this.#typed(name, kind)]));
  }

  #typed(name, kind) {
    const text = this.#values.get(name);
    return kind === "choice" ? text : text === "" ? NaN : Number(text);
  }

  /** What a request says: the fields that have a meaning and a value. */
  get steering() {
    const values = this.read();
    const given = this.#fields.filter((field) => applies(field, values) && !Number.isNaN(values[field.name]));
    return Object.fromEntries(given.map(({ name }) => [name, values[name]]));
  }

  /** Shows the rows that have a meaning now; `own` says whether the policy's own fields are in use. */
  refresh(own, isOwn = () => false) {
    const values = this.read();
    for (const field of this.#fields) {
      const row = this.root.querySelector(`[data-field="${CSS.escape(field.name)}"]`);
      row.hidden = !applies(field, values);
      const idle = row.hidden || (!own && isOwn(field.name)); // disabled fields are not validated
      for (const input of row.querySelectorAll("input")) input.disabled = idle;
    }
  }
}

function slider(number, [min, max, step], label) {
  const range = document.createElement("input");
  Object.assign(range, { type: "range", min, max, step });
  range.value = number.value;
  range.setAttribute("aria-label", label);
  range.addEventListener("input", () => (number.value = range.value));
  number.addEventListener("input", () => (range.value = number.value));
  return range;
}
