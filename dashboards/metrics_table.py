"""Writes docs/metrics.md, the list of all metrics, or says that it is not current.

python dashboards/metrics_table.py           writes docs/metrics.md
python dashboards/metrics_table.py --check   exits 1 when it differs from what would be written
"""

import argparse
import sys

from catalogue import FOREIGN, ROOT, Metric, metrics, stages

FILE = ROOT / "docs" / "metrics.md"

TEXT = """\
# Metrics

What a node exports under `/metrics`; `/metrics/<stage>` shows one stage. Made from
`src/telemetry/catalogue.rs` by `make dashboards`. [dashboards/](../dashboards/README.md) shows all of
them, and says what to conclude.

- A node exports what belongs to its roles, and zeros of the rest: add up over nodes, or take the largest.
- A histogram has `_bucket`, `_sum` and `_count`.
- Labels are bounded: no entity, no file name, no offset, no text of an error.
- Besides: metrics of the process, such as `process_resident_memory_bytes`, `process_cpu_seconds_total`
  and `process_start_time_seconds`.

A stage is one of {stages}.
Of the time of a stage, `1 - rate(idle) - rate(blocked)` is the share in which it works on something.

| metric | kind | labels | stage | what it says |
|---|---|---|---|---|
{rows}
"""


def row(name: str, metric: Metric) -> str:
    labels = ", ".join(f"`{label}`" for label in sorted(metric.labels))
    stage = metric.stage
    if not stage and "stage" in metric.labels:
        stage = "each"
    says = metric.help.replace("|", "\\|")
    return f"| `{name}` | {metric.kind} | {labels} | {stage} | {says} |"


def rendered() -> str:
    own = {name: metric for name, metric in metrics().items() if name not in FOREIGN}
    return TEXT.format(
        stages=", ".join(f"`{stage}`" for stage in stages()),
        rows="\n".join(row(name, metric) for name, metric in own.items()),
    )


def is_current() -> bool:
    return FILE.exists() and FILE.read_text("utf-8") == rendered()


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="only compare, write nothing")
    check = parser.parse_args().check
    if is_current():
        return 0
    name = FILE.relative_to(ROOT)
    if check:
        print(f"{name} is not current; run `make dashboards`", file=sys.stderr)
        return 1
    FILE.write_text(rendered(), "utf-8")
    print(f"wrote {name}", file=sys.stderr)
    return 0


if __name__ == "__main__":
    sys.exit(main())
