// The run on display as a list of shapes: tokens colored by entropy, forks underlined, a legend. See render.js.
//
// A shape: { kind: "rect", x, y, width, height, fill } or { kind: "text", x, y, text, fill, size, bold, mono, width };
// `y` of a text is its baseline, `width` what it took when it was measured. Lengths in px.

import { heat } from "./scale.js";

const WIDTH = 960;
const MARGIN = 32;
const SIZE = 15;
const LINE = 26;
const LEGEND_NATS = [0, 0.3, 1, 2, 4];
const CELLS = 40;
export const FONTS = {
  mono: '"DejaVu Sans Mono", Menlo, Consolas, monospace',
  sans: '"Liberation Sans", Arial, Helvetica, sans-serif',
};

/**
 * `arms`: [{ title, subtitle, statistics, tokens: [{ text, kind, nats, fork, first }] }]; `color(name)` and
 * `color(name, heat)` give CSS colors; `measure(text, shape)` the width of a text.
 *
 * Returns { width, height, background, shapes }.
 */
export function picture({ title, facts, arms }, color, measure) {
  const page = new Page(color, measure);
  page.write(title, { size: 20, bold: true, gap: 12 });
  for (const fact of facts) page.write(fact, { size: 13, fill: color("muted"), gap: 4 });
  for (const arm of arms) {
    page.space(20);
    page.write(arm.title, { size: 16, bold: true, gap: 2 });
    page.write(arm.subtitle, { size: 13, fill: color("muted"), gap: 10 });
    page.tokens(arm.tokens);
    page.write(arm.statistics, { size: 13, fill: color("muted"), gap: 4 });
  }
  page.space(22);
  page.legend();
  return { width: WIDTH, height: Math.ceil(page.y + MARGIN), background: color("card"), shapes: page.shapes };
}

class Page {
  constructor(color, measure) {
    this.color = color;
    this.measure = measure;
    this.shapes = [];
    this.y = MARGIN;
  }

  space(height) {
    this.y += height;
  }

  #text(text, x, y, shape) {
    const whole = { kind: "text", x, y, text, fill: this.color("ink"), size: 13, bold: false, mono: false, ...shape };
    this.shapes.push({ ...whole, width: this.measure(text, whole) });
    return this.shapes.at(-1).width;
  }

  /** One paragraph, broken between words. */
  write(text, { gap, ...shape }) {
    let line = "";
    const lines = [];
    for (const word of text.split(/\s+/)) {
      const longer = line ? `${line} ${word}` : word;
      if (line && this.measure(longer, { size: 13, ...shape }) > WIDTH - 2 * MARGIN) lines.push(line);
      line = lines.length && lines.at(-1) === line ? word : longer;
    }
    for (const one of [...lines, line]) {
      this.y += shape.size * 1.25;
      this.#text(one, MARGIN, this.y, shape);
    }
    this.y += gap;
  }

  tokens(tokens) {
    let x = MARGIN;
    this.y += LINE;
    for (const { text, kind, nats, fork, first } of tokens) {
      const shown = kind === "part" ? "·" : text;
      for (const [i, piece] of shown.split("\n").entries()) {
        if (i > 0) [x, this.y] = [MARGIN, this.y + LINE];
        if (piece) x = this.#token(piece.replaceAll("\t", "  "), x, { kind, nats, fork, first });
      }
    }
    this.y += LINE * 0.75;
  }

  /** A token on the line, or on the next; one that is wider than a line is cut into pieces. */
  #token(text, x, token) {
    const shape = { size: SIZE, mono: true, fill: this.color(token.kind === "special" ? "muted" : "ink") };
    const room = WIDTH - MARGIN - x;
    const width = this.measure(text, shape);
    if (width > room && x > MARGIN) {
      this.y += LINE;
      return this.#token(text.replace(/^ +(?=\S)/, ""), MARGIN, token);
    }
    const characters = [...text];
    if (width > room && characters.length > 1) {
      const fit = Math.max(1, Math.floor((characters.length * room) / width));
      this.#token(characters.slice(0, fit).join(""), x, token);
      this.y += LINE;
      return this.#token(characters.slice(fit).join(""), MARGIN, token);
    }
    const space = /^ +(?=\S)/.exec(text)?.[0] ?? "";
    const ink = x + this.measure(space, shape);
    const box = { x: ink, y: this.y - SIZE - 2, width: width - (ink - x), height: SIZE + 7 };
    this.shapes.push({ kind: "rect", ...box, fill: this.color("heat", heat(token.nats)) });
    if (token.fork)
      this.shapes.push({ kind: "rect", ...box, y: box.y + box.height, height: 2, fill: this.color("fork") });
    if (token.first) this.#ring(box);
    this.#text(text.slice(space.length), ink, this.y, shape);
    return x + width;
  }

  #ring({ x, y, width, height }) {
    const fill = this.color("ink");
    for (const [dx, dy, w, h] of [
      [-2, -2, width + 4, 2],
      [-2, height, width + 4, 2],
      [-2, -2, 2, height + 4],
      [width, -2, 2, height + 4],
    ])
      this.shapes.push({ kind: "rect", x: x + dx, y: y + dy, width: w, height: h, fill });
  }

  legend() {
    const [x, width] = [MARGIN, 320];
    this.y += 12;
    for (let i = 0; i < CELLS; i++) {
      const at = { x: x + (i * width) / CELLS, y: this.y, width: width / CELLS + 0.5, height: 12 };
      this.shapes.push({ kind: "rect", ...at, fill: this.color("heat", (i + 0.5) / CELLS) });
    }
    for (const nats of LEGEND_NATS) {
      const place = x + width * heat(nats);
      this.shapes.push({
        kind: "rect",
        x: place - 0.5,
        y: this.y + 12,
        width: 1,
        height: 4,
        fill: this.color("muted"),
      });
      const half = this.measure(String(nats), { size: 12 }) / 2;
      this.#text(String(nats), place - half, this.y + 29, { size: 12, fill: this.color("muted") });
    }
    const next = x + width + 16;
    const said = this.#text("entropy H, nats", next, this.y + 11, { size: 13 });
    const fork = this.#text("fork", next + said + 32, this.y + 11, { size: 13 });
    this.shapes.push({
      kind: "rect",
      x: next + said + 32,
      y: this.y + 15,
      width: fork,
      height: 2,
      fill: this.color("fork"),
    });
    const ringed = next + said + fork + 64;
    const part = this.measure("the arms part", { size: 13 });
    this.#ring({ x: ringed, y: this.y - 3, width: part + 6, height: 20 });
    this.#text("the arms part", ringed + 3, this.y + 11, { size: 13 });
    this.y += 32;
  }
}
