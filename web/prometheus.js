// Reads the Prometheus text of /metrics and answers questions about it: one series, a sum, a
// quantile of a histogram's growth between two readings. Pure: no DOM, no clock.

const LINE = /^([a-zA-Z_:][\w:]*)(?:\{(.*)\})?\s+(\S+)/;
const LABEL = /(\w+)="((?:\\.|[^"\\])*)"/g;
const ESCAPES = { "\\n": "\n", '\\"': '"', "\\\\": "\\" };

function number(text) {
  if (text === "+Inf") return Infinity;
  if (text === "-Inf") return -Infinity;
  return Number(text);
}

function labelsOf(text) {
  const labels = {};
  for (const [, key, value] of text.matchAll(LABEL)) {
    labels[key] = value.replace(/\\[n"\\]/g, (escape) => ESCAPES[escape]);
  }
  return labels;
}

/** The text as a map: name → [{ labels, value }]. */
export function parse(text) {
  const families = new Map();
  for (const line of text.split("\n")) {
    if (line === "" || line.startsWith("#")) continue;
    const found = LINE.exec(line);
    if (!found) continue;
    const [, name, labels, value] = found;
    if (!families.has(name)) families.set(name, []);
    families.get(name).push({ labels: labels ? labelsOf(labels) : {}, value: number(value) });
  }
  return families;
}

const matches = (labels, wanted) => Object.entries(wanted).every(([k, v]) => labels[k] === v);

/** The series of a metric that carry these labels. */
export function series(families, name, wanted = {}) {
  return (families.get(name) ?? []).filter((s) => matches(s.labels, wanted));
}

/** The sum of those series; `null` when there is none. */
export function sum(families, name, wanted = {}) {
  const found = series(families, name, wanted);
  return found.length === 0 ? null : found.reduce((total, s) => total + s.value, 0);
}

/** By how much a growing value grew from one reading to the next; `null` when it cannot be said. */
export function growth(before, after, name, wanted = {}) {
  const now = sum(after, name, wanted);
  // A series that was not there before started at zero.
  const then = sum(before, name, wanted) ?? 0;
  return now === null || now < then ? null : now - then;
}

/** How a histogram grew: its count, and its buckets as [{ upTo, count }], cumulative. */
export function histogramGrowth(before, after, name, wanted = {}) {
  const buckets = new Map();
  for (const [families, sign] of [[after, 1], [before, -1]]) {
    for (const s of series(families, `${name}_bucket`, wanted)) {
      const upTo = number(s.labels.le);
      buckets.set(upTo, (buckets.get(upTo) ?? 0) + sign * s.value);
    }
  }
  const list = [...buckets].map(([upTo, count]) => ({ upTo, count }));
  list.sort((a, b) => a.upTo - b.upTo);
  return { count: list.at(-1)?.count ?? 0, buckets: list };
}

/**
 * The quantile, straight-lined within its bucket, as Prometheus' histogram_quantile does:
 * { value, over }; `over` says that it lies beyond the last finite bucket, whose bound `value` is.
 */
export function quantile({ count, buckets }, q) {
  if (!(count > 0)) return null;
  const rank = q * count;
  let [low, below] = [0, 0];
  for (const bucket of buckets) {
    if (bucket.count >= rank) {
      if (bucket.upTo === Infinity) return { value: low, over: true };
      const inside = bucket.count - below;
      const share = inside > 0 ? (rank - below) / inside : 1;
      return { value: low + (bucket.upTo - low) * share, over: false };
    }
    [low, below] = [bucket.upTo, bucket.count];
  }
  return null;
}
