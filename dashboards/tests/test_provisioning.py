"""What brings dashboards and rules into Grafana and Prometheus: the files in docker/ agree with
each other, with the paths in the containers, and with what is here."""

import re
import subprocess
from pathlib import PurePosixPath

import pytest
import yaml
from boards.parts import DATASOURCE
from queries import BOARD_FILES, HERE, RULE_FILES, rule_queries

ROOT = HERE.parent
DOCKER = ROOT / "docker"
PROVISIONING = DOCKER / "grafana" / "provisioning"


def read(file) -> dict:
    return yaml.safe_load(file.read_text("utf-8"))


def service(name: str) -> dict:
    return read(DOCKER / "compose.yaml")["services"][name]


def on_this_side(name: str, path: str):
    """The file or folder of the checkout that a path in a container stands for."""
    for volume in service(name)["volumes"]:
        source, target, *_ = volume.split(":")
        if source.startswith(".") and PurePosixPath(path).is_relative_to(target):
            return (DOCKER / source / PurePosixPath(path).relative_to(target)).resolve()
    pytest.fail(f"{path} is not mounted in the container of {name}")


def test_the_datasource_is_the_one_that_dashboards_name():
    provisioned = read(PROVISIONING / "datasources" / "prometheus.yaml")
    assert provisioned["apiVersion"] == 1
    (source,) = provisioned["datasources"]
    assert (source["type"], source["uid"]) == (DATASOURCE.type_val, DATASOURCE.uid)
    assert source["isDefault"] is True
    listens = [c for c in service("prometheus")["command"] if "listen-address" in c]
    assert source["url"].removeprefix("http://") == listens[0].split("=")[1]


def test_the_datasource_knows_the_interval_of_the_scrapes():
    (source,) = read(PROVISIONING / "datasources" / "prometheus.yaml")["datasources"]
    scraped = read(DOCKER / "prometheus.yml")["global"]["scrape_interval"]
    assert source["jsonData"]["timeInterval"] == scraped


def test_grafana_finds_the_dashboards_where_they_are_mounted():
    assert on_this_side("grafana", "/etc/grafana/provisioning") == PROVISIONING
    provisioned = read(PROVISIONING / "dashboards" / "millstream.yaml")
    assert provisioned["apiVersion"] == 1
    (provider,) = provisioned["providers"]
    assert provider["type"] == "file"
    folder = on_this_side("grafana", provider["options"]["path"])
    # Grafana takes every JSON file below the folder for a dashboard.
    assert sorted(folder.rglob("*.json")) == BOARD_FILES


def test_the_home_dashboard_is_there():
    home = service("grafana")["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    assert on_this_side("grafana", home) == HERE / "overview.json"


def test_prometheus_finds_the_rules_in_its_container_too():
    command = service("prometheus")["command"]
    config = next(c.split("=")[1] for c in command if c.startswith("--config.file="))
    assert on_this_side("prometheus", config) == DOCKER / "prometheus.yml"
    (pattern,) = read(DOCKER / "prometheus.yml")["rule_files"]
    inside = PurePosixPath(config).parent
    for part in PurePosixPath(pattern).parent.parts:
        inside = inside.parent if part == ".." else inside / part
    folder = on_this_side("prometheus", str(inside))
    assert sorted(folder.glob(PurePosixPath(pattern).name)) == RULE_FILES


def test_the_rules_see_the_jobs_that_are_scraped():
    pattern = {m for _, query in rule_queries() for m in re.findall(r'job=~"([^"]+)"', query)}
    (pattern,) = pattern
    for job in read(DOCKER / "prometheus.yml")["scrape_configs"]:
        assert re.fullmatch(pattern, job["job_name"])


def test_the_dashboards_are_made_for_the_grafana_that_runs():
    pinned = (ROOT / "requirements-dev.txt").read_text("utf-8")
    version = re.search(r"^grafana-foundation-sdk==\d+!(\d+\.\d+)\.", pinned, re.M)[1]
    assert re.fullmatch(rf"grafana/grafana:{re.escape(version)}\.\d+", service("grafana")["image"])


def test_everything_that_is_mounted_from_the_checkout_exists():
    for name in read(DOCKER / "compose.yaml")["services"]:
        for volume in service(name).get("volumes", []):
            source = volume.split(":")[0]
            assert not source.startswith(".") or (DOCKER / source).exists(), f"{name}: {source}"


def test_prometheus_accepts_its_configuration(promtool):
    command = [promtool, "check", "config", str(DOCKER / "prometheus.yml")]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("rules found") == len(RULE_FILES)
