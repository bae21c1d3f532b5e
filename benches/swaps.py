"""Live swaps of a script while events flow: how long they take, and what they do to the events.

Usage: swaps.py --millstream BIN --config FILE --dir DIR [--swaps N] [--every S] [--calm S]
                [--rounds R] [--against BIN] [--json]

Starts a node that makes up 5,000 events a second for itself (roles generate, process and store, its own
broker and Redis, at most three workers). Once the events flow, CALM seconds are measured. Then N versions
of the stream's script are brought, one after the other, each due EVERY seconds after the one before.
Every second one is good: the shipped script with another comment. The others must be refused: a syntax
error, a module that is missing, an exception for every second row. Half are saved as a file, half
deployed over HTTP.

- verdict: from the request (the file's write, the HTTP call) until the node has decided.
- runs: from the request until the node says that it is the version that runs.
- first batch: from saving the file to the first batch under it, as the node itself measures.
- start of a worker: the node's metric, over the swaps alone. Versions that do not load are not in it; those
  that raise are, and load quickly, as they import no package. Median and percentile are estimated within
  the histogram's buckets, the greatest value is a bucket's bound.
- events/s: what was committed in DuckDB.
- processors: processor seconds a second of the node, its Redis and its workers, those that have ended
  included. Making up the events, the embedded broker and this script's questions are in it.
- processor time a swap: what the swaps' seconds took more than calm ones, for each swap.

What is saved is looked for every 5 ms. `--against` measures another build too, in turns, so that neither
always comes first. Rounds are put together. Everything shares the machine: compare within one run.

Prints a table, or with `--json` an object. Exits 5 when a good version was refused, a bad one deployed,
something was lost, or the node did not stop in order.
"""

import argparse
import hashlib
import json
import os
import re
import shutil
import signal
import sys
import time
import urllib.request
from collections.abc import Callable
from pathlib import Path

import swaps_table

from node import Node, configured, processor_s

RATE, WORKERS = 5_000, 3
STREAM, SCRIPT = "features", "validate_features.py"
SHIPPED = Path(__file__).parent.parent / "py_transforms"
LOOK_S = 0.005
DEADLINE_S = 60.0

RAISES = """\
import itertools

_CALLS = itertools.count()


def transform(event: dict) -> dict:
    if next(_CALLS) % 2 == 0:
        raise ValueError("not every second one")
    return dict(
        entity_id=event["entity_id"],
        feature_name=event["feature_name"].strip(),
        value=event["value"],
        event_timestamp=event["validated_at"],
        created_at=event["created_at"],
    )
"""

# Each with a word of the reason for which it is refused.
BROKEN = {
    "syntax error": "SyntaxError",
    "missing import": "no_such_module_anywhere",
    "raises for rows": "not every second one",
}


def say(text: str) -> None:
    """To people."""
    print(text, file=sys.stderr, flush=True)


def version(kind: str, number: int) -> str:
    """The text of a version; another one for each number."""
    good = (SHIPPED / SCRIPT).read_text()
    of = {
        "good": good,
        "syntax error": f"{good}\n\ndef (:\n",
        "missing import": f"import no_such_module_anywhere\n{good}",
        "raises for rows": RAISES,
    }
    return f"{of[kind]}\n# Version {number} of the benchmark.\n"


def status(running: Node) -> dict:
    """The node at a glance."""
    with urllib.request.urlopen(f"{running.url}/api/status", timeout=30) as answer:
        return json.load(answer)


def script_of(running: Node) -> dict:
    """What the node says of the stream's script."""
    return status(running)["python"]["scripts"].get(STREAM, {})


def starts(running: Node) -> dict:
    """How many workers were started in at most so many seconds, and how long all took together."""
    with urllib.request.urlopen(f"{running.url}/metrics", timeout=30) as answer:
        text = answer.read().decode()
    name = "millstream_python_worker_start_seconds"
    buckets = re.findall(rf'{name}_bucket\{{.*?le="([^"]+)".*?\}} (\S+)', text)
    return {
        "seconds": float(re.search(rf"{name}_sum (\S+)", text)[1]),
        "within": {bound: float(count) for bound, count in buckets},
    }


