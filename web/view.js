// Draws what model.js says. Every text from the server goes in as text, never as HTML.

import { drawKilled, killButton } from "./chaos.js";
import { breakable, byId, fill, keyed, make, row, setAttribute, setText } from "./dom.js";
import { NONE, counted, latency, percent, quantileText, rate, span, whole } from "./format.js";
import { TREND_S } from "./model.js";

/** The sentence; told to screen readers only when its kind changes, not with every number. */
export function drawVerdict({ tone, title, text, detail }) {
  document.documentElement.dataset.tone = tone;
  setText(byId("verdict-title"), `${title}: `);
  setText(byId("verdict-text"), text);
  setText(byId("verdict-detail"), detail);
  setText(byId("announcement"), title);
  const tab = `${title} – Millstream`;
  if (document.title !== tab) document.title = tab;
}

/** Marks that what is shown is old. */
export function drawStale(stale) {
  document.body.classList.toggle("stale", stale);
}

export function draw(view) {
  byId("content").hidden = false;
  drawNode(view.status);
  drawTrend(view.trend);
  drawTroubles(view);
  drawStages(view.stages, view.python.cap);
  drawActors(view.actors, view.status.chaos_allowed);
  drawKilled(view.status.actors);
  drawPython(view.python);
  drawScripts(view.scripts);
  drawDeadLetters(view.deadLetters);
  drawPartitions(view.partitions);
  drawTotals(view);
  drawLatency(view);
}

function drawNode({ node, version, roles, uptime_s: uptime, brokers }) {
  setText(byId("node-name"), node);
  setText(byId("node-roles"), roles.join(", "));
  setText(byId("node-version"), version);
  setText(byId("node-uptime"), span(uptime));
  setText(byId("node-brokers"), brokers || NONE);
}

function drawTrend(trend) {
  const [width, height] = [240, 36];
  const top = Math.max(...trend.map((point) => point.rate), 1);
  const end = trend.at(-1)?.at ?? 0;
  const points = trend.map((point) => {
    const x = width * (1 - (end - point.at) / TREND_S);
    const y = height - 1 - (point.rate / top) * (height - 3);
    return `${x.toFixed(1)},${y.toFixed(1)}`;
  });
  setAttribute(byId("trend-line"), "points", points.join(" "));
  byId("trend").toggleAttribute("hidden", trend.length < 2);
  setText(byId("trend-label"), `events/s, last ${span(end - (trend[0]?.at ?? 0))}, top ${rate(top)}`);
}

/** Reasons in full: scripts that do not load, partitions that wait for an operator. */
function drawTroubles({ broken, flow }) {
  const troubles = [
    ...broken.map(([stream, why]) => ({ title: `The events of ${stream} wait for its script`, why })),
    ...flow.halted.map((p) => ({
      title: `Partition ${p.topic}/${p.number} of ${p.stream} is halted until an operator decides`,
      why: p.reason ?? "no reason given",
    })),
  ];
  byId("troubles").hidden = troubles.length === 0;
  const build = ({ title }) => {
    const why = make("pre");
    why.tabIndex = 0;
    why.setAttribute("role", "region");
    why.setAttribute("aria-label", title);
    return make("article", "trouble", make("h3"), why);
  };
  keyed(byId("troubles-list"), troubles, (t) => t.title, build, (element, { title, why }) => {
    setText(element.children[0], title);
    setText(element.children[1], why);
  });
}

function buildStage(stage) {
  const fact = (name) => make("div", `fact ${name}`, make("dt"), make("dd"));
  const name = make("h3", "", ...breakable(stage.name));
  const main = make("p", "main", make("span", "number"), make("span", "unit"));
  const bar = make("div", "bar", make("span", "busy"), make("span", "blocked"));
  bar.setAttribute("aria-hidden", "true");
  const item = make("li", "stage", name, main, bar);
  item.append(make("dl", "", fact("waiting"), fact("first"), fact("second")), make("p", "errors"));
  item.dataset.stage = stage.name;
  if (stage.beside) item.classList.add("beside");
  return item;
}

function drawStages(stages, cap) {
  const update = (item, stage) => {
    item.classList.toggle("elsewhere", !stage.here);
    const [number, unit] = item.querySelector(".main").children;
    if (!stage.here) {
      setText(number, NONE);
      setText(unit, "not on this node");
    } else if (stage.permits) {
      setText(number, `${whole(stage.inUse)} of ${whole(cap)}`);
      setText(unit, "permits");
    } else {
      setText(number, rate(stage.rate));
      setText(unit, "events/s");
    }
    const what = stage.permits ? "requests waiting" : "batches waiting";
    drawFact(item.querySelector(".waiting"), what, stage.here ? whole(stage.waiting) : null);
    const overlaps = stage.batchSeconds !== null;
    const busy = stage.busy === null ? null : percent(stage.busy);
    const first = overlaps ? latency(stage.batchSeconds) : busy;
    const label = stage.overSlots ? "busy, of all slots" : "busy";
    drawFact(item.querySelector(".first"), overlaps ? "a batch takes" : label, first);
    drawFact(item.querySelector(".second"), "blocked", stage.blocked === null ? null : percent(stage.blocked));
    drawBar(item.querySelector(".bar"), stage);
    const errors = stage.errors.map(({ type, count }) => `${type} ${whole(count)}`).join(", ");
    const line = item.querySelector(".errors");
    line.hidden = errors === "";
    setText(line, `errors: ${errors}`);
  };
  keyed(byId("stages-flow"), stages.filter((s) => !s.beside), (s) => s.name, buildStage, update);
  keyed(byId("stages-beside"), stages.filter((s) => s.beside), (s) => s.name, buildStage, update);
}

