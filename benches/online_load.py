"""Load for online reads: latency at a fixed rate, or the greatest rate.

Usage: online_load.py --url URL [--interface http|grpc] [--entities 1,10,100] [--features 5,50]
                      [--rate R] [--seconds S] …

Works against Feast's feature server and Millstream alike: `POST /get-online-features` with a body of Feast's
(online_http.py). With `--interface grpc` Millstream is asked the same by GetOnlineFeatures
(online_grpc.py). Only the standard library is used. For each number of entities and features one line of
JSON is printed.

Open loop (`--rate`): requests are due at fixed instants, R a second, whatever the server does. The latency
counts from the instant at which a request was due, so that a stall shows in all the requests that it
held up, also in those that could not be sent for want of a free connection (no coordinated omission).
`client_late_us` says how late the client itself was with requests for which a connection was free: its
own part in the latencies. A server that cannot keep up shows as `requests_per_s` below `rate`; it is given
twice the time, and what could not be sent even then is `unsent` (the latencies are too good then).

Closed loop (no `--rate`): every connection sends its next request when it has its answer.
`requests_per_s` is then what the server manages; latencies say little.

`client_us` is the CPU time of the client a request: a million divided by it is what one process could send.
With `--processes` the connections and the rate are shared among them. `--self-test` measures the client
against a server that answers at once with as many bytes.

Each distinct request is answered once before the clock starts, and that answer is checked in full;
while it is measured, the status and the length of every answer are. Exits 5 when one was bad.
"""

import argparse
import ctypes
import json
import multiprocessing
import random
import select
import sys
import time
from array import array
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.connection import Connection
from urllib.parse import urlsplit

import online_grpc
import online_http
from online_http import TIMEOUT_S, BadAnswer, trivial_server

#: Distinct requests of a scenario and process; sent in turn.
DISTINCT = 200
#: How the server is spoken to: `Client`, `request_bytes`, `check`.
INTERFACES = {"http": online_http, "grpc": online_grpc}
Client = online_http.Client | online_grpc.Client
#: Linux lets a waiting process sleep 50 µs longer than it asked for, unless it says otherwise.
PR_SET_TIMERSLACK = 29


@dataclass(frozen=True)
class Load:
    """A scenario, as one process drives it."""

    interface: str
    host: str
    port: int
    bodies: list[dict]
    connections: int
    #: Requests a second; 0 is the closed loop.
    rate: float
    #: Of the first request after the start, in seconds.
    offset_s: float
    warmup_s: float
    seconds: float


def ask_once(client: Client, request: object) -> bytes:
    """An answer, waited for."""
    client.send(request, 0.0)
    while not client.receive():
        pass
    return client.body()


def drive(load: Load, start: Callable[[], float]) -> dict:
    """Drives a scenario: `latencies` and `late` in seconds, what else there is to say of it."""
    speech = INTERFACES[load.interface]
    clients = [speech.Client(load.host, load.port) for _ in range(load.connections)]
    requests = [speech.request_bytes(load.host, load.port, body) for body in load.bodies]
    present, received = 0, 0
    for number, (body, request) in enumerate(zip(load.bodies, requests, strict=True)):
        answer = ask_once(clients[number % len(clients)], request)
        present += speech.check(body, answer)
        received += len(answer)
    latencies, late = array("d"), array("d")
    poll, by_number = select.epoll(), {client.fileno(): client for client in clients}
    for number in by_number:
        poll.register(number, select.EPOLLIN)
    # The one that has been free for longest is used next, so that all are, whatever the rate.
    free, sent, cpu = deque(clients), 0, None
    clock, step = time.perf_counter, 1 / load.rate if load.rate else 0.0
    began = start()
    measured_from, until = began + load.warmup_s, began + load.warmup_s + load.seconds
    # What was due in time is sent and waited for, however late that is, up to twice the time.
    last_send, due = until + load.seconds if step else until, began + load.offset_s
    while True:
        now = clock()
        if cpu is None and now >= measured_from:
            cpu, sent_before = time.process_time(), sent
        may_send = (due if step else now) < until and now < last_send
        if free and may_send and now >= due:
            client = free.popleft()
            if step and due >= measured_from:
                late.append(now - max(due, client.due_s))
            client.send(requests[sent % len(requests)], due if step else now)
            sent += 1
            due += step
            continue
        if not may_send and len(free) == len(clients):
            break
        if free and may_send:
            # epoll itself waits for whole milliseconds.
            if not select.select((poll,), (), (), max(0.0, due - now))[0]:
                continue
            ready = poll.poll(0)
        elif not (ready := poll.poll(TIMEOUT_S)):
            raise BadAnswer(f"no answer within {TIMEOUT_S:.0f} s")
        for number, _ in ready:
            client = by_number[number]
            if client.receive():
                now = clock()
                if client.due_s >= measured_from:
                    latencies.append(now - client.due_s)
                # From when on the connection was free again.
                client.due_s = now
                free.append(client)
    ended = clock()
    for client in clients:
        client.socket.close()
    return {
        "latencies": latencies,
        "late": late,
        "seconds": ended - measured_from,
        "cpu_s": time.process_time() - cpu,
        "sent": sent - sent_before,
        "unsent": max(0, round((until - due) / step)) if step else 0,
        "present": present / len(requests),
        "answer_bytes": received / len(requests),
    }


