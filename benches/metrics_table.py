"""What keeping metrics costs, from the results of `run.sh --only metrics`: DIR ROUNDS."""

import json
import statistics
import sys
from pathlib import Path


def main() -> None:
    """Prints a line a run, and the means of the pairs' ratios."""
    work, rounds = Path(sys.argv[1]), int(sys.argv[2])
    kinds: dict[str, list[dict]] = {"true": [], "false": []}
    print(f"{'metrics':10}{'events/s':>10}{'CPU µs/event':>14}")
    for number in range(1, rounds + 1):
        for kept, results in kinds.items():
            result = json.loads((work / f"metrics-{number}-{kept}.json").read_text())
            result["each"] = 1e6 * result["cpu_s"] / result["events"]
            results.append(result)
            print(f"{kept:10}{result['events_per_s']:>10,}{result['each']:>14.2f}")

    for what, unit in (("events_per_s", "events/s"), ("each", "processor time")):
        pairs = zip(kinds["true"], kinds["false"], strict=True)
        ratios = [with_[what] / without[what] - 1 for with_, without in pairs]
        error = statistics.stdev(ratios) / len(ratios) ** 0.5 if len(ratios) > 1 else float("nan")
        mean = statistics.mean(ratios)
        print(f"with metrics: {mean:+.1%} {unit} (standard error {error:.1%}, {rounds} pairs)")


if __name__ == "__main__":
    main()
