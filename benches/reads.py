"""Reads: training sets and online features, Millstream beside Feast on the same data in the same run.

Usage: reads.py --millstream BIN --config FILE --dir DIR [--rows N] [--entities N] [--questions N]
                [--ask N,…] [--seconds S] [--no-feast] [--feast-questions N] [--json]

The data are those of feast/make_data.py: ROWS values of 5 features for training sets, and ENTITIES * 100 values
of 50 features for online reads. Each is uploaded to a node of its own, with the roles process and store and
the Redis that it starts for itself.

1. AS OF (training_sets.py): training sets of the first N questions of `--ask`, by event time and as known by
   `created_at`; every answer is compared with what is right (feast/truth.py). The file's history counts from
   when it was made (`as_known = "created_at"`).
2. Online (online_reads.py): every feature is critical. The greatest rate, p50, p99 and p99.9 at 50 and 500
   requests a second in an open loop, over HTTP and gRPC.
3. Feast (feast/run.sh): the same, with the first FEAST_QUESTIONS questions and the first thousand.
   `--no-feast` leaves it out.

Everything shares the machine. Prints a table, or with `--json` an object. Exits 5 when an answer was wrong.
"""

import argparse
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import greatest_rate
import reads_table
import training_sets
from online_load import numbers

from node import Node, configured

BENCH = Path(__file__).parent
HISTORY, ONLINE = 5, 50


def say(text: str) -> None:
    """To people."""
    print(text, file=sys.stderr, flush=True)


def make_data(args: argparse.Namespace, features: int, rows: int, questions: int) -> Path:
    """The folder of a history; made when it is not there in this size."""
    folder, wanted = args.dir / str(features), {"features": features, "rows": rows}
    wanted |= {"entities": args.entities, "questions": questions}
    meta = folder / "meta.json"
    if meta.exists() and wanted.items() <= json.loads(meta.read_text()).items():
        return folder
    say(f"Making {rows:,} values of {features} features …")
    command = [sys.executable, BENCH / "feast" / "make_data.py", "--out", args.dir]
    command += [part for name, n in wanted.items() for part in (f"--{name}", str(n))]
    subprocess.run(command, stdout=subprocess.DEVNULL, check=True)
    return folder


def node(args: argparse.Namespace, name: str, critical: str) -> Node:
    """A node with a Redis of its own, and without events of its own."""
    others = ("MILLSTREAM__KAFKA__", "MILLSTREAM__REDIS__", "MILLSTREAM__GENERATOR__")
    environment = {key: value for key, value in os.environ.items() if not key.startswith(others)}
    config = configured(args.config, critical, 'as_known = "created_at"')
    # What a run before has left there.
    shutil.rmtree(args.dir / name, ignore_errors=True)
    return Node(args.millstream, args.dir / name, config, "process,store", environment)


def load(running: Node, data: Path) -> dict:
    """Uploads a history.

    Raises:
        RuntimeError: Not every value has landed.
    """
    say(f"Uploading {data / 'long.parquet'} …")
    rows, started = json.loads((data / "meta.json").read_text())["rows"], time.monotonic()
    receipt = running.upload(data / "long.parquet")
    seconds = time.monotonic() - started
    if receipt["rows"] != rows or receipt["dead_letters"]:
        raise RuntimeError(f"of {rows} values landed: {receipt}")
    return {"rows": rows, "seconds": round(seconds, 1), "rows_per_s": round(rows / seconds)}


def of_history(args: argparse.Namespace, data: Path) -> dict:
    """Millstream's training sets."""
    with node(args, "node-history", "[]") as running:
        loaded = load(running, data)
        sets = []
        for questions in args.ask:
            for mode in training_sets.MODES:
                say(f"{questions:,} questions, {mode} …")
                sets.append(training_sets.measure(running, data, args.dir, mode, questions))
    return {"load": loaded, "training_sets": sets}


