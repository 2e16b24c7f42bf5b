// Numbers and tokens as people read them.

export const percent = (share) => `${(100 * share).toFixed(1)}%`;

/** A number with at most `digits` decimals and no trailing zeros. */
export const short = (value, digits = 3) => String(Number(value.toFixed(digits)));

/** Small entropies keep their leading digits, large ones two decimals. */
export const nats = (value) =>
  value !== 0 && value < 0.1 ? Number(value.toPrecision(2)).toString() : value.toFixed(2);

/** Token text with its spaces and line ends made visible, for labels and quotes. */
export const visible = (text) =>
  text === ""
    ? "(empty)"
    : text
        .replaceAll("\n", "⏎")
        .replaceAll("\t", "⇥")
        .replace(/^ +| +$/g, (s) => "␣".repeat(s.length));

/** `<tag class="name">text</tag>`; text only, never markup. */
export function element(tag, name = "", text = "") {
  const node = document.createElement(tag);
  if (name) node.className = name;
  if (text) node.textContent = text;
  return node;
}
