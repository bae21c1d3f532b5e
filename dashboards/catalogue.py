"""The metrics of a node, read from the Rust sources: names and kinds from the catalogue, labels
from the places that record them."""

import re
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[1]
SOURCES = ROOT / "src"
CATALOGUE = SOURCES / "telemetry" / "catalogue.rs"

# A string of Rust; `\` at the end of a line leaves out the line's end and what the next is indented by.
STRING = r'"(?:[^"\\]|\\.)*"'

# What Prometheus gives every series.
TARGET_LABELS = {"job", "instance"}


@dataclass
class Metric:
    kind: str
    labels: set[str] = field(default_factory=set)
    buckets: list[str] = field(default_factory=list)
    # The stage whose endpoint shows it; empty: it has a series for each stage or actor, or is of
    # the whole node.
    stage: str = ""
    help: str = ""

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


def _text(literal: str) -> str:
    return re.sub(r"\\(\n\s*)?", "", literal[1:-1])


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
    called = re.finditer(
        rf"\b(?P<helper>{'|'.join(helpers)})\(\s*(?P<name>\w+),"
        rf"\s*(?P<stage>{STRING}),\s*(?P<help>{STRING}),?\s*\)",
        entries,
        re.S,
    )
    in_full = re.finditer(
        rf"Metric \{{\s*name: (?P<name>\w+),\s*{kind},"
        rf"\s*help: (?P<help>{STRING}),\s*stage: (?P<stage>{STRING}),?\s*\}}",
        entries,
        re.S,
    )
    found = [(entry, helpers[entry["helper"]]) for entry in called]
    found += [(entry, (entry[2], entry[3])) for entry in in_full]
    # In the order of the list, which is that of the flow.
    found.sort(key=lambda one: one[0].start())
    constants = [entry["name"] for entry, _ in found]
    assert sorted(constants) == sorted(names), set(constants) ^ names.keys()
    labels = _recorded_labels()
    known = {}
    for entry, (of, buckets) in found:
        # Counters of seconds are told as counters, whatever the exporter keeps them as.
        kind = "counter" if of == "Seconds" else of.lower()
        metric = Metric(kind, set(labels.get(entry["name"], set())))
        metric.stage, metric.help = _text(entry["stage"]), _text(entry["help"])
        if buckets:
            metric.buckets = lists[buckets]
        known[names[entry["name"]]] = metric
    return FOREIGN | known


def stages() -> list[str]:
    """The stages in the order of the flow."""
    listed = re.search(r"pub const STAGES[^=]*= \[([^]]*)\]", CATALOGUE.read_text("utf-8"))
    return re.findall(r'"(\w+)"', listed[1])


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
