"""Online reads of a server that runs: the greatest rate, and the latency at fixed rates.

Usage: online_reads.py --url URL [--grpc HOST:PORT] [--feature 'user_{features}:f{n}'] [--population N]
                       [--entities 1,10,100] [--features 5,50] [--rates 50,500] [--seconds S] …

For each number of features and entities, over HTTP and, with --grpc, over gRPC: the greatest rate
(greatest_rate.py), then the latency at each of the rates in an open loop (online_load.py). A low rate is
measured for up to twice the time, so that there are 1,000 requests, which p99.9 needs. Prints a line of JSON for each; one with `error` when an
answer was bad, and exits 5 at the end.
"""

import argparse
import json
import sys
import tempfile
from pathlib import Path

import greatest_rate
from online_http import BadAnswer
from online_load import bodies, measure, numbers

#: For p99.9.
LEAST_REQUESTS = 1_000


def scenario(
    args: argparse.Namespace, interface: str, entities: int, features: int, folder: Path
) -> None:
    """Measures one."""
    url = f"http://{args.grpc}" if interface == "grpc" else args.url
    asked = bodies(args, entities, features, args.seed)
    how = (args.seconds, args.connections, folder)
    if interface == "grpc":
        told = greatest_rate.over_grpc(url, asked[0], *how)
    else:
        told = greatest_rate.over_http(url, asked, *how)
    what = {"interface": interface, "entities": entities, "features": features}
    print(json.dumps({**what, "loop": "closed", **told}), flush=True)
    for rate in args.rates:
        seconds = max(args.seconds, min(2 * args.seconds, LEAST_REQUESTS / rate))
        load = argparse.Namespace(
            **{**vars(args), "rate": rate, "seconds": seconds, "interface": interface}
        )
        print(json.dumps(measure(load, entities, features, url)), flush=True)


def main() -> int:
    """Measures all scenarios."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", required=True)
    parser.add_argument("--grpc", metavar="HOST:PORT")
    parser.add_argument("--entities", type=numbers, default=[1, 10, 100])
    parser.add_argument("--features", type=numbers, default=[5, 50])
    parser.add_argument("--rates", type=numbers, default=[50, 500], help="requests a second")
    parser.add_argument("--seconds", type=int, default=10, help="of each measurement")
    parser.add_argument("--warmup", type=float, default=2.0, help="seconds before it counts")
    parser.add_argument("--connections", type=int, default=16)
    parser.add_argument("--population", type=int, default=100_000, help="entities there are")
    parser.add_argument("--join-key", default="entity_id")
    parser.add_argument("--entity", default="user-{n}", help="an entity by its number n")
    parser.add_argument(
        "--feature", default="user_{features}:f{n}", help="a feature by its number n"
    )
    parser.add_argument("--seed", type=int, default=1)
    # One process is enough for these rates; `client_us` and `client_late_us` say so.
    parser.set_defaults(processes=1)
    args = parser.parse_args()
    if lacking := greatest_rate.missing():
        print(lacking, file=sys.stderr)
        return 1
    bad = False
    with tempfile.TemporaryDirectory() as folder:
        for features in args.features:
            for entities in args.entities:
                for interface in ("http", "grpc") if args.grpc else ("http",):
                    try:
                        scenario(args, interface, entities, features, Path(folder))
                    except BadAnswer as error:
                        bad = True
                        what = {"interface": interface, "entities": entities, "features": features}
                        print(json.dumps({**what, "error": str(error)}), flush=True)
    return 5 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
