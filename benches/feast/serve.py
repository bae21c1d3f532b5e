"""Loads the newest values into Redis through Feast, and serves them with Feast's feature server.

Usage: serve.py --dir DIR --log FILE [--workers 2] [--redis HOST:PORT] [-- COMMAND…]

Runs with Feast's environment (venv.sh). DIR is the folder of make_data.py. Without --redis a
redis-server of its own is started. Prints one JSON object when it serves: `server`, `redis`, `apply_s`,
`materialize_s`, `redis_mb`. With a COMMAND it then runs that, with `{server}` and `{redis}` in it replaced by
the addresses, and ends with it; without one it serves until it is interrupted.
"""

import argparse
import json
import os
import signal
import subprocess
import sys
import time
from contextlib import ExitStack
from pathlib import Path

from children import feast, feast_server, redis_server

REPO = Path(__file__).parent / "repo"


def memory_mb(address: str) -> float:
    """Memory that Redis uses for its data, in MB."""
    import redis

    host, port = address.split(":")
    with redis.Redis(host, int(port)) as client:
        return round(client.info("memory")["used_memory"] / 1e6, 1)


def main() -> int:
    """Serves."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dir", type=Path, required=True)
    parser.add_argument("--log", type=Path, required=True, help="what Feast's server says")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--redis", metavar="HOST:PORT", help="a redis-server that runs")
    parser.add_argument("command", nargs="*", help="runs beside the server")
    args = parser.parse_args()
    # SIGTERM must end the children too.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    args.log = args.log.resolve()
    with ExitStack() as stack:
        address = args.redis or stack.enter_context(redis_server(args.log.parent))
        os.environ["FEAST_BENCH_DIR"] = str(args.dir.resolve())
        os.environ["FEAST_BENCH_REDIS"] = address
        started = time.monotonic()
        feast(REPO, "apply")
        applied = time.monotonic()
        feast(REPO, "materialize", "2020-01-01T00:00:00", "2040-01-01T00:00:00")
        loaded = time.monotonic()
        server = stack.enter_context(feast_server(REPO, args.log, args.workers))
        said = {
            "server": f"http://{server}",
            "redis": address,
            "workers": args.workers,
            "apply_s": round(applied - started, 1),
            "materialize_s": round(loaded - applied, 1),
            "redis_mb": memory_mb(address),
        }
        print(json.dumps(said), flush=True)
        if args.command:
            command = [
                part.replace("{server}", said["server"]).replace("{redis}", address)
                for part in args.command
            ]
            return subprocess.run(command).returncode
        signal.sigwait({signal.SIGINT, signal.SIGTERM})
    return 0


if __name__ == "__main__":
    sys.exit(main())
