// How entropy maps to a place on the axis and to a color. H in nats, results in [0, 1].

export const MAX_NATS = 8;

// Linear below 0.01 nats and logarithmic above: half of a strong model's tokens lie below 0.01.
const AXIS_KNEE_NATS = 0.01;
// Color starts later, so that sure tokens stay uncolored, and is full where the axis is nearly at its end.
const HEAT_KNEE_NATS = 0.3;
const HEAT_FULL_NATS = 4;

const logish = (nats, knee, full) => Math.min(1, Math.log1p(Math.max(0, nats) / knee) / Math.log1p(full / knee));

export const axis = (nats) => logish(nats, AXIS_KNEE_NATS, MAX_NATS);

export const axisInverse = (x) => AXIS_KNEE_NATS * Math.expm1(x * Math.log1p(MAX_NATS / AXIS_KNEE_NATS));

export const heat = (nats) => (nats === null ? 0 : logish(nats, HEAT_KNEE_NATS, HEAT_FULL_NATS));

/** Sets the color of `element`: the stylesheet mixes the ramp's two ends in OKLCH by --heat. */
export function setHeat(element, share) {
  element.style.setProperty("--heat", `${(100 * share).toFixed(1)}%`);
}
