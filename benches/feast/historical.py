"""Lets Feast read a training set, and measures it: time, and peak memory of its process.

Usage: historical.py --dir DIR [--features 5] [--questions N] [--out OUT.parquet] [--created]

Runs with Feast's environment (venv.sh), once a process, so that the peak is of this read. DIR is the
folder of make_data.py; the views are applied first where that was not done. N of the questions are asked
(default: all). `--created` is Feast's `filter_by_created_timestamp`: rows that were made after the
question's time are not used. Prints one JSON object: `seconds` (of the read alone), `cpu_s`,
`peak_rss_mb` (of the process, its start included), `base_rss_mb` (before the read), `rows`,
`not_null` (cells with a value).
"""

import argparse
import json
import os
import resource
import sys
import time
from pathlib import Path

from children import feast

REPO = Path(__file__).parent / "repo"


def peak_mb() -> float:
    """Greatest resident memory of this process so far, in MB."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6)


def cpu_s() -> float:
    """User and system time of this process so far."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def main() -> int:
    """Reads and measures."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dir", type=Path, required=True)
    parser.add_argument("--features", type=int, default=5)
    parser.add_argument("--questions", type=int)
    parser.add_argument("--out", type=Path)
    parser.add_argument("--created", action="store_true")
    args = parser.parse_args()
    os.environ["FEAST_BENCH_DIR"] = str(args.dir.resolve())
    os.environ.setdefault("FEAST_BENCH_REDIS", "127.0.0.1:1")
    if not (args.dir / "registry.db").exists():
        feast(REPO, "apply", "--skip-source-validation")

    import duckdb
    import pandas as pd
    from feast import FeatureStore
    from feast.version import get_version

    spine = pd.read_parquet(args.dir / str(args.features) / "spine.parquet")
    spine = spine.head(args.questions) if args.questions else spine
    store = FeatureStore(repo_path=str(REPO))
    names = [f"f{n}" for n in range(args.features)]
    options = {"filter_by_created_timestamp": True} if args.created else {}
    base, cpu, started = peak_mb(), cpu_s(), time.perf_counter()
    job = store.get_historical_features(
        entity_df=spine, features=[f"user_{args.features}:{name}" for name in names], **options
    )
    read = job.to_arrow()
    seconds = time.perf_counter() - started
    result = {
        "feast": get_version(),
        "duckdb": duckdb.__version__,
        "features": args.features,
        "created": args.created,
        "questions": len(spine),
        "seconds": round(seconds, 3),
        "cpu_s": round(cpu_s() - cpu, 2),
        "base_rss_mb": base,
        "peak_rss_mb": peak_mb(),
        "rows": read.num_rows,
        "not_null": sum(read.num_rows - read[name].null_count for name in names),
    }
    if args.out:
        import pyarrow.parquet

        pyarrow.parquet.write_table(read, args.out)
    print(json.dumps(result))
    return 0


if __name__ == "__main__":
    sys.exit(main())
