"""The layouts of compose.yaml: what runs together under each profile, and where it listens."""

from functools import cache
from pathlib import Path

import yaml

DOCKER = Path(__file__).resolve().parents[1]
ROOT = DOCKER.parent
COMPOSE = DOCKER / "compose.yaml"
# Grafana's own default; nothing here changes it.
GRAFANA_PORT = 3000


@cache
def compose() -> dict:
    return yaml.safe_load(COMPOSE.read_text("utf-8"))


def services() -> dict[str, dict]:
    return compose()["services"]


LAYOUTS = sorted({profile for s in services().values() for profile in s.get("profiles", [])})
# What each layout is for; everything else in it follows from compose.yaml.
EXPECTED = {
    "kafka": {"kafka", "redis", "node", "prometheus", "grafana"},
    "redpanda": {"redpanda", "redis", "node", "prometheus", "grafana"},
    "roles": {
        *("kafka", "redis", "process-1", "process-2", "store", "generate"),
        *("prometheus-roles", "grafana"),
    },
}


def layout(profile: str) -> dict[str, dict]:
    """What Compose starts under one profile."""
    return {
        name: service
        for name, service in services().items()
        if profile in service.get("profiles", [profile])
    }


def is_node(service: dict) -> bool:
    return service["image"] == "millstream"


def nodes(profile: str) -> dict[str, dict]:
    return {name: service for name, service in layout(profile).items() if is_node(service)}


def roles(node: dict) -> set[str]:
    command = node["command"]
    if "--roles" not in command:
        return {"generate", "process", "store"}
    return set(command[command.index("--roles") + 1].split(","))


def flag(service: dict, name: str) -> str:
    """The value of `--name=value` in a service's command."""
    (found,) = (c for c in service["command"] if c.startswith(f"--{name}="))
    return found.split("=", 1)[1]


def mounts(service: dict) -> dict[str, str]:
    """What is mounted, by its place in the container."""
    pairs = (volume.split(":")[:2] for volume in service.get("volumes", []))
    return {place: source for source, place in pairs}


def addresses(name: str) -> list[str]:
    """The addresses of the host that a service takes."""
    service = services()[name]
    if service.get("network_mode") != "host":
        return [port.rsplit(":", 1)[0] for port in service.get("ports", [])]
    if is_node(service):
        said = service["environment"]
        return [said["MILLSTREAM__NODE__HTTP"], said["MILLSTREAM__NODE__GRPC"]]
    if name.startswith("prometheus"):
        return [flag(service, "web.listen-address")]
    if name == "grafana":
        return [f"{service['environment']['GF_SERVER_HTTP_ADDR']}:{GRAFANA_PORT}"]
    raise AssertionError(f"say here where {name} listens")
