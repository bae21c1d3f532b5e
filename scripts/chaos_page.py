#!/usr/bin/env python3
"""The report of a run of chaos as a page.

Usage: chaos_page.py REPORT.json COMMAND WHERE >docs/chaos-run.md

`COMMAND` is what was run, `WHERE` says when and on what machine; both stand at the page's head.
"""

import json
import sys
from pathlib import Path


def main() -> None:
    """Prints the page."""
    path, command, where = sys.argv[1:]
    r = json.loads(Path(path).read_text())
    print(f"# A full run of `make chaos`\n\n```\n{command}\n```\n\n{where}\n")

    most = ", ".join(f"{name} {mib} MiB" for name, mib in r["peak_rss_mib"].items())
    samples = r["samples"]
    table(
        ["", ""],
        [
            ("seed", r["seed"]),
            ("verdict", "every promise holds" if r["ok"] else "PROMISES DO NOT HOLD"),
            ("events produced", f"{r['produced']:,}"),
            ("rows landed", f"{r['landed_rows']:,}"),
            ("dead letters (all meant to be)", f"{r['dead_letters']:,}"),
            ("lost, doubled", f"{r['lost']:,}, {r['duplicated']:,}"),
            ("faults done and over", f"{r['faults']:,} of {len(r['kinds'])} kinds"),
            ("caught up after the last fault", f"{r['caught_up_s']:.1f} s"),
            (
                "from an event's making to its commit, meanwhile",
                f"p50 {r['p50_ms']:,.0f} ms, p99 {r['p99_ms']:,.0f} ms",
            ),
            ("most resident memory", most),
            ("samples of committed offsets, none ahead", f"{samples['offsets']:,}"),
            (
                "counts of Python workers, most at once",
                f"{samples['workers']:,}, {samples['most_workers']}",
            ),
            ("took", f"{r['elapsed_s']:.0f} s"),
        ],
    )

    print("\n## How soon an actor lived again\n")
    times = ("p50_ms", "p99_ms", "max_ms")
    table(
        ["actor", "ended", "p50", "p99", "longest"],
        [
            (name, of["count"], *(f"{of[time]:.1f} ms" for time in times))
            for name, of in sorted(r["recovery"].items())
        ],
    )

    print(
        '\n## Faults\n\n"Nothing": there was nothing to hurt just then, no entry on the queue for'
    )
    print("instance.\n")
    table(
        ["kind", "done", "nothing"],
        [(f"`{name}`", of["done"], of["nothing"]) for name, of in sorted(r["kinds"].items())],
    )

    if r["left_out"]:
        print(
            "\nLeft out:",
            "; ".join(f"`{kind}` ({why})" for kind, why in r["left_out"].items()) + ".",
        )

    print("\n## Checks\n")
    table(
        ["check", "holds", "what was seen"],
        [
            (f"`{check['id']}`", "yes" if check["ok"] else "NO", check["detail"])
            for check in r["checks"]
        ],
    )


def table(head: list[str], rows: list[tuple]) -> None:
    """Prints a table."""
    print("| " + " | ".join(head) + " |" if any(head) else "|" + " |" * len(head))
    print("|" + "---|" * len(head))
    for row in rows:
        print("| " + " | ".join(map(str, row)) + " |")


if __name__ == "__main__":
    main()
