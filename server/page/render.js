// A picture (see picture.js) as an SVG file or a PNG file. Both are drawn from the same shapes.

import { InputError } from "./settings.js";
import { FONTS } from "./picture.js";

const SVG = "http://www.w3.org/2000/svg";
const MAX_PNG_PX = 16_000; // of a side; browsers draw nothing beyond
const font = ({ size, bold, mono }) => `${bold ? "bold " : ""}${size}px ${mono ? FONTS.mono : FONTS.sans}`;

/** Measures texts as the files will show them. */
export function measurer() {
  const context = document.createElement("canvas").getContext("2d");
  return (text, shape) => {
    context.font = font(shape);
    return context.measureText(text).width;
  };
}

/** The page's colors, as they are shown now, as hexadecimal sRGB, which every program reads. */
export function colors() {
  const probe = document.createElement("i");
  document.body.append(probe);
  const context = new OffscreenCanvas(1, 1).getContext("2d", { willReadFrequently: true });
  const known = new Map();
  return (name, share) => {
    const css =
      share === undefined
        ? `var(--${name})`
        : `color-mix(in oklab, var(--card), var(--hot) ${Math.round(50 * share) * 2}%)`;
    if (!known.has(css)) {
      probe.style.color = css;
      context.fillStyle = getComputedStyle(probe).color;
      context.fillRect(0, 0, 1, 1);
      const [r, g, b] = context.getImageData(0, 0, 1, 1).data;
      known.set(css, `#${[r, g, b].map((value) => value.toString(16).padStart(2, "0")).join("")}`);
    }
    return known.get(css);
  };
}

export function svgBlob({ width, height, background, shapes }) {
  const svg = svgElement("svg", { xmlns: SVG, width, height, viewBox: `0 0 ${width} ${height}` });
  svg.append(svgElement("rect", { width, height, fill: background }));
  for (const shape of shapes) svg.append(svgShape(shape));
  return new Blob([new XMLSerializer().serializeToString(svg)], { type: "image/svg+xml" });
}

function svgElement(tag, attributes) {
  const node = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes)) if (name !== "xmlns") node.setAttribute(name, value);
  return node;
}

const rounded = (value) => Math.round(value * 100) / 100;

function svgShape({ kind, x, y, width, height, fill, text, size, bold, mono }) {
  const at = { x: rounded(x), y: rounded(y), fill };
  if (kind === "rect") return svgElement("rect", { ...at, width: rounded(width), height: rounded(height) });
  const node = svgElement("text", {
    ...at,
    "font-size": size,
    "font-family": mono ? FONTS.mono : FONTS.sans,
    ...(bold && { "font-weight": "bold" }),
    ...(width > 0 && { textLength: rounded(width), lengthAdjust: "spacingAndGlyphs" }), // also with another font
  });
  // XML has no place for other control characters.
  node.textContent = text.replace(/[^\P{Cc}]/gu, "\uFFFD");
  return node;
}

export function pngBlob({ width, height, background, shapes }) {
  const scale = 2 * Math.max(width, height) <= MAX_PNG_PX ? 2 : 1;
  if (Math.max(width, height) > MAX_PNG_PX) throw new InputError("The run is too long for a PNG: save it as SVG.");
  const canvas = document.createElement("canvas");
  [canvas.width, canvas.height] = [width * scale, height * scale];
  const context = canvas.getContext("2d");
  context.scale(scale, scale);
  context.fillStyle = background;
  context.fillRect(0, 0, width, height);
  for (const shape of shapes) {
    context.fillStyle = shape.fill;
    context.font = font(shape.size ? shape : { size: 1 });
    if (shape.kind === "rect") context.fillRect(shape.x, shape.y, shape.width, shape.height);
    else context.fillText(shape.text, shape.x, shape.y);
  }
  return new Promise((resolve) => canvas.toBlob(resolve, "image/png"));
}