def child(pipe: Connection, load: Load) -> None:
    """A process of the client: says when it is ready, starts when it is told to."""

    def start() -> float:
        pipe.send("ready")
        return pipe.recv()

    ctypes.CDLL(None).prctl(PR_SET_TIMERSLACK, ctypes.c_ulong(1_000))
    try:
        pipe.send(drive(load, start))
    except (BadAnswer, OSError, ValueError, KeyError) as error:
        pipe.send(f"{type(error).__name__}: {error}")


def run(loads: list[Load]) -> list[dict]:
    """Drives all at once, each in a process of its own.

    Raises:
        BadAnswer: One of them failed.
    """
    pipes, children = [], []
    for load in loads:
        ours, theirs = multiprocessing.Pipe()
        children.append(multiprocessing.Process(target=child, args=(theirs, load), daemon=True))
        children[-1].start()
        pipes.append(ours)
    try:
        for message in [pipe.recv() for pipe in pipes]:
            if message != "ready":
                raise BadAnswer(message)
        # perf_counter is the machine's monotonic clock, the same in every process.
        for pipe in pipes:
            pipe.send(time.perf_counter() + 0.05)
        results = [pipe.recv() for pipe in pipes]
    finally:
        for process in children:
            process.join(1) if process.exitcode is not None else None
            process.terminate()
    for result in results:
        if isinstance(result, str):
            raise BadAnswer(result)
    return results


def quantile(ordered: array, q: float) -> float | None:
    """The value that a share q of all does not exceed."""
    return ordered[min(len(ordered) - 1, int(q * len(ordered)))] if ordered else None


def bodies(args: argparse.Namespace, entities: int, features: int, seed: int) -> list[dict]:
    """Distinct requests: random entities, always the same features."""
    draw = random.Random(seed)
    names = [args.feature.format(features=features, n=n) for n in range(features)]
    return [
        {
            "features": names,
            "entities": {
                args.join_key: [
                    args.entity.format(n=n) for n in draw.sample(range(args.population), entities)
                ]
            },
        }
        for _ in range(DISTINCT)
    ]


def measure(args: argparse.Namespace, entities: int, features: int, url: str) -> dict:
    """One scenario."""
    address = urlsplit(url)
    rate = args.rate / args.processes
    loads = [
        Load(
            args.interface,
            address.hostname,
            address.port,
            bodies(args, entities, features, args.seed + n),
            max(1, args.connections // args.processes),
            rate,
            n / args.rate if args.rate else 0.0,
            args.warmup,
            args.seconds,
        )
        for n in range(args.processes)
    ]
    results = run(loads)
    ordered = array("d", sorted(x for r in results for x in r["latencies"]))
    late = array("d", sorted(x for r in results for x in r["late"]))
    sent = sum(r["sent"] for r in results)
    milli = {f"p{100 * q:g}_ms": quantile(ordered, q) for q in (0.5, 0.99, 0.999)}
    return {
        "interface": args.interface,
        "loop": "open" if args.rate else "closed",
        "entities": entities,
        "features": features,
        "rate": args.rate or None,
        "requests": len(ordered),
        "unsent": sum(r["unsent"] for r in results),
        "requests_per_s": round(len(ordered) / max(r["seconds"] for r in results), 1),
        **{name: None if s is None else round(1e3 * s, 3) for name, s in milli.items()},
        "max_ms": round(1e3 * ordered[-1], 3) if ordered else None,
        "client_late_us": {
            name: round(1e6 * quantile(late, q)) for name, q in (("p50", 0.5), ("p99", 0.99))
        }
        if late
        else None,
        "client_us": round(1e6 * sum(r["cpu_s"] for r in results) / max(1, sent), 1),
        "connections": sum(load.connections for load in loads),
        "processes": args.processes,
        "present": round(sum(r["present"] for r in results) / len(results), 1),
        "answer_bytes": round(sum(r["answer_bytes"] for r in results) / len(results)),
    }


def numbers(text: str) -> list[int]:
    """`1,10,100`."""
    return [int(part) for part in text.split(",")]


def main() -> int:
    """Measures all scenarios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    where = parser.add_mutually_exclusive_group(required=True)
    where.add_argument("--url")
    where.add_argument("--self-test", action="store_true")
    parser.add_argument("--interface", choices=INTERFACES, default="http")
    parser.add_argument("--entities", type=numbers, default=[1, 10, 100])
    parser.add_argument("--features", type=numbers, default=[5, 50])
    parser.add_argument(
        "--rate", type=float, default=0.0, help="requests a second (0: closed loop)"
    )
    parser.add_argument("--seconds", type=float, default=10.0)
    parser.add_argument("--warmup", type=float, default=2.0, help="seconds before it counts")
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--population", type=int, default=100_000, help="entities there are")
    parser.add_argument("--join-key", default="entity_id")
    parser.add_argument("--entity", default="user-{n}", help="an entity by its number n")
    parser.add_argument(
        "--feature", default="user_{features}:f{n}", help="a feature by its number n"
    )
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args()
    if not args.self_test:
        return scenarios(args, args.url)
    with trivial_server() as url:
        return scenarios(args, url)


def scenarios(args: argparse.Namespace, url: str) -> int:
    """Prints a line of JSON for each."""
    for features in args.features:
        for entities in args.entities:
            try:
                print(json.dumps(measure(args, entities, features, url)), flush=True)
            except BadAnswer as error:
                print(f"{entities} entities, {features} features: {error}", file=sys.stderr)
                return 5
    return 0


if __name__ == "__main__":
    sys.exit(main())