def wait(what: str, look: Callable[[], dict | None], seconds: float = DEADLINE_S) -> dict:
    """Looks until there is something.

    Raises:
        RuntimeError: There is nothing in time.
    """
    until = time.monotonic() + seconds
    while time.monotonic() < until:
        if (found := look()) is not None:
            return found
        time.sleep(LOOK_S)
    raise RuntimeError(f"waited {seconds:.0f} s for {what}")


def deploy(running: Node, text: str) -> dict:
    """Over HTTP: what was decided."""
    body = json.dumps({"stream": STREAM, "source": text}).encode()
    request = urllib.request.Request(
        f"{running.url}/api/transforms/deploy", body, {"content-type": "application/json"}
    )
    with urllib.request.urlopen(request, timeout=DEADLINE_S) as answer:
        return json.load(answer)


def save(scripts: Path, text: str) -> None:
    """As most editors do: a new file takes the place of the old one."""
    fresh = scripts / f"{SCRIPT}.tmp"
    fresh.write_text(text)
    fresh.rename(scripts / SCRIPT)


def swap(running: Node, scripts: Path, number: int, runs: str) -> tuple[dict, list[str]]:
    """One swap.

    Args:
        running: The node.
        scripts: Its folder of scripts.
        number: From 1.
        runs: The version that runs.

    Returns:
        What was measured, and what was wrong.
    """
    good, saved = number % 2 == 1, number % 4 < 2
    kind = "good" if good else list(BROKEN)[number // 2 % len(BROKEN)]
    text = version(kind, number)
    sha256 = hashlib.sha256(text.encode()).hexdigest()

    def decided() -> dict | None:
        last = script_of(running).get("last") or {}
        return last if last.get("version") == sha256 else None

    asked = time.monotonic()
    if saved:
        save(scripts, text)
        last = wait(f"a verdict on version {number} ({kind})", decided)
    else:
        last = deploy(running, text)
    one = {"number": number, "kind": kind, "way": "saved" if saved else "HTTP"}
    one |= {"version": sha256, "action": last["action"], "verdict_s": time.monotonic() - asked}

    what = f"version {number} ({kind}, {one['way']})"
    if not good:
        bad = []
        if last["action"] != "refused" or BROKEN[kind] not in last["reason"]:
            bad.append(f"{what} was not refused for what it is: {last}")
        if script_of(running)["version"] != runs:
            bad.append(f"after {what} another version runs than before")
        return one, bad
    if last["action"] != "deployed":
        return one, [f"{what} was not deployed: {last}"]

    def running_it() -> dict | None:
        script = script_of(running)
        return script if script["version"] == sha256 else None

    def with_batch() -> dict | None:
        # A build that does not measure it has no such key.
        script = script_of(running)
        return script if script.get("swap_s", 0.0) is not None else None

    wait(f"{what} to run", running_it)
    one["runs_s"] = time.monotonic() - asked
    if saved:
        one["first_batch_s"] = wait(f"the first batch under {what}", with_batch).get("swap_s")
    return one, []


def flows(running: Node) -> dict | None:
    """Whether what is made up is committed as fast."""
    told = status(running)
    committed = told["totals"]["events"]
    behind = told["produced"] - committed
    return told if committed > 2 * RATE and behind < RATE / 5 else None


class Reading:
    """Where a node is at a moment."""

    def __init__(self, running: Node) -> None:
        """Looks."""
        self.at = time.monotonic()
        self.events = status(running)["totals"]["events"]
        self.processor_s = processor_s(running.process.pid)

    def until(self, later: "Reading") -> dict:
        """What was between two of them."""
        seconds = later.at - self.at
        return {
            "seconds": seconds,
            "events_per_s": (later.events - self.events) / seconds,
            "processors": (later.processor_s - self.processor_s) / seconds,
        }


def verified(running: Node) -> list[str]:
    """What is wrong with what has landed, once everything has."""
    verdict = running.verify("--wait", "60s")
    clean = verdict["ok"] and not any(verdict[k] for k in ("lost", "duplicated", "dead_letters"))
    return [] if clean else [f"the audit found: {verdict}"]


def measure(args: argparse.Namespace, program: Path, folder: Path) -> dict:
    """One round with one build: what was measured, and as `wrong` what was wrong."""
    shutil.rmtree(folder, ignore_errors=True)
    scripts = folder.with_name(f"{folder.name}-scripts")
    shutil.rmtree(scripts, ignore_errors=True)
    scripts.mkdir(parents=True)
    shutil.copy(SHIPPED / SCRIPT, scripts)
    others = ("MILLSTREAM__KAFKA__", "MILLSTREAM__REDIS__", "MILLSTREAM__GENERATOR__")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(others)}
    environment |= {
        "MILLSTREAM__GENERATOR__RATE": str(RATE),
        "MILLSTREAM__GENERATOR__UPLOAD_EVERY_S": "0",
        "MILLSTREAM__PYTHON__MAX_WORKERS": str(WORKERS),
        "MILLSTREAM__PYTHON__TRANSFORMS_DIR": str(scripts),
    }
    swaps, wrong = [], []
    config = configured(args.config, '["*"]')
    with Node(program, folder, config, "generate,process,store", environment) as running:
        wait("the events to flow", lambda: flows(running))
        runs = script_of(running)["version"]
        calm = Reading(running)
        time.sleep(args.calm)
        before, starts_before = Reading(running), starts(running)
        late = 0
        for number in range(1, args.swaps + 1):
            one, bad = swap(running, scripts, number, runs)
            swaps.append(one)
            wrong += bad
            if one["action"] == "deployed":
                runs = one["version"]
            pause = before.at + args.every * number - time.monotonic()
            late += pause < 0
            time.sleep(max(0.0, pause))
        after, starts_after = Reading(running), starts(running)
        wrong += verified(running)
    if code := running.process.returncode:
        wrong.append(f"the node ended with {code}")
    return {
        "swaps": swaps,
        "late": late,
        "calm": calm.until(before),
        "storm": before.until(after),
        "starts": {
            "seconds": starts_after["seconds"] - starts_before["seconds"],
            "within": {
                b: n - starts_before["within"][b] for b, n in starts_after["within"].items()
            },
        },
        "wrong": wrong,
    }


