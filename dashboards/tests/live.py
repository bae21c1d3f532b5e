"""Asks a Prometheus that scrapes a live node every query of the dashboards and the rules, until each
has been answered: `live.py http://127.0.0.1:9090 --patience 60`.

A query of a dashboard, an annotation or a variable must have an answer that is a number. An alarm is
silent in good times, so of a rule each series that it names must be there.
"""

import argparse
import json
import math
import re
import sys
import time
import urllib.parse
import urllib.request

from promql import named
from queries import board_queries, filled_in, rule_queries

# What Grafana makes of $__rate_interval when a node is scraped every second or so.
WINDOW = "10s"
PAUSE_S = 1.0


def questions() -> dict[str, str]:
    """Where each stands, and what is asked."""
    asked = {where: filled_in(query, window=WINDOW) for where, query in board_queries()}
    for name, query in rule_queries():
        for series, _ in named(query).series:
            # With the braces as they stand there.
            for selector in re.findall(rf"\b{series}\b(?:{{[^}}]*}})?", query):
                asked[f"rule {name}: {selector}"] = selector
    return asked


def is_answered(prometheus: str, query: str) -> bool:
    url = f"{prometheus}/api/v1/query?" + urllib.parse.urlencode({"query": query})
    try:
        with urllib.request.urlopen(url, timeout=10) as reply:
            answer = json.load(reply)["data"]["result"]
    except OSError:
        return False
    return bool(answer) and not all(math.isnan(float(series["value"][1])) for series in answer)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n\n")[0])
    parser.add_argument("prometheus")
    parser.add_argument("--patience", type=float, default=60.0, help="seconds")
    arguments = parser.parse_args()
    open_questions = questions()
    total = len(open_questions)
    until = time.monotonic() + arguments.patience
    while open_questions and time.monotonic() < until:
        open_questions = {
            where: query
            for where, query in open_questions.items()
            if not is_answered(arguments.prometheus, query)
        }
        if open_questions:
            time.sleep(PAUSE_S)
    for where, query in open_questions.items():
        print(f"no answer: {where}\n  {query}")
    print(f"{total - len(open_questions)} of {total} queries were answered")
    return 1 if open_questions else 0


if __name__ == "__main__":
    sys.exit(main())
