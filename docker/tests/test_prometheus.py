"""Prometheus, started with the very files that the containers get."""

import json
import socket
import subprocess
import time
import urllib.error
import urllib.request

import pytest
import yaml
from layouts import DOCKER, LAYOUTS, ROOT, flag, layout, mounts, nodes, services
from queries import RULE_FILES, rules

CONFIGS = {"prometheus": "prometheus.yml", "prometheus-roles": "prometheus-roles.yml"}
DEADLINE_S = 30


def watching(profile: str) -> str:
    """The service that watches a layout."""
    (name,) = (name for name in layout(profile) if name in CONFIGS)
    return name


def config(name: str) -> dict:
    return yaml.safe_load((DOCKER / CONFIGS[name]).read_text("utf-8"))


def targets(name: str) -> dict[str, str]:
    """The addresses that are scraped, each with the name that it is shown under."""
    (job,) = config(name)["scrape_configs"]
    assert job["job_name"] == "millstream"
    groups = job["static_configs"]
    return {a: g.get("labels", {}).get("instance", a) for g in groups for a in g["targets"]}


@pytest.mark.parametrize("name", CONFIGS)
def test_each_prometheus_gets_its_own_configuration(name):
    inside = flag(services()[name], "config.file")
    assert mounts(services()[name])["/etc/millstream/docker"] == "."
    assert inside == f"/etc/millstream/docker/{CONFIGS[name]}"


@pytest.mark.parametrize("profile", LAYOUTS)
def test_the_nodes_of_a_layout_are_watched_and_no_others(profile):
    seen = nodes(profile)
    listen = {n: node["environment"]["MILLSTREAM__NODE__HTTP"] for n, node in seen.items()}
    assert set(targets(watching(profile))) == set(listen.values())
    if len(listen) > 1:
        assert targets(watching(profile)) == {a: name for name, a in listen.items()}


def test_only_the_nodes_differ():
    one, other = map(config, CONFIGS)
    del one["scrape_configs"], other["scrape_configs"]
    assert one == other


@pytest.mark.parametrize("name", CONFIGS)
def test_promtool_accepts_the_configuration(promtool, name):
    command = [promtool, "check", "config", str(DOCKER / CONFIGS[name])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout.count("rules found") == len(RULE_FILES)


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


@pytest.fixture(scope="module", params=list(CONFIGS))
def running(request, prometheus, tmp_path_factory):
    """A Prometheus with one of the files; a function that asks it, and the service's name."""
    folder = tmp_path_factory.mktemp(request.param)
    address = f"127.0.0.1:{free_port()}"
    command = [
        prometheus,
        f"--config.file={DOCKER / CONFIGS[request.param]}",
        f"--storage.tsdb.path={folder / 'data'}",
        f"--web.listen-address={address}",
    ]

    def ask(path: str) -> str:
        with urllib.request.urlopen(f"http://{address}{path}", timeout=10) as answer:
            return answer.read().decode()

    with (folder / "log").open("w") as log:
        process = subprocess.Popen(command, cwd=ROOT, stdout=log, stderr=log)
    try:
        # The path is the one that the health check asks.
        ready = services()[request.param]["healthcheck"]["test"][-1].split(":9090")[1]
        wait_for(lambda: ask(ready), process, folder / "log")
        yield ask, request.param, process, folder / "log"
    finally:
        process.kill()
        process.wait()


def wait_for(happens, process, log):
    deadline = time.monotonic() + DEADLINE_S
    while True:
        try:
            if answer := happens():
                return answer
        except (urllib.error.URLError, ConnectionError):
            pass
        assert process.poll() is None, log.read_text()
        assert time.monotonic() < deadline, log.read_text()
        time.sleep(0.05)


def test_it_watches_the_nodes(running):
    ask, name, process, log = running

    def seen() -> dict[str, str]:
        active = json.loads(ask("/api/v1/targets?state=active"))["data"]["activeTargets"]
        assert all(target["labels"]["job"] == "millstream" for target in active)
        return {t["discoveredLabels"]["__address__"]: t["labels"]["instance"] for t in active}

    # It answers before it has looked for its targets.
    assert wait_for(seen, process, log) == targets(name)


def test_it_has_all_the_rules_and_can_evaluate_them(running):
    ask, _, process, log = running

    def evaluated() -> list[dict]:
        groups = json.loads(ask("/api/v1/rules"))["data"]["groups"]
        loaded = [rule for group in groups for rule in group["rules"]]
        return [] if any(rule["health"] == "unknown" for rule in loaded) else loaded

    found = wait_for(evaluated, process, log)
    named = [rule.get("alert") or rule["record"] for _, rule in rules()]
    assert sorted(rule["name"] for rule in found) == sorted(named)
    assert [rule["lastError"] for rule in found if rule["health"] != "ok"] == []
