"""The metrics of a node, read from the Rust sources: names and kinds from the catalogue, labels
from the places that record them."""

import re
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
SOURCES = ROOT / "src"
CATALOGUE = SOURCES / "telemetry" / "catalogue.rs"

# What Prometheus gives every series.
TARGET_LABELS = {"job", "instance"}


@dataclass
class Metric:
    kind: str
    labels: set[str] = field(default_factory=set)
    buckets: list[str] = field(default_factory=list)

    def series(self, name: str) -> list[str]:
        """The names under which its series are exported."""
        suffixes = ["_bucket", "_sum", "_count"] if self.kind == "histogram" else [""]
        return [name + suffix for suffix in suffixes]


# Not the node's own: Prometheus makes these, and the crate `metrics-process` those.
FOREIGN = {
    "up": Metric("gauge"),
    "ALERTS": Metric("gauge", {"alertname", "alertstate", "severity"}),
    "process_start_time_seconds": Metric("gauge"),
    "process_resident_memory_bytes": Metric("gauge"),
    "process_cpu_seconds_total": Metric("counter"),
}


def _arguments(text: str, start: int) -> str:
    """What stands between the parenthesis at `start` and the one that closes it."""
    depth = 0
    for at in range(start, len(text)):
        depth += {"(": 1, ")": -1}.get(text[at], 0)
        if depth == 0:
            return text[start + 1 : at]
    raise ValueError(f"a parenthesis is not closed: {text[start : start + 80]}")


@cache
def sources() -> str:
    """All the Rust code."""
    return "\n".join(file.read_text("utf-8") for file in sorted(SOURCES.rglob("*.rs")))


def _recorded_labels() -> dict[str, set[str]]:
    """Constant -> the labels with which it is recorded, anywhere."""
    labels: dict[str, set[str]] = {}
    text = sources()
    for macro in re.finditer(r"\b(?:counter|gauge|histogram)!\(", text):
        arguments = _arguments(text, macro.end() - 1)
        first = arguments.split(",")[0].strip().split("::")[-1]
        names = [first]
        if first == "name":
            # `for name in [A, B] { counter!(name, …) }`, which starts series at zero.
            loop = re.search(r"for name in \[([^]]*)\] \{\s*$", text[: macro.start()])
            names = loop[1].replace("m::", "").split(",") if loop else []
        for name in names:
            labels.setdefault(name.strip(), set()).update(re.findall(r'"(\w+)"\s*=>', arguments))
    return labels


@cache
def metrics() -> dict[str, Metric]:
    """Every metric that a dashboard or a rule may name."""
    text = CATALOGUE.read_text("utf-8")
    names = dict(re.findall(r'pub const (\w+): &str =\s*"(millstream_\w+)"', text))
    lists = {
        name: [
            str(float(bucket.replace("_", ""))).removesuffix(".0")
            for bucket in values.split(",")
            if bucket.strip()
        ]
        for name, values in re.findall(r"const (\w+): &\[f64\] =\s*&\[([^]]*)\]", text)
    }
    kind = r"kind: Kind::(\w+)(?:\((\w+)\))?"
    # `counter(NAME, …)`, with the kind that the function gives, or a `Metric { … }` in full.
    helpers = {
        name: (of, buckets)
        for name, of, buckets in re.findall(
            rf"const fn (\w+)\([^{{]*\{{\s*Metric \{{ name, {kind}", text
        )
    }
    entries = text[text.index("pub const CATALOGUE") :]
    called = re.findall(rf"\b({'|'.join(helpers)})\(\s*(\w+),", entries)
    kinds = {name: helpers[helper] for helper, name in called}
    in_full = re.findall(rf"name: (\w+),\s*{kind}", entries)
    kinds |= {name: (of, buckets) for name, of, buckets in in_full}
    assert kinds.keys() == names.keys(), kinds.keys() ^ names.keys()
    labels = _recorded_labels()
    known = {}
    for constant, (of, buckets) in kinds.items():
        metric = Metric(of.lower(), set(labels.get(constant, set())))
        if buckets:
            metric.buckets = lists[buckets]
        known[names[constant]] = metric
    return FOREIGN | known


@cache
def recording_rules() -> frozenset[str]:
    """The names that dashboards/rules gives to series of its own."""
    rules = (ROOT / "dashboards" / "rules").glob("*.yml")
    return frozenset(re.findall(r"record: (\S+)", "\n".join(f.read_text("utf-8") for f in rules)))


def by_series() -> dict[str, Metric]:
    """Exported name -> metric; a bucket has the label `le` besides."""
    exported = {}
    for name, metric in metrics().items():
        for series in metric.series(name):
            labels = metric.labels | ({"le"} if series.endswith("_bucket") else set())
            exported[series] = Metric(metric.kind, labels, metric.buckets)
    return exported
