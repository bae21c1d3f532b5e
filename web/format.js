// Numbers and durations as text. Pure.

const WHOLE = new Intl.NumberFormat("en", { maximumFractionDigits: 0 });
const TENTHS = new Intl.NumberFormat("en", { minimumFractionDigits: 1, maximumFractionDigits: 1 });

/** What stands where a value is not known. */
export const NONE = "–";

export function whole(value) {
  return value === null || value === undefined ? NONE : WHOLE.format(value);
}

/** A rate a second; small ones keep a decimal. */
export function rate(value) {
  if (value === null) return NONE;
  return value > 0 && value < 10 ? TENTHS.format(value) : WHOLE.format(value);
}

export function percent(share) {
  if (share === null) return NONE;
  if (share > 0 && share < 0.005) return "<1 %";
  return `${Math.round(share * 100)} %`;
}

/** Two significant digits: the buckets give no more. */
function twoDigits(value) {
  const rounded = Number(value.toPrecision(2));
  return String(rounded >= 10 ? Math.round(rounded) : rounded);
}

/** Seconds as ms or s. */
export function latency(seconds) {
  return seconds < 0.995 ? `${twoDigits(seconds * 1000)} ms` : `${twoDigits(seconds)} s`;
}

/** A quantile of prometheus.js. */
export function quantileText(quantile) {
  if (quantile === null) return NONE;
  return quantile.over ? `over ${latency(quantile.value)}` : latency(quantile.value);
}

/** A span of time, coarse. */
export function span(seconds) {
  const s = Math.max(0, Math.floor(seconds));
  if (s < 120) return `${s} s`;
  if (s < 7200) return `${Math.floor(s / 60)} min`;
  if (s < 172_800) return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
  return `${Math.floor(s / 86_400)} d ${Math.floor((s % 86_400) / 3600)} h`;
}

/** "1 partition", "3 partitions". */
export function counted(count, noun) {
  return `${whole(count)} ${noun}${count === 1 ? "" : "s"}`;
}

/** "a", "a and b", "a, b and c". */
export function listed(parts) {
  return parts.length < 2 ? parts.join("") : `${parts.slice(0, -1).join(", ")} and ${parts.at(-1)}`;
}
