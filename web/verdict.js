// The one sentence at the top, and the line under it: only what the readings say. Pure.

import { counted, listed, quantileText, rate, span, whole } from "./format.js";

const TITLES = {
  flowing: "Flowing",
  behind: "Falling behind",
  "catching up": "Catching up",
  stalled: "Stalled",
  idle: "Idle",
  measuring: "Connected",
};

/** { tone: "good" | "warn" | "bad" | "calm", title, text, detail } */
export function verdict(view) {
  const { flow } = view;
  const troubles = troublesOf(flow);
  const link = ["flowing", "catching up", "measuring"].includes(flow.state) ? "but" : "and";
  const title = TITLES[flow.state] + (troubles.length > 0 ? `, ${link} ${listed(troubles)}` : "");
  return { tone: toneOf(flow, troubles), title, text: factsOf(flow).join(", "), detail: detailOf(view) };
}

/** When polling fails. */
export function lost(age, reason) {
  return {
    tone: "bad",
    title: "Connection lost",
    text: age === null ? "the node has not answered yet" : `what you see is ${span(age)} old`,
    detail: `${reason}; asking again every second`,
  };
}

function troublesOf({ halted, down, broken }) {
  const troubles = [];
  if (broken.length === 1) troubles.push(`${broken[0]} waits for its script`);
  if (broken.length > 1) troubles.push(`${listed(broken)} wait for their scripts`);
  if (halted.length > 0) {
    troubles.push(`${counted(halted.length, "partition")} ${halted.length === 1 ? "is" : "are"} halted`);
  }
  if (down.length > 0) troubles.push(`${listed(down)} ${down.length === 1 ? "is" : "are"} down`);
  return troubles;
}

function toneOf({ state, opening }, troubles) {
  if (troubles.length > 0 || state === "stalled") return "bad";
  if (state === "behind" || opening.length > 0) return "warn";
  return state === "flowing" || state === "catching up" ? "good" : "calm";
}

function factsOf({ state, rate: perSecond, lag, window, end, p99 }) {
  const waiting = lag === null ? null : `${counted(lag, "record")} not yet in DuckDB`;
  if (state === "measuring") return ["measuring"];
  if (state === "idle") return ["no events now", ...(lag === 0 ? ["every record is in DuckDB"] : [])];
  if (state === "stalled") {
    return [`${counted(lag, "record")} wait, and nothing came into ${end.store} in the last ${Math.round(window)} s`];
  }
  const facts = [`${rate(perSecond)} events/s${end.verb}`];
  if (p99) facts.push(`p99 ${p99.over ? "" : "about "}${quantileText(p99)} behind`);
  if (waiting) facts.push(waiting);
  return facts;
}

function detailOf({ status, flow, python, partitions }) {
  const actors = Object.keys(status.actors).length;
  const parts = [flow.down.length === 0 ? `all ${actors} actors up` : `${actors - flow.down.length} of ${actors} actors up`];
  if (partitions) {
    const reading = partitions.filter((p) => p.state === "reading").length;
    parts.push(`${whole(reading)} of ${counted(partitions.length, "partition")} read`);
    if (flow.broken.length === 0) parts.push("no script broken");
    parts.push(`${python.workers.length} of ${python.cap} Python slots used here`);
  }
  if (status.embedded_broker) parts.push("Kafka in this process, in memory: for trying things out");
  return parts.join(" · ");
}
