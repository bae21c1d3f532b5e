"""What swaps.py has measured: put together, and as a table."""

import math
import statistics

# Rows: what is said, which swaps (kind and way; None: any), which of their times.
ROWS = [
    ("good, saved: verdict", "good", "saved", "verdict_s"),
    ("good, saved: runs", "good", "saved", "runs_s"),
    ("good, saved: first batch", "good", "saved", "first_batch_s"),
    ("good, over HTTP: verdict", "good", "HTTP", "verdict_s"),
    ("good, over HTTP: runs", "good", "HTTP", "runs_s"),
    ("syntax error: verdict", "syntax error", None, "verdict_s"),
    ("missing import: verdict", "missing import", None, "verdict_s"),
    ("raises for rows: verdict", "raises for rows", None, "verdict_s"),
    ("all: verdict", None, None, "verdict_s"),
]
START = "start of a worker"
WIDTH = 28


def cell(value: float | None, width: int, digits: int = 0) -> str:
    """A number; a dash where there is none."""
    return f"{'–' if value is None else format(value, f',.{digits}f'):>{width}}"


def line(name: str, seconds: list[float]) -> dict:
    """A row of times: the 95th percentile is the least of them that as many do not exceed."""
    row: dict = {"name": name, "number": len(seconds), "median_ms": None}
    row |= {"p95_ms": None, "max_ms": None}
    if seconds:
        rank = math.ceil(0.95 * len(seconds)) - 1
        row["median_ms"] = round(1e3 * statistics.median(seconds), 1)
        row["p95_ms"] = round(1e3 * sorted(seconds)[rank], 1)
        row["max_ms"] = round(1e3 * max(seconds), 1)
    return row


def quantile(counts: dict[float, float], q: float) -> float | None:
    """A quantile of a histogram's cumulative counts by upper bound, evenly within a bucket."""
    bounds = sorted(counts)
    if not bounds or not counts[bounds[-1]]:
        return None
    wanted, low, below = q * counts[bounds[-1]], 0.0, 0.0
    for bound in bounds:
        if counts[bound] >= wanted:
            if math.isinf(bound):
                return low
            share = (wanted - below) / (counts[bound] - below) if counts[bound] > below else 1.0
            return low + (bound - low) * share
        low, below = bound, counts[bound]
    return None


def starts(rounds: list[dict]) -> dict:
    """The row of the workers' starts, with their mean."""
    total: dict[float, float] = {}
    for one in rounds:
        for bound, n in one["starts"]["within"].items():
            total[float(bound)] = total.get(float(bound), 0.0) + n
    seconds = sum(one["starts"]["seconds"] for one in rounds)
    number = total.get(math.inf, 0.0)
    row = {"name": START, "number": round(number), "mean_ms": None}
    row["mean_ms"] = round(1e3 * seconds / number, 1) if number else None
    for name, q in (("median_ms", 0.5), ("p95_ms", 0.95)):
        at = quantile(total, q)
        row[name] = None if at is None else round(1e3 * at, 1)
    reached = [bound for bound in sorted(total) if total[bound] >= number]
    row["max_ms"] = 1e3 * reached[0] if number and not math.isinf(reached[0]) else None
    return row


def summary(rounds: list[dict]) -> dict:
    """The rounds of one build, put together."""
    swaps = [one for told in rounds for one in told["swaps"]]
    rows = []
    for name, kind, way, what in ROWS:
        of = [s for s in swaps if kind in (None, s["kind"]) and way in (None, s["way"])]
        rows.append(line(name, [s[what] for s in of if s.get(what) is not None]))
    rows.append(starts(rounds))
    flow = {}
    for when in ("calm", "storm"):
        for what in ("events_per_s", "processors", "seconds"):
            flow[f"{what}_{when}"] = statistics.mean(told[when][what] for told in rounds)
    more = (flow["processors_storm"] - flow["processors_calm"]) * flow["seconds_storm"]
    flow["processor_ms_a_swap"] = 1e3 * more / (len(swaps) / len(rounds))
    flow = {key: round(value, 3) for key, value in flow.items()}
    late = sum(told["late"] for told in rounds)
    wrong = [bad for told in rounds for bad in told["wrong"]]
    return {"times": rows, "flow": flow, "late": late, "wrong": wrong, "rounds": rounds}


def times(sides: dict) -> list[str]:
    """A line a kind; of two builds with the ratio of their medians."""
    head = f"{'number':>7}{'median':>9}{'95th %':>9}{'max':>9}"
    lines = []
    if len(sides) > 1:
        lines.append(" " * WIDTH + "".join(f"{side:>{len(head)}}" for side in sides))
    ratio = f"{'ratio of medians':>18}" if len(sides) > 1 else ""
    lines.append(f"{'milliseconds':{WIDTH}}" + head * len(sides) + ratio)
    for rows in zip(*(told["times"] for told in sides.values()), strict=True):
        text = f"{rows[0]['name']:{WIDTH}}"
        for row in rows:
            text += cell(row["number"], 7) + cell(row["median_ms"], 9) + cell(row["p95_ms"], 9)
            most = cell(row["max_ms"], 0)
            text += f"{'≤ ' + most if row['name'] == START and row['max_ms'] else most:>9}"
        lines.append(text + (ratio_of([row["median_ms"] for row in rows]) if ratio else ""))
    means = [told["times"][-1]["mean_ms"] for told in sides.values()]
    text = f"{START + ', mean':{WIDTH}}"
    text += "".join(f"{'':7}{cell(mean, 9)}{'':18}" for mean in means)
    lines.append(text + (ratio_of(means) if ratio else ""))
    return [text.rstrip() for text in lines]


def ratio_of(values: list[float | None]) -> str:
    """The first by the second."""
    one, other = values
    return cell(one / other if one is not None and other else None, 18, 2)


def flow(sides: dict) -> list[str]:
    """What the swaps did to the events and the processors."""
    lines = [f"{'':{WIDTH}}{'':12}{'before':>10}{'while swapping':>16}"]
    for what, name, digits in (
        ("events_per_s", "events/s", 0),
        ("processors", "processors used", 2),
    ):
        for side, told in sides.items():
            of = told["flow"]
            text = f"{name:{WIDTH}}{side:12}{cell(of[f'{what}_calm'], 10, digits)}"
            lines.append(text + cell(of[f"{what}_storm"], 16, digits))
    for side, told in sides.items():
        of = told["flow"]["processor_ms_a_swap"]
        lines.append(f"{'processor time a swap, ms':{WIDTH}}{side:12}{'':10}{cell(of, 16)}")
    return lines


def text(made: dict, sides: dict) -> str:
    """All of it."""
    every = f"one every {made['every']} s, every second one to be refused"
    title = f"{made['swaps']} swaps a round, {every}; {made['rounds']} round(s)"
    lines = [title, "", *times(sides), "", *flow(sides)]
    for side, told in sides.items():
        if told["late"]:
            all_ = made["swaps"] * made["rounds"]
            lines.append(
                f"{side}: {told['late']} of {all_} swaps were not done when the next was due"
            )
    return "\n".join(lines)
