"""The dashboards that are checked in: current, whole, and alike."""

import re

import promql
import pytest
from boards import BOARDS
from build import rendered, stale
from queries import board_queries, boards, filled_in, named_ids, panels


def test_the_checked_in_dashboards_are_current():
    assert stale(rendered()) == [], "run `make dashboards`"


def test_building_twice_gives_the_same_text():
    assert rendered() == rendered()


def test_there_is_a_file_for_each_board():
    assert {f"{name}.json" for name in BOARDS} == set(boards())


def test_uids_and_titles_are_unique_and_fixed():
    uids = {board["uid"] for board in boards().values()}
    assert uids == {f"millstream-{name}" for name in BOARDS}
    assert len({board["title"] for board in boards().values()}) == len(BOARDS)


@pytest.mark.parametrize(
    "name,panel", panels(), ids=lambda v: v if isinstance(v, str) else v["title"]
)
def test_a_panel_says_what_it_is_for(name, panel):
    assert panel["title"]
    says = panel["description"]
    assert len(says) > 60, "say what to conclude from it and what to do"
    assert says.endswith("."), says
    assert panel["fieldConfig"]["defaults"].get("unit"), "a panel needs a unit"
    assert panel["targets"], "a panel needs a query"


@pytest.mark.parametrize("name", boards())
def test_everything_asks_the_provisioned_datasource(name):
    board = boards()[name]
    expected = {"type": "prometheus", "uid": "millstream-prometheus"}
    asking = [p for p in board["panels"] if p["type"] != "row"]
    asking += [target for panel in asking for target in panel["targets"]]
    asking += board["annotations"]["list"] + board["templating"]["list"]
    for thing in asking:
        assert thing["datasource"] == expected


@pytest.mark.parametrize("name", boards())
def test_panels_are_numbered_and_do_not_overlap(name):
    taken, numbers = set(), set()
    for panel in boards()[name]["panels"]:
        numbers.add(panel["id"])
        at = panel["gridPos"]
        assert at["x"] + at["w"] <= 24
        cells = {
            (x, y)
            for x in range(at["x"], at["x"] + at["w"])
            for y in range(at["y"], at["y"] + at["h"])
        }
        assert not taken & cells, panel["title"]
        taken |= cells
    assert len(numbers) == len(boards()[name]["panels"])


@pytest.mark.parametrize("where,query", board_queries(), ids=named_ids(board_queries()))
def test_rates_are_over_the_rate_interval(where, query):
    calls = promql.windows(query, "rate|irate|increase|delta|idelta")
    assert all(window == "$__rate_interval" for _, _, window in calls), where


@pytest.mark.parametrize("where,query", board_queries(), ids=named_ids(board_queries()))
def test_queries_keep_to_the_chosen_cluster(where, query):
    if where.endswith("$job"):
        return
    for series, matchers in promql.named(filled_in(query, job="chosen")).series:
        assert ("job", "chosen") in matchers, f"{where}: {series}"


def test_legends_name_only_labels_that_the_query_keeps():
    for name, panel in panels():
        for target in panel["targets"]:
            used = set(re.findall(r"{{(\w+)}}", target.get("legendFormat", "")))
            kept = promql.named(filled_in(target["expr"])).grouping | {"instance"}
            assert used <= kept, f"{name}: {panel['title']}"
