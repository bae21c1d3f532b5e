"""compose.yaml: valid, and each of its layouts whole. No container is started here."""

import http.server
import os
import re
import subprocess
import sys
import threading
import tomllib

import pytest
from layouts import (
    COMPOSE,
    DOCKER,
    EXPECTED,
    LAYOUTS,
    ROOT,
    addresses,
    compose,
    is_node,
    layout,
    mounts,
    nodes,
    roles,
    services,
)


def schema_says(file) -> subprocess.CompletedProcess:
    """The judgement of the Compose specification's own schema, as check-jsonschema ships it."""
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    return subprocess.run([*command, str(file)], capture_output=True, text=True, timeout=60)


def test_the_file_is_valid_under_the_specification_s_schema():
    said = schema_says(COMPOSE)
    assert said.returncode == 0, said.stdout + said.stderr


@pytest.mark.parametrize("right,wrong", [("healthcheck:", "healtcheck:"), ("[kafka", "[7, kafka")])
def test_the_schema_finds_a_slip(tmp_path, right, wrong):
    text = COMPOSE.read_text("utf-8")
    assert right in text
    (tmp_path / "compose.yaml").write_text(text.replace(right, wrong))
    assert schema_says(tmp_path / "compose.yaml").returncode != 0


@pytest.mark.parametrize("profile", LAYOUTS)
def test_a_layout_has_what_it_is_for(profile):
    assert set(layout(profile)) == EXPECTED[profile]


def test_there_are_no_other_layouts():
    assert LAYOUTS == sorted(EXPECTED)


def test_plain_up_starts_the_layout_with_kafka():
    lines = (DOCKER / ".env").read_text("utf-8").splitlines()
    assert [line for line in lines if not line.startswith("#")] == ["COMPOSE_PROFILES=kafka"]


@pytest.mark.parametrize("profile", LAYOUTS)
def test_what_a_service_waits_for_is_in_its_layout(profile):
    here = layout(profile)
    for name, service in here.items():
        for other, how in service.get("depends_on", {}).items():
            assert other in services(), f"{name} waits for {other}"
            assert other in here or how["required"] is False, f"{name} waits for {other}"
            assert how["condition"] == "service_healthy"


@pytest.mark.parametrize("profile", LAYOUTS)
def test_every_node_waits_for_redis_and_for_one_broker(profile):
    for node in nodes(profile).values():
        waits = set(node["depends_on"]) & set(layout(profile))
        assert "redis" in waits
        assert len(waits & {"kafka", "redpanda"}) == 1


@pytest.mark.parametrize("profile", LAYOUTS)
def test_no_two_services_of_a_layout_take_one_address(profile):
    taken = [(a.rsplit(":", 1)[1], name) for name in layout(profile) for a in addresses(name)]
    ports = [port for port, _ in taken]
    assert len(ports) == len(set(ports)), sorted(taken)


def test_nothing_can_be_reached_from_another_machine():
    for name in services():
        for address in addresses(name):
            assert address.startswith("127.0.0.1:"), f"{name}: {address}"


@pytest.mark.parametrize("profile", LAYOUTS)
def test_nodes_find_the_broker_and_redis_where_they_listen(profile):
    (broker,) = {"kafka", "redpanda"} & set(layout(profile))
    for node in nodes(profile).values():
        said = node["environment"]
        assert [said["MILLSTREAM__KAFKA__BROKERS"]] == addresses(broker)
        assert [said["MILLSTREAM__REDIS__URL"]] == [f"redis://{a}" for a in addresses("redis")]


def test_both_brokers_tell_clients_the_address_that_is_published():
    advertised = services()["kafka"]["environment"]["KAFKA_ADVERTISED_LISTENERS"]
    assert [advertised] == [f"PLAINTEXT://{a}" for a in addresses("kafka")]
    command = services()["redpanda"]["command"]
    assert f"--advertise-kafka-addr={advertised}" in command


@pytest.mark.parametrize("profile", LAYOUTS)
def test_a_layout_plays_every_role_and_stores_once(profile):
    played = sorted(role for node in nodes(profile).values() for role in roles(node))
    processes = 2 if profile == "roles" else 1
    assert played == ["generate", *["process"] * processes, "store"]


def test_the_roles_are_apart():
    assert all(len(roles(node)) == 1 for node in nodes("roles").values())


@pytest.mark.parametrize("profile", LAYOUTS)
def test_only_the_store_has_the_database_and_process_nodes_share_its_spool(profile):
    for name, node in nodes(profile).items():
        has = mounts(node)
        assert (has.get("/data") == "data") == ("store" in roles(node)), name
        at = node["environment"]["MILLSTREAM__UPLOADS__SPOOL_DIR"]
        assert (has.get(at) == "spool") == bool(roles(node) & {"process", "store"}), name
        assert (node["command"][-2:]) == ["--data-dir", "/data"]