def lines(command: list) -> Iterator[dict]:
    """The lines of JSON that a command prints, as they come.

    Raises:
        RuntimeError: It failed otherwise than by a bad answer.
    """
    # A session of its own, so that all that it has started can be ended with it.
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        try:
            for line in process.stdout:
                if line.startswith("{"):
                    yield json.loads(line)
        except BaseException:
            os.killpg(process.pid, signal.SIGTERM)
            raise
    if process.returncode not in (0, 5):
        raise RuntimeError(f"{command[0]} failed ({process.returncode})")


def of_online(args: argparse.Namespace, data: Path) -> dict:
    """Millstream's online reads."""
    with node(args, "node-online", '["*"]') as running:
        loaded = load(running, data)
        say("Online reads over HTTP and gRPC …")
        command = [sys.executable, BENCH / "online_reads.py", "--url", running.url]
        command += ["--grpc", running.grpc, "--feature", "features:f{n}"]
        command += ["--population", str(args.entities), "--seconds", str(args.seconds)]
        return {"load": loaded, "online": list(lines(command))}


def of_feast(args: argparse.Namespace, data: Path) -> dict:
    """The same of Feast."""
    ask = sorted({min(1_000, args.feast_questions), args.feast_questions})
    command = [BENCH / "feast" / "run.sh", "--dir", args.dir, "--seconds", str(args.seconds)]
    told: dict = {"training_sets": [], "online": []}
    # What Feast knows of another folder's data.
    (args.dir / "registry.db").unlink(missing_ok=True)
    for line in lines([*command, "--ask", ",".join(map(str, ask))]):
        if "created" in line:
            line["mode"] = "as-known" if line["created"] else "event-time"
            name = "created" if line["created"] else "event-time"
            answers = args.dir / f"feast-{name}-{line['questions']}.parquet"
            told["training_sets"].append(line | training_sets.of_feast(answers, data, line["mode"]))
        elif "interface" in line:
            told["online"].append(line)
        else:
            told["load"] = line
    return told


def bad(sides: dict) -> list[str]:
    """What was wrong, in words."""
    found = []
    for side, told in sides.items():
        for one in told["training_sets"]:
            what = f"{side}: {one['questions']} questions, {one['mode']}"
            if one["wrong_rows"]:
                found.append(f"{what}: {one['wrong_rows']} wrong answers")
            if side == "millstream" and not (one["in_order"] and one["same_by_command"]):
                found.append(f"{what}: not in the order of the questions, or not twice the same")
        found += [f"{side}: {one}" for one in told["online"] if "error" in one]
    return found


def main() -> int:
    """Measures both."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--millstream", type=Path, required=True)
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--dir", type=Path, required=True, help="data that is there is used again")
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--entities", type=int, help="default: ROWS / 100")
    parser.add_argument("--questions", type=int, help="how many are made; default: ROWS / 10")
    parser.add_argument(
        "--ask", type=numbers, help="default: 1,000, as many as Feast is asked, and all"
    )
    parser.add_argument("--seconds", type=int, default=10, help="of each online measurement")
    parser.add_argument("--no-feast", action="store_true")
    parser.add_argument(
        "--feast-questions", type=int, default=1_000_000, help="of QUESTIONS, the first so many"
    )
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    # SIGTERM must end the children too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    if lacking := greatest_rate.missing():
        say(lacking)
        return 1
    args.entities = args.entities or max(100, args.rows // 100)
    args.questions = args.questions or max(1_000, args.rows // 10)
    args.feast_questions = min(args.feast_questions, args.questions)
    args.ask = args.ask or sorted({1_000, args.feast_questions, args.questions})
    args.dir = args.dir.resolve()
    args.dir.mkdir(parents=True, exist_ok=True)
    history = make_data(args, HISTORY, args.rows, args.questions)
    online = make_data(args, ONLINE, args.entities * 100, 1_000)

    ours = of_history(args, history)
    ours |= {"online": (of := of_online(args, online))["online"], "load_online": of["load"]}
    sides = {"millstream": ours}
    if not args.no_feast:
        sides["feast"] = of_feast(args, history)
    wrong = bad(sides)
    made = {key: getattr(args, key) for key in ("rows", "entities", "questions", "seconds")}
    print(json.dumps({**made, **sides}, indent=2) if args.json else reads_table.text(made, sides))
    for line in wrong:
        say(f"WRONG {line}")
    return 5 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