def main() -> int:
    """Measures one build, or two in turns."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--millstream", type=Path, required=True)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--dir", type=Path, required=True)
    parser.add_argument("--swaps", type=int, default=40)
    parser.add_argument("--every", type=float, default=0.6, help="seconds between two swaps")
    parser.add_argument("--calm", type=float, default=10.0, help="seconds before the first")
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--against", type=Path, help="another build of the program")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    # SIGTERM must end the node too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    args.dir = args.dir.resolve()
    builds = {"millstream": args.millstream} | ({"against": args.against} if args.against else {})
    rounds: dict[str, list[dict]] = {side: [] for side in builds}
    for number in range(1, args.rounds + 1):
        for side in list(builds) if number % 2 else reversed(builds):
            say(f"Round {number} of {args.rounds}: {args.swaps} swaps, {side} …")
            rounds[side].append(measure(args, builds[side], args.dir / f"{side}-{number}"))
    sides = {side: swaps_table.summary(told) for side, told in rounds.items()}
    made = {key: getattr(args, key) for key in ("swaps", "every", "calm", "rounds")}
    result = {**made, "rate": RATE, "workers": WORKERS, **sides}
    print(json.dumps(result, indent=2) if args.json else swaps_table.text(made, sides))
    wrong = [f"{side}: {line}" for side, told in sides.items() for line in told["wrong"]]
    for line in wrong:
        say(f"WRONG {line}")
    return 5 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
