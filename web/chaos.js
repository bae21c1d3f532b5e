// The Kill buttons of the actors, where the node allows faults on request: each asks first, has the
// node end the actor's instance, and says which one took over.

import { byId, make, setText } from "./dom.js";

/** The node waits up to half a minute for an instance that is still to begin. */
const TIMEOUT_MS = 40_000;

/** The actor that the open dialog is about. */
let asked = null;
/** The actor whose next instance is waited for, and the one that was ended. */
let awaited = null;

/** A button for one actor's row. */
export function killButton(name) {
  const button = make("button", "", "Kill");
  button.type = "button";
  button.setAttribute("aria-label", `Kill ${name}`);
  button.addEventListener("click", () => ask(name));
  return button;
}

/** At each reading: says it when the next instance lives. */
export function drawKilled(actors) {
  if (awaited === null) return;
  const actor = actors[awaited.name];
  if (!actor?.up || actor.generation <= awaited.ended) return;
  const took = actor.generation === awaited.ended + 1 ? actor.recovery.last_ms : null;
  const after = took === null ? "" : ` after ${took.toFixed(took < 10 ? 1 : 0)} ms`;
  say(`${awaited.name}: instance ${awaited.ended} was killed, instance ${actor.generation} lives${after}.`);
  awaited = null;
}

function ask(name) {
  asked = name;
  setText(byId("kill-question"), `Kill ${name}?`);
  byId("kill-dialog").showModal();
}

async function kill(name) {
  awaited = null;
  say(`${name}: asking the node`);
  try {
    const response = await fetch("api/chaos", {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({ do: "kill", actor: name }),
      signal: AbortSignal.timeout(TIMEOUT_MS),
    });
    const answer = await response.json();
    if (!response.ok) throw new Error(answer.error);
    say(`${name}: instance ${answer.generation} was killed.`);
    awaited = { name, ended: answer.generation };
  } catch (error) {
    say(`${name} was not killed: ${error.message}`);
  }
}

function say(text) {
  setText(byId("kill-note"), text);
}

byId("kill-no").addEventListener("click", () => byId("kill-dialog").close());
byId("kill-yes").addEventListener("click", () => {
  byId("kill-dialog").close();
  kill(asked);
});