@pytest.mark.parametrize("profile", LAYOUTS)
def test_nodes_have_names_of_their_own_and_that_of_their_service(profile):
    names = {n: s["environment"]["MILLSTREAM__NODE__NAME"] for n, s in nodes(profile).items()}
    assert all(name == service for service, name in names.items())


@pytest.mark.parametrize("profile", LAYOUTS)
def test_one_service_of_a_layout_builds_the_image(profile):
    builds = [name for name, node in nodes(profile).items() if "build" in node]
    assert len(builds) == 1, builds
    for name, node in nodes(profile).items():
        assert name in builds or node["pull_policy"] == "never", name


def test_nodes_stop_with_the_flow_so_that_each_can_drain():
    # Compose stops a service before what it waits for.
    waits = {name: set(node["depends_on"]) for name, node in nodes("roles").items()}
    assert waits["generate"] >= {"process-1", "process-2"}
    assert "store" in waits["process-1"] & waits["process-2"]
    assert not waits["store"] & set(waits)


def test_made_up_files_go_to_a_node_that_takes_them():
    to = services()["generate"]["environment"]["MILLSTREAM__GENERATOR__UPLOAD_TO"]
    takes = [n for n in nodes("roles").values() if "process" in roles(n)]
    assert to in {node["environment"]["MILLSTREAM__NODE__GRPC"] for node in takes}


def said(text: str) -> object:
    """How a node reads a variable: what parses as TOML is taken as such."""
    try:
        return tomllib.loads(f"v = {text}")["v"]
    except tomllib.TOMLDecodeError:
        return text


@pytest.mark.parametrize("name", [name for name, s in services().items() if is_node(s)])
def test_the_environment_of_a_node_names_keys_of_the_configuration(name):
    # A test of the program holds this file against the configuration: it has every key.
    example = tomllib.loads((ROOT / "millstream.example.toml").read_text("utf-8"))
    for variable, text in services()[name]["environment"].items():
        prefix, *path = variable.split("__")
        assert prefix == "MILLSTREAM", variable
        at = example
        for part in path:
            assert part.lower() in at, variable
            at = at[part.lower()]
        assert type(said(text)) is type(at), f"{variable}: {text}"


def test_every_image_is_pinned_to_a_version():
    for name, service in services().items():
        if not is_node(service):
            assert re.search(r":v?\d+\.\d+(\.\d+)?$", service["image"]), (
                f"{name}: {service['image']}"
            )


def test_the_broker_is_the_one_of_the_tests():
    pom = (ROOT / "scripts" / "kafka" / "pom.xml").read_text("utf-8")
    version = re.search(r"<kafka.version>(.*)</kafka.version>", pom)[1]
    assert services()["kafka"]["image"] == f"apache/kafka:{version}"


def test_every_volume_is_declared_and_used():
    named = {source for s in services().values() for source in mounts(s).values()}
    assert {source for source in named if source[0] not in "./"} == set(compose()["volumes"])


def test_every_service_has_a_health_check():
    for name, service in services().items():
        check = service["healthcheck"]
        assert check["test"][0] in ("CMD", "CMD-SHELL"), name
        assert {"interval", "timeout", "retries"} <= set(check), name


@pytest.mark.parametrize("name,path", [("grafana", "/api/health"), ("prometheus", "/-/ready")])
def test_the_health_check_asks_where_the_service_listens(name, path):
    (address,) = addresses(name)
    assert services()[name]["healthcheck"]["test"][-1] == f"http://{address}{path}"


@pytest.fixture
def answering():
    """A node's address that answers /readyz with the status that the test chooses."""
    status = []

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            self.send_response(status[0] if self.path == "/readyz" else 404)
            self.end_headers()

        def log_message(self, *_):
            pass

    with http.server.HTTPServer(("127.0.0.1", 0), Handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield status, f"127.0.0.1:{server.server_port}"
        server.shutdown()


def node_is_healthy(address: str) -> bool:
    kind, program, *arguments = services()["node"]["healthcheck"]["test"]
    assert (kind, program) == ("CMD", "python3")
    # A proxy of the environment is not for a node on loopback.
    proxy = {"http_proxy": "http://127.0.0.1:9", "HTTP_PROXY": "http://127.0.0.1:9"}
    env = os.environ | proxy | {"MILLSTREAM__NODE__HTTP": address}
    command = [sys.executable, *arguments]
    return subprocess.run(command, env=env, capture_output=True, timeout=30).returncode == 0


@pytest.mark.parametrize("answer,healthy", [(200, True), (503, False), (404, False)])
def test_a_node_is_healthy_when_it_says_that_it_is_ready(answering, answer, healthy):
    status, address = answering
    status.append(answer)
    assert node_is_healthy(address) is healthy


def test_a_node_that_is_not_there_is_not_healthy():
    assert not node_is_healthy("127.0.0.1:1")
