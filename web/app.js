// The live page: asks the node once a second and draws the answer. Plain ES modules, no build
// step, nothing from elsewhere. prometheus.js reads /metrics, model.js derives, verdict.js says the
// sentence, view.js draws; chaos.js has the Kill buttons; only these two and dom.js
// touch the document.

import { Model } from "./model.js";
import { lost, verdict } from "./verdict.js";
import { draw, drawFiles, drawStale, drawVerdict } from "./view.js";

const EVERY_MS = 1000;
const TIMEOUT_MS = 3000;
/** Files change seldom, and asking for them is a question to the store. */
const FILES_EVERY_MS = 3000;
const FILES_SHOWN = 8;

const model = new Model();
/** When the last whole answer came, on the browser's clock; `null` before the first. */
let answeredAt = null;
let timer = null;
/** When the files were asked for, on the browser's clock. */
let filesAskedAt = -Infinity;

async function ask(path) {
  const signal = AbortSignal.timeout(TIMEOUT_MS);
  const response = await fetch(path, { signal, cache: "no-store" });
  if (!response.ok) throw new Error(`/${path} answered ${response.status}`);
  return response;
}

async function read() {
  const answers = [ask("api/status").then((r) => r.json()), ask("metrics").then((r) => r.text())];
  return Promise.all(answers);
}

/** The newest files, or `null`: it is not their turn, or the store cannot be asked now. */
async function readFiles() {
  if (performance.now() - filesAskedAt < FILES_EVERY_MS) return null;
  filesAskedAt = performance.now();
  try {
    return await ask(`api/uploads?limit=${FILES_SHOWN}`).then((r) => r.json());
  } catch {
    return null;
  }
}

function reasonOf(error) {
  if (error.name === "TimeoutError") return `no answer within ${TIMEOUT_MS / 1000} s`;
  return error instanceof TypeError ? "the node cannot be reached" : error.message;
}

async function poll() {
  clearTimeout(timer);
  const started = performance.now();
  try {
    const [status, metrics] = await read();
    answeredAt = performance.now();
    show(status, metrics);
    drawFiles(await readFiles());
  } catch (error) {
    showLost(reasonOf(error));
  }
  const next = Math.max(100, EVERY_MS - (performance.now() - started));
  timer = setTimeout(poll, next);
}

function show(status, metrics) {
  try {
    model.take(status, metrics);
    const view = model.view();
    draw(view);
    drawVerdict(verdict(view));
    drawStale(false);
  } catch (error) {
    // The page's fault, not the connection's: say so instead of showing half of it.
    console.error(error);
    drawStale(true);
    drawVerdict({
      tone: "bad",
      title: "This page does not understand the node's answer",
      text: "reload it, or see /api/status and /metrics",
      detail: String(error),
    });
  }
}

function showLost(reason) {
  const age = answeredAt === null ? null : (performance.now() - answeredAt) / 1000;
  drawStale(answeredAt !== null);
  drawVerdict(lost(age, reason));
}

// A hidden tab asks as seldom as the browser lets it; one that is looked at asks at once.
document.addEventListener("visibilitychange", () => {
  if (!document.hidden && timer !== null) {
    clearTimeout(timer);
    timer = setTimeout(poll, 0);
  }
});

poll();
