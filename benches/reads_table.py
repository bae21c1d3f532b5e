"""What reads.py has measured, as a table."""

from online_reads import LEAST_REQUESTS

RATES = (50, 500)


def cell(value: float | None, width: int, digits: int = 0) -> str:
    """A number; a dash where there is none."""
    return f"{'–' if value is None else format(value, f',.{digits}f'):>{width}}"


def training_sets(made: dict, sides: dict) -> list[str]:
    """AS OF: a line a training set and side."""
    title = f"AS OF, 5 features, {made['rows']:,} rows of history"
    head = f"{'command s':>12}{'node s':>9}{'peak MB':>10}{'Redis MB':>10}{'wrong':>8}  in order"
    lines = [title, f"{'questions':>11}  {'mode':12}{'':12}{head}"]
    keys = sorted(
        {(s["questions"], s["mode"]) for side in sides.values() for s in side["training_sets"]},
        key=lambda key: (key[0], key[1] != "event-time"),
    )
    for questions, mode in keys:
        for side, told in sides.items():
            for one in told["training_sets"]:
                if (one["questions"], one["mode"]) != (questions, mode):
                    continue
                # Feast is a library: its process is the command and the node.
                seconds = one.get("command_s"), one.get("node_s", one.get("seconds"))
                peak = one.get("node_peak_mb", one.get("peak_rss_mb"))
                row = cell(seconds[0], 12, 3) + cell(seconds[1], 9, 3) + cell(peak, 10)
                row += cell(one.get("redis_peak_mb"), 10) + cell(one["wrong_rows"], 8)
                row += f"  {'yes' if one['in_order'] else 'no'}"
                lines.append(f"{questions:>11,}  {mode:12}{side:12}{row}")
    return lines


def online(sides: dict) -> list[str]:
    """Online: a line a size, side and interface."""
    head = "".join(f"{f'{rate}/s: p50':>13}{'p99':>10}{'p99.9':>9} " for rate in RATES)
    lines = [
        "Online: the greatest rate, and latency in ms at fixed rates (open loop)",
        f"{'features':>8}{'entities':>10}  {'':16}{'greatest/s':>11}{head}",
    ]
    found: dict[tuple, dict] = {}
    for side, told in sides.items():
        for one in told["online"]:
            key = one["features"], one["entities"], side, one["interface"]
            of = found.setdefault(key, {})
            if "error" not in one:
                of[one.get("rate")] = one
    order = {side: n for n, side in enumerate(sides)}
    late = False
    for key in sorted(found, key=lambda k: (k[0], k[1], order[k[2]], k[3] != "http")):
        features, entities, side, interface = key
        of = found[key]
        row = cell(of.get(None, {}).get("requests_per_s"), 11)
        for rate in RATES:
            one = of.get(rate, {})
            kept = one.get("requests_per_s", 0) >= 0.98 * rate
            late |= bool(one) and not kept
            rare = one.get("p99.9_ms") if one.get("requests", 0) >= LEAST_REQUESTS else None
            row += cell(one.get("p50_ms"), 13, 2) + cell(one.get("p99_ms"), 10, 2)
            row += cell(rare, 9, 2) + (" " if kept or not one else "*")
        name = f"{side} {'HTTP' if interface == 'http' else 'gRPC'}"
        lines.append(f"{features:>8}{entities:>10}  {name:16}{row.rstrip()}")
    if late:
        lines.append("* could not keep up with the rate: the latencies grow with the time measured")
    return lines


def loads(sides: dict) -> list[str]:
    """How long the data took to be there, and how busy the client was."""
    lines = []
    ours = sides["millstream"]
    for name, key in (("history", "load"), ("online values", "load_online")):
        of = ours[key]
        lines.append(
            f"millstream: {name}: {of['rows']:,} rows in {of['seconds']:,.1f} s ({of['rows_per_s']:,}/s)"
        )
    if of := sides.get("feast", {}).get("load"):
        lines.append(
            f"feast: online values of all views in {of['materialize_s']:,.1f} s (materialize)"
        )
    for side, told in sides.items():
        open_loop = [one for one in told["online"] if one.get("client_late_us")]
        if open_loop:
            worst = max(one["client_late_us"]["p99"] for one in open_loop)
            lines.append(
                f"{side}: the client was up to {worst} µs late (p99), which is in the latencies"
            )
    return lines


def text(made: dict, sides: dict) -> str:
    """All of it."""
    parts = [training_sets(made, sides), online(sides), loads(sides)]
    return "\n\n".join("\n".join(lines) for lines in parts)
