"""What keeping metrics costs, from the results of `run.sh --only metrics`: DIR ROUNDS."""

import json
import statistics
import sys
from pathlib import Path


def main() -> None:
    """Prints a line a run, and the medians of both kinds beside each other."""
    work, rounds = Path(sys.argv[1]), int(sys.argv[2])
    kinds: dict[str, list[dict]] = {"true": [], "false": []}
    print(f"{'metrics':10}{'events/s':>10}{'CPU µs/event':>14}")
    for number in range(1, rounds + 1):
        for kept, results in kinds.items():
            result = json.loads((work / f"metrics-{number}-{kept}.json").read_text())
            result["each"] = 1e6 * result["cpu_s"] / result["events"]
            results.append(result)
            print(f"{kept:10}{result['events_per_s']:>10,}{result['each']:>14.2f}")

    def median(kept: str, what: str) -> float:
        return statistics.median(result[what] for result in kinds[kept])

    speed = median("true", "events_per_s") / median("false", "events_per_s") - 1
    work_done = median("true", "each") / median("false", "each") - 1
    print(f"with metrics: {speed:+.1%} events/s, {work_done:+.1%} processor time (medians)")


if __name__ == "__main__":
    main()
