// The JSON Schema of the `steering` object (GET v1/steering/schema) -> policies with their fields, for a form.
//
// A field: { name, kind, choices, min, max, initial, required, optional, description, needs }
//   kind      "choice" (one of `choices`), "number" or "integer"
//   min, max  undefined where there is no bound
//   initial   what a form starts with; "" where the server's own default applies
//   required  by the server
//   optional  may be empty in a form
//   needs     { name of another field: its values with which this one has a meaning }

// What the page sets itself: it reads every token's entropy, as it comes.
const OURS = /^policy$|^probe_temperature$|telemetry$/;

/** -> [{ name, about, fields, shared }], the default policy first; `shared` names the fields that all policies have. */
export function readSchema(schema) {
  const names = schema.oneOf.map(({ properties }) => new Set(Object.keys(properties)));
  const shared = new Set([...names[0]].filter((name) => !OURS.test(name) && names.every((all) => all.has(name))));
  return schema.oneOf.map(({ title, description, properties, required }) => {
    const fields = Object.entries(properties)
      .filter(([name]) => !OURS.test(name))
      .map(([name, property]) => readField(name, property, required))
      .filter((field) => field.kind);
    return { name: title, about: description ?? "", fields: ordered(fields, shared), shared };
  });
}

/** Selector and its fields, then the policy's own fields, then the rest of the shared ones. */
function ordered(fields, shared) {
  const rank = ({ name, needs }) => {
    if (!shared.has(name)) return 1;
    return name === "select" || needs.select ? 0 : 2;
  };
  return fields.toSorted((a, b) => rank(a) - rank(b));
}

/** A property's alternatives other than null. */
const alternatives = (property) =>
  (property.anyOf?.flatMap(alternatives) ?? [property]).filter(({ type }) => type !== "null");

function readField(name, property, required) {
  const kinds = alternatives(property);
  const choices = kinds.flatMap((kind) => kind.enum ?? []);
  const number = kinds.find(({ type }) => type === "number" || type === "integer");
  const constants = kinds.map((kind) => kind.const).filter((value) => typeof value === "number");
  const lowest = [number?.minimum ?? number?.exclusiveMinimum, ...constants].filter((value) => value !== undefined);
  const highest = number?.exclusiveMaximum - (number?.type === "integer" ? 1 : 0);
  return {
    name,
    kind: choices.length ? "choice" : number?.type,
    choices,
    min: lowest.length ? Math.min(...lowest) : undefined,
    max: number?.maximum ?? (Number.isNaN(highest) ? undefined : highest),
    initial: property.default ?? property.examples?.[0] ?? "",
    required: required.includes(name),
    optional: !required.includes(name) && property.examples === undefined && (property.default ?? null) === null,
    description: property.description ?? "",
    needs: property["x-with"] ?? {},
  };
}

/** Whether `field` has a meaning among `values` (name -> value). */
export const applies = ({ needs }, values) =>
  Object.entries(needs).every(([name, allowed]) => allowed.includes(values[name]));

/** `fork_temperature` -> ["Fork temperature", ""], `threshold_nats` -> ["Threshold", "nats"]. */
export function labelOf(name) {
  const [, stem, unit] = /^(.*?)(?:_(nats))?$/.exec(name);
  const words = stem.replaceAll("_", " ");
  return [words.charAt(0).toUpperCase() + words.slice(1), unit ?? ""];
}
