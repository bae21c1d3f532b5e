"""The rules: correct, explained, and each seen firing and staying silent by promtool."""

import re
import subprocess

import pytest
import yaml
from queries import HERE, RULE_FILES, RULE_TESTS, alerts, board_queries, filled_in, rules

RUNBOOK = HERE.parent / "docs" / "runbook.md"
NAMES = [alert["alert"] for alert in alerts()]


def run(*command) -> subprocess.CompletedProcess:
    return subprocess.run([*map(str, command)], capture_output=True, text=True, timeout=120)


def test_promtool_finds_the_rules_correct(promtool):
    done = run(promtool, "check", "rules", *RULE_FILES)
    assert done.returncode == 0, done.stdout + done.stderr


@pytest.mark.parametrize("file", RULE_TESTS, ids=lambda f: f.name)
def test_rules_fire_and_stay_silent_as_they_should(promtool, file):
    done = run(promtool, "test", "rules", file)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_query_of_the_dashboards_parses(promtool, tmp_path):
    """promtool parses what stands in rules, so each query becomes one."""
    listed = [
        {"record": f"query:{number}", "expr": filled_in(query)}
        for number, (_, query) in enumerate(board_queries())
    ]
    file = tmp_path / "queries.yml"
    file.write_text(yaml.safe_dump({"groups": [{"name": "queries", "rules": listed}]}))
    done = run(promtool, "check", "rules", file)
    assert done.returncode == 0, done.stdout + done.stderr
    assert f"{len(listed)} rules found" in done.stdout


def test_a_query_that_does_not_parse_is_seen(promtool, tmp_path):
    file = tmp_path / "queries.yml"
    group = {"name": "queries", "rules": [{"record": "query:0", "expr": "sum(rate(x[1m])"}]}
    file.write_text(yaml.safe_dump({"groups": [group]}))
    assert run(promtool, "check", "rules", file).returncode != 0


@pytest.mark.parametrize("alert", alerts(), ids=NAMES)
def test_an_alert_says_what_it_means_and_where_to_look(alert):
    assert alert["labels"]["severity"] in ("critical", "warning")
    notes = alert["annotations"]
    assert notes["summary"] and notes["description"].endswith(".")
    name = alert["alert"]
    assert notes["runbook"] == f"docs/runbook.md#{name.lower()}"
    section = re.search(rf"^## {name}\n(.*?)(?=^## |\Z)", RUNBOOK.read_text("utf-8"), re.M | re.S)
    assert section, f"docs/runbook.md has no section {name}"
    for part in ("**Symptom.**", "**Look.**", "**Do.**"):
        assert part in section[1], f"{name}: {part}"


def test_the_runbook_has_no_section_without_a_rule():
    sections = re.findall(r"^## (\w+)$", RUNBOOK.read_text("utf-8"), re.M)
    assert sorted(sections) == sorted(NAMES)


def test_names_of_alerts_are_unique():
    assert len(set(NAMES)) == len(NAMES)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("expr", ["vector(0) > 1", "vector(1)"], ids=["never", "always"])
def test_the_tests_see_an_alert_that_never_or_always_fires(promtool, tmp_path, name, expr):
    """A check proves nothing until it has seen a defect."""
    file = next(file for file, rule in rules() if rule.get("alert") == name)
    for source in RULE_FILES:
        content = yaml.safe_load(source.read_text("utf-8"))
        for group in content["groups"]:
            for rule in group["rules"]:
                if rule.get("alert") == name:
                    rule["expr"] = expr
                    rule.pop("for", None)
        (tmp_path / source.name).write_text(yaml.safe_dump(content))
    (tmp_path / "tests").mkdir()
    tests = tmp_path / "tests" / file.name
    tests.write_text((HERE / "rules" / "tests" / file.name).read_text("utf-8"))
    done = run(promtool, "test", "rules", tests)
    assert done.returncode != 0
    assert name in done.stdout + done.stderr
