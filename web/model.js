// From what the node answered to what the page says. Keeps a short history of readings; rates and
// latencies are the growth between two of them, on the node's own clock (its uptime). Nothing is
// claimed that the readings do not hold. Pure: no DOM.

import * as m from "./prometheus.js";

/** Rates are over the last so many seconds, latencies over more, for there are fewer samples. */
const RATE_WINDOW = 5;
const LATENCY_WINDOW = 30;
/** The line of rates goes back so many seconds, and starts when a rate is over a few. */
export const TREND_S = 120;
const TREND_WINDOW = 2.5;
/** Nothing is called idle or stalled on less than so many seconds. */
const STILL_WINDOW = 4;
/** More than so many seconds' work waits: it is behind. */
const BEHIND_S = 2;

const P = "millstream_";
const END_TO_END = `${P}end_to_end_seconds`;

/**
 * The stages in the order of the flow. `busy`, `blocked`: the node measures it, so a zero is a
 * zero; elsewhere it is shown once it moves. `overlaps`: its batches are on their way side by side,
 * so their mean time is shown rather than a share that would exceed the whole.
 */
export const STAGES = [
  { name: "generator", roles: ["generate"] },
  { name: "kafka_ingest", roles: ["process"], blocked: true },
  { name: "batch_accumulator", roles: ["process"], busy: true },
  { name: "python_worker_supervisor", roles: ["process"], busy: true, overSlots: true },
  { name: "redis_queue", roles: ["process", "store"], overlaps: true },
  { name: "duckdb_writer", roles: ["store"], busy: true },
  { name: "file_upload", roles: ["process"], beside: true },
  { name: "worker_semaphore", roles: ["process"], beside: true, permits: true },
];

export class Model {
  #readings = [];
  #trend = [];

  /** Takes one reading: the JSON of /api/status and the text of /metrics. */
  take(status, metricsText) {
    const reading = { at: status.uptime_s, status, metrics: m.parse(metricsText) };
    const last = this.#readings.at(-1);
    // Another process answers, or the page slept: what was before says nothing about now.
    if (last && (reading.at < last.at || reading.at - last.at > LATENCY_WINDOW)) {
      this.#readings = [];
      this.#trend = [];
    }
    this.#readings.push(reading);
    while (reading.at - this.#readings[0].at > LATENCY_WINDOW) this.#readings.shift();
    this.#follow(reading.at);
  }

  #follow(at) {
    const [rate, before] = [this.#eventRate(), this.#since(RATE_WINDOW)];
    if (rate === null || at - before.at < TREND_WINDOW) return;
    this.#trend.push({ at, rate });
    while (at - this.#trend[0].at > TREND_S) this.#trend.shift();
  }

  get #now() {
    return this.#readings.at(-1);
  }

  /** The oldest reading of the last seconds; at least the one before, when there is one. */
  #since(seconds) {
    const recent = this.#readings.slice(0, -1);
    return recent.find((r) => this.#now.at - r.at <= seconds + 0.5) ?? recent.at(-1) ?? null;
  }

  /** Growth a second of one metric. */
  #rate(name, labels) {
    const before = this.#since(RATE_WINDOW);
    if (!before) return null;
    const grown = m.growth(before.metrics, this.#now.metrics, P + name, labels);
    return grown === null ? null : grown / (this.#now.at - before.at);
  }

  /** Where this node's roles let an event be counted last, and how to say so. */
  get #end() {
    const { roles } = this.#now.status;
    if (roles.includes("store")) return { stage: "duckdb_writer", verb: "", store: "DuckDB" };
    if (roles.includes("process")) return { stage: "redis_queue", verb: " onto the queue", store: "the queue" };
    return { stage: "generator", verb: " into Kafka", store: "Kafka" };
  }

  #eventRate() {
    return this.#rate("stage_sent_events_total", { stage: this.#end.stage });
  }