function drawFact(element, label, text) {
  element.hidden = text === null;
  setText(element.children[0], label);
  setText(element.children[1], text ?? "");
}

function drawBar(bar, { busy, blocked }) {
  bar.classList.toggle("unmeasured", busy === null && blocked === null);
  const busyShare = Math.min(1, busy ?? 0);
  const blockedShare = Math.min(1 - busyShare, blocked ?? 0);
  bar.children[0].style.width = `${(busyShare * 100).toFixed(1)}%`;
  bar.children[1].style.width = `${(blockedShare * 100).toFixed(1)}%`;
}

function fillName(cell, name) {
  if (cell.textContent !== name) cell.replaceChildren(...breakable(name));
}

function drawActors(actors, mayKill) {
  byId("kill-head").hidden = !mayKill;
  const build = ([name]) => {
    const tr = row("name", "state", "number", "cause", "act");
    tr.cells[1].append(make("span", "mark"));
    tr.cells[4].append(killButton(name));
    return tr;
  };
  keyed(byId("actors"), actors, ([name]) => name, build, (tr, [name, actor]) => {
    fillName(tr.cells[0], name);
    const mark = tr.cells[1].firstElementChild;
    setText(mark, actor.up ? "up" : "down");
    setAttribute(mark, "data-tone", actor.up ? "good" : "bad");
    const restarts = Math.max(0, actor.generation - 1);
    setText(tr.cells[2], whole(restarts));
    setAttribute(tr.cells[2], "data-zero", restarts === 0 ? "" : null);
    setText(tr.cells[3], actor.last_cause ?? NONE);
    setAttribute(tr.cells[3], "data-zero", actor.last_cause ? null : "");
    tr.cells[4].hidden = !mayKill;
  });
}

function drawPython({ cap, workers }) {
  const slots = workers.map((worker, i) => ({ ...worker, slot: i + 1 }));
  const build = () => {
    const tr = row("number slot", "number", "name", "name", "version", "number", "number", "state");
    tr.cells[7].append(make("span", "mark"));
    return tr;
  };
  keyed(byId("workers"), slots, (w) => w.number, build, (tr, worker) => {
    const texts = [String(worker.slot), worker.pid === null ? NONE : String(worker.pid), worker.stream];
    const memory = worker.resident_bytes ? whole(worker.resident_bytes / 2 ** 20) : NONE;
    const start = worker.start_s === null ? NONE : `${worker.start_s.toFixed(2)} s`;
    fill(tr, ...texts, worker.script ?? NONE, worker.script_sha256.slice(0, 7), memory, start);
    setAttribute(tr.cells[4], "title", worker.script_sha256);
    const mark = tr.cells[7].firstElementChild;
    const state = worker.pid === null ? "starting" : worker.busy ? "busy" : "idle";
    setText(mark, state);
    setAttribute(mark, "data-tone", state === "busy" ? "good" : "calm");
  });
  const free = cap - workers.length;
  const rest = free > 0 ? `; ${counted(free, "slot")} free, or another node's` : "";
  setText(byId("python-cap"), `${whole(workers.length)} of ${whole(cap)} used here${rest}`);
}

const SCRIPT_TONES = { runs: "good", waits: "bad", paused: "warn", "trying another": "calm" };

function drawScripts(scripts) {
  byId("scripts-section").hidden = scripts.length === 0;
  const build = () => {
    const tr = row("name", "version", "state", "number", "event");
    tr.cells[2].append(make("span", "mark"));
    return tr;
  };
  keyed(byId("scripts"), scripts, (s) => s.stream, build, (tr, script) => {
    setText(tr.cells[0], script.stream);
    setText(tr.cells[1], script.version?.slice(0, 7) ?? NONE);
    setAttribute(tr.cells[1], "title", script.version);
    const mark = tr.cells[2].firstElementChild;
    setText(mark, script.state);
    setAttribute(mark, "data-tone", SCRIPT_TONES[script.state]);
    setAttribute(mark, "title", script.paused);
    setText(tr.cells[3], script.swap_s === null ? NONE : latency(script.swap_s));
    const { last } = script;
    const [first] = last?.reason.split("\n") ?? [];
    setText(tr.cells[4], last ? `${last.action.replace("_", " ")} ${last.version.slice(0, 7)}: ${first}` : NONE);
    setAttribute(tr.cells[4], "title", last?.reason ?? null);
  });
}

const FILE_TONES = { landed: "good", halted: "bad" };

