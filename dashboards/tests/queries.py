"""All the queries of the dashboards and the rules, as they are checked in."""

import json
import re
from functools import cache
from pathlib import Path

import yaml

HERE = Path(__file__).parents[1]
BOARD_FILES = sorted(HERE.glob("*.json"))
RULE_FILES = sorted((HERE / "rules").glob("*.yml"))
RULE_TESTS = sorted((HERE / "rules" / "tests").glob("*.yml"))


@cache
def boards() -> dict[str, dict]:
    return {file.name: json.loads(file.read_text("utf-8")) for file in BOARD_FILES}


def panels() -> list[tuple[str, dict]]:
    """Every panel but the headings, with the name of its dashboard."""
    return [
        (name, panel)
        for name, board in boards().items()
        for panel in board["panels"]
        if panel["type"] != "row"
    ]


def board_queries() -> list[tuple[str, str]]:
    """Where it stands, and the query: of panels, annotations and variables."""
    found = [
        (f"{name}: {panel['title']}", target["expr"])
        for name, panel in panels()
        for target in panel["targets"]
    ]
    for name, board in boards().items():
        found += [(f"{name}: {a['name']}", a["expr"]) for a in board["annotations"]["list"]]
        for variable in board["templating"]["list"]:
            inner = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["query"])
            assert inner, variable["query"]
            found.append((f"{name}: ${variable['name']}", f"count by ({inner[2]}) ({inner[1]})"))
    return found


def rules() -> list[tuple[Path, dict]]:
    return [
        (file, rule)
        for file in RULE_FILES
        for group in yaml.safe_load(file.read_text("utf-8"))["groups"]
        for rule in group["rules"]
    ]


def alerts() -> list[dict]:
    return [rule for _, rule in rules() if "alert" in rule]


def rule_queries() -> list[tuple[str, str]]:
    return [(rule.get("alert") or rule["record"], rule["expr"]) for _, rule in rules()]


def named_ids(queries: list[tuple[str, str]]) -> list[str]:
    """What pytest calls the cases."""
    return [where for where, _ in queries]


def filled_in(query: str, job: str = "millstream", window: str = "1m") -> str:
    """A query with what Grafana puts in the place of its variables."""
    query = query.replace("$__rate_interval", window).replace("$instance", ".*")
    query = query.replace("$job", job)
    assert "$" not in query, query
    return query