  /** Everything that the page shows. */
  view() {
    const { status } = this.#now;
    const partitions = this.#partitions(this.#now);
    const view = {
      status,
      stages: STAGES.map((stage) => this.#stage(stage)),
      actors: Object.entries(status.actors).sort(([a], [b]) => order(a) - order(b)),
      python: this.#python(),
      scripts: this.#scripts(),
      broken: Object.entries(status.python.broken),
      deadLetters: this.#deadLetters(),
      partitions,
      latency: ["durable", "online"].map((path) => this.#latency(path)),
      latencyWindow: this.#latencySpan(),
      trend: this.#trend,
    };
    return { ...view, flow: this.#flow(partitions, view.latency[0]) };
  }

  #stage(stage) {
    const { status, metrics } = this.#now;
    const labels = { stage: stage.name };
    const share = (name, measured) => {
      const total = m.sum(metrics, `${P}stage_${name}_seconds_total`, labels);
      return measured || total > 0 ? this.#rate(`stage_${name}_seconds_total`, labels) : null;
    };
    const errors = m
      .series(metrics, `${P}stage_errors_total`, labels)
      .filter((s) => s.value > 0)
      .map((s) => ({ type: s.labels.error_type, count: s.value }));
    const busy = stage.overlaps ? null : share("busy", stage.busy);
    const slots = stage.overSlots ? Math.max(1, status.python.cap) : 1;
    return {
      ...stage,
      here: stage.roles.some((role) => status.roles.includes(role)),
      rate: this.#rate("stage_sent_events_total", labels),
      waiting: m.sum(metrics, `${P}stage_queue_depth`, labels),
      busy: busy === null ? null : busy / slots,
      blocked: share("blocked", stage.blocked),
      batchSeconds: stage.overlaps ? this.#meanDuration(labels) : null,
      inUse: stage.permits ? m.sum(metrics, `${P}python_permits_in_use`) : null,
      errors,
    };
  }

  #meanDuration(labels) {
    const batches = this.#rate("stage_duration_seconds_count", labels);
    const seconds = this.#rate("stage_duration_seconds_sum", labels);
    return batches > 0 && seconds !== null ? seconds / batches : null;
  }

  #python() {
    const { status, metrics } = this.#now;
    const scripts = m.series(metrics, `${P}script_info`).map((s) => s.labels);
    const workers = Object.entries(status.python.workers)
      .map(([number, worker]) => ({
        number: Number(number),
        ...worker,
        script: scripts.find((s) => worker.script_sha256.startsWith(s.version))?.script ?? null,
      }))
      .sort((a, b) => a.number - b.number);
    return { cap: status.python.cap, workers };
  }

  #scripts() {
    const { broken, scripts } = this.#now.status.python;
    return Object.entries(scripts).map(([stream, script]) => {
      let state = "runs";
      if (broken[stream] !== undefined) state = "waits";
      else if (script.paused !== null) state = "paused";
      else if (script.trying !== null) state = "trying another";
      return { stream, ...script, state };
    });
  }

  #deadLetters() {
    const now = this.#now;
    const rows = m.series(now.metrics, `${P}dead_letters_total`).map(({ labels, value }) => ({
      stage: labels.stage,
      reason: labels.reason,
      count: value,
      rate: this.#rate("dead_letters_total", labels),
    }));
    const named = (row) => `${row.reason} ${row.stage}`;
    return rows.sort((a, b) => b.count - a.count || (named(a) < named(b) ? -1 : 1));
  }

  /** This node's partitions; lag only where librdkafka's statistics told one. */
  #partitions(reading) {
    if (!reading.status.partitions) return null;
    return Object.entries(reading.status.partitions).map(([source, partition]) => {
      const parts = source.replace(/^kafka:/, "").split("/");
      const [topic, number] = parts.slice(-2);
      const labels = { topic, partition: number };
      return {
        ...partition,
        stream: parts.slice(0, -2).join("/"),
        topic,
        number: Number(number),
        lag: m.sum(reading.metrics, `${P}kafka_lag_records`, labels),
      };
    });
  }

  #latency(path) {
    const before = this.#since(LATENCY_WINDOW);
    const empty = { path, count: 0, p50: null, p99: null };
    if (!before) return empty;
    const grown = m.histogramGrowth(before.metrics, this.#now.metrics, END_TO_END, { path });
    const [p50, p99] = [m.quantile(grown, 0.5), m.quantile(grown, 0.99)];
    return { path, count: Math.max(0, grown.count), p50, p99 };
  }

  #latencySpan() {
    const before = this.#since(LATENCY_WINDOW);
    return before ? this.#now.at - before.at : 0;
  }

  /** What flows, what is behind, and what is wrong. */
  #flow(partitions, durable) {
    const { status } = this.#now;
    const rate = this.#eventRate();
    const lag = lagOf(partitions);
    const before = this.#since(RATE_WINDOW);
    const lagBefore = before ? lagOf(this.#partitions(before)) : null;
    const halted = (partitions ?? []).filter((p) => p.state === "halted");
    const opening = (partitions ?? []).filter((p) => ["opening", "seeking"].includes(p.state));
    const down = Object.entries(status.actors).filter(([, a]) => !a.up).map(([name]) => name);
    const broken = Object.keys(status.python.broken);
    const window = before ? this.#now.at - before.at : 0;
    let state = "flowing";
    if (rate === null || (rate === 0 && window < STILL_WINDOW)) state = "measuring";
    else if (rate === 0) state = lag > 0 ? "stalled" : "idle";
    else if (lag !== null && lag > rate * BEHIND_S) {
      state = lagBefore !== null && lag < lagBefore ? "catching up" : "behind";
    }
    const end = this.#end;
    return { state, rate, lag, window, end, p99: durable.p99, halted, opening, down, broken };
  }
}

function lagOf(partitions) {
  const known = (partitions ?? []).filter((p) => p.lag !== null);
  return known.length === 0 ? null : known.reduce((total, p) => total + p.lag, 0);
}

/** Actors stand in the order of the flow, those that are no stage after the one they serve. */
function order(actor) {
  const names = STAGES.map((s) => s.name);
  const exact = names.indexOf(actor);
  if (exact >= 0) return exact;
  const serves = names.findIndex((name) => actor.startsWith(name));
  return serves >= 0 ? serves + 0.5 : names.length;
}
