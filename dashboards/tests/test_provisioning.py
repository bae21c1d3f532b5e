"""What brings dashboards and rules into Grafana and Prometheus: the files in docker/ agree with
each other, with the paths in the containers, and with what is here. docker/tests has the rest: the
layouts, and a Prometheus that runs."""

import re
from pathlib import PurePosixPath

import pytest
import yaml
from boards.parts import DATASOURCE
from queries import BOARD_FILES, HERE, RULE_FILES, rule_queries

ROOT = HERE.parent
DOCKER = ROOT / "docker"
PROVISIONING = DOCKER / "grafana" / "provisioning"
# One for each kind of layout, with the file that it gets.
PROMETHEUS = {"prometheus": "prometheus.yml", "prometheus-roles": "prometheus-roles.yml"}
each_prometheus = pytest.mark.parametrize("name", PROMETHEUS)


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


@each_prometheus
def test_the_datasource_is_the_one_that_dashboards_name(name):
    provisioned = read(PROVISIONING / "datasources" / "prometheus.yaml")
    assert provisioned["apiVersion"] == 1
    (source,) = provisioned["datasources"]
    assert (source["type"], source["uid"]) == (DATASOURCE.type_val, DATASOURCE.uid)
    assert source["isDefault"] is True
    listens = [c for c in service(name)["command"] if "listen-address" in c]
    assert source["url"].removeprefix("http://") == listens[0].split("=")[1]


@each_prometheus
def test_the_datasource_knows_the_interval_of_the_scrapes(name):
    (source,) = read(PROVISIONING / "datasources" / "prometheus.yaml")["datasources"]
    scraped = read(DOCKER / PROMETHEUS[name])["global"]["scrape_interval"]
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


@each_prometheus
def test_prometheus_finds_the_rules_in_its_container_too(name):
    command = service(name)["command"]
    config = next(c.split("=")[1] for c in command if c.startswith("--config.file="))
    assert on_this_side(name, config) == DOCKER / PROMETHEUS[name]
    (pattern,) = read(DOCKER / PROMETHEUS[name])["rule_files"]
    inside = PurePosixPath(config).parent
    for part in PurePosixPath(pattern).parent.parts:
        inside = inside.parent if part == ".." else inside / part
    folder = on_this_side(name, str(inside))
    assert sorted(folder.glob(PurePosixPath(pattern).name)) == RULE_FILES


@each_prometheus
def test_the_rules_see_the_jobs_that_are_scraped(name):
    pattern = {m for _, query in rule_queries() for m in re.findall(r'job=~"([^"]+)"', query)}
    (pattern,) = pattern
    for job in read(DOCKER / PROMETHEUS[name])["scrape_configs"]:
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