/** The newest files; `null` while the store cannot be asked: what was shown stays. */
export function drawFiles(files) {
  if (files === null) return;
  byId("files-section").hidden = files.length === 0;
  const build = () => {
    const tr = row("event", "name", "state", "number", "number");
    tr.cells[2].append(make("span", "mark"));
    return tr;
  };
  keyed(byId("files"), files, (file) => file.upload_id, build, (tr, file) => {
    setText(tr.cells[0], file.filename || file.upload_id);
    setAttribute(tr.cells[0], "title", `${file.filename}: ${file.upload_id} on ${file.node}`);
    setText(tr.cells[1], file.stream);
    const mark = tr.cells[2].firstElementChild;
    const share = file.rows > 0 ? ` ${percent(file.rows_done / file.rows)}` : "";
    setText(mark, file.state === "accepted" ? `under way${share}` : file.state);
    setAttribute(mark, "data-tone", FILE_TONES[file.state] ?? "calm");
    setAttribute(mark, "title", file.reason || null);
    setText(tr.cells[3], whole(file.rows));
    setText(tr.cells[4], whole(file.dead_letters));
    setAttribute(tr.cells[4], "data-zero", file.dead_letters === 0 ? "" : null);
  });
}

function drawDeadLetters(letters) {
  const top = Math.max(1, ...letters.map((l) => l.count));
  byId("letters-none").hidden = letters.length > 0;
  byId("letters-table").hidden = letters.length === 0;
  const build = () => {
    const tr = row("name", "faint", "number", "share");
    const bar = make("span", "share-bar");
    bar.setAttribute("aria-hidden", "true");
    tr.cells[3].append(bar);
    return tr;
  };
  keyed(byId("letters"), letters, (l) => `${l.stage}/${l.reason}`, build, (tr, letter) => {
    fillName(tr.cells[0], letter.reason);
    setText(tr.cells[1], letter.stage);
    setText(tr.cells[2], whole(letter.count));
    tr.cells[3].firstElementChild.style.width = `${((letter.count / top) * 100).toFixed(1)}%`;
  });
}

const STATE_TONES = { reading: "good", halted: "bad", opening: "warn", seeking: "warn" };

function drawPartitions(partitions) {
  const groups = new Map();
  for (const partition of partitions ?? []) {
    const key = `${partition.stream} · ${partition.topic}`;
    if (!groups.has(key)) groups.set(key, []);
    groups.get(key).push(partition);
  }
  byId("partitions-none").hidden = groups.size > 0;
  byId("partitions").hidden = groups.size === 0;
  setText(byId("partitions-none"), partitions === null ? "This node reads no topic." : "None is assigned.");
  const buildGroup = () => {
    const head = row("group");
    head.cells[0].colSpan = 5;
    head.cells[0].scope = "rowgroup";
    return make("tbody", "", head);
  };
  const build = () => {
    const tr = row("number", "state", "number", "number", "number");
    tr.cells[1].append(make("span", "mark"));
    return tr;
  };
  const table = byId("partitions");
  keyed(table, [null, ...groups], (group) => group?.[0] ?? "head", buildGroup, (body, group) => {
    if (!group) return;
    setText(body.rows[0].cells[0], group[0]);
    drawGroup(body, group[1], build);
  });
}

function drawGroup(body, list, build) {
  const head = body.rows[0];
  const items = [null, ...list.sort((a, b) => a.number - b.number)];
  head.dataset.key = "head";
  keyed(body, items, (p) => p?.number ?? "head", build, (tr, partition) => {
    if (!partition) return;
    setText(tr.cells[0], String(partition.number));
    const mark = tr.cells[1].firstElementChild;
    setText(mark, partition.state);
    setAttribute(mark, "data-tone", STATE_TONES[partition.state] ?? "calm");
    setText(tr.cells[2], whole(partition.position));
    setText(tr.cells[3], whole(partition.acknowledged));
    setText(tr.cells[4], whole(partition.lag));
  });
}

function drawTotals({ status }) {
  const { totals, produced, roles } = status;
  const store = roles.includes("store");
  const items = [
    ["events made up", produced === null ? null : whole(produced)],
    ["events into DuckDB", store ? whole(totals.events) : null],
    ["feature rows", store ? whole(totals.rows) : null],
    ["dead letters", store ? whole(totals.dead_letters) : null],
  ].filter(([, text]) => text !== null);
  const build = () => make("div", "total", make("dt"), make("dd"));
  keyed(byId("totals"), items, ([label]) => label, build, (element, [label, text]) =>
    drawFact(element, label, text),
  );
}

const PATHS = { durable: "durable in DuckDB", online: "readable in Redis" };

function drawLatency({ latency: paths, latencyWindow }) {
  const build = () => row("name", "number", "number", "number");
  keyed(byId("latency"), paths, (p) => p.path, build, (tr, path) =>
    fill(tr, PATHS[path.path], quantileText(path.p50), quantileText(path.p99), whole(path.count)),
  );
  const window = latencyWindow > 0 ? `last ${Math.round(latencyWindow)} s, ` : "";
  setText(byId("latency-note"), `From the record's timestamp; ${window}estimated within histogram buckets.`);
}
