"""A layout of compose.yaml with processes in the place of containers, for a machine without an engine.

    .venv/bin/python docker/tests/rehearse.py LAYOUT PROGRAM     kafka or roles; target/release/millstream

Commands, environment, addresses, health checks and the order of starts and stops are those of
compose.yaml; only paths of containers are put below a folder that is deleted at the end. Kafka is that of
scripts/kafka.sh, redis-server and prometheus are those of this machine; Grafana is left out. The
addresses must be free. It fails unless every node gets healthy, Prometheus sees each of them up and
has no alarm for a missing one, rows from Kafka and from files land in DuckDB, and every node stops in good order.
"""

import json
import os
import signal
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request
from pathlib import Path

from layouts import ROOT, addresses, is_node, layout, nodes, roles, services

HEALTHY_S, LANDED_S, STOPPED_S = 60, 90, 60


class Rehearsal:
    def __init__(self, profile: str, program: Path, folder: Path):
        self.profile, self.program, self.folder = profile, program.resolve(), folder
        self.processes: dict[str, subprocess.Popen] = {}

    def start(self, name: str, command: list[str], **env: str) -> None:
        with (self.folder / f"{name}.log").open("w") as log:
            self.processes[name] = subprocess.Popen(
                command, cwd=ROOT, env=os.environ | env, stdout=log, stderr=log
            )

    def start_broker(self) -> None:
        port = addresses("kafka")[0].split(":")[1]
        where = ["--dir", str(self.folder / "kafka"), "--port", port, "--owner", str(os.getpid())]
        subprocess.run([ROOT / "scripts" / "kafka.sh", "start", *where], check=True, stdout=2)

    def start_service(self, name: str) -> None:
        service = services()[name]
        if is_node(service):
            command = [
                word.replace("/data", f"{self.folder}/{name}") for word in service["command"]
            ]
            env = {
                key: value.replace("/spool", f"{self.folder}/spool")
                for key, value in service["environment"].items()
            }
            self.start(name, [str(self.program), *command], **env)
        elif name == "redis":
            program, *options = service["command"]
            host, port = addresses(name)[0].split(":")
            own = ["--bind", host, "--port", port, "--dir", str(self.folder)]
            self.start(name, [program, *own, *options])
        elif name.startswith("prometheus"):
            words = [word.replace("/etc/millstream", str(ROOT)) for word in service["command"]]
            own = [word.replace("=/prometheus", f"={self.folder}/prometheus") for word in words]
            self.start(name, ["prometheus", *own])

    def healthy(self, name: str) -> bool:
        """What the service's own health check says."""
        service = services()[name]
        if name == "redis":
            port = addresses(name)[0].split(":")[1]
            command = ["redis-cli", "-p", port, *service["healthcheck"]["test"][2:]]
        elif is_node(service):
            command = [sys.executable, *service["healthcheck"]["test"][2:]]
        else:
            return not isinstance(get(service["healthcheck"]["test"][-1]), Exception)
        env = os.environ | service["environment"] if is_node(service) else os.environ
        return subprocess.run(command, env=env, capture_output=True).returncode == 0

    def wait(self, what: str, happens, seconds: int) -> None:
        begun = time.monotonic()
        while not happens():
            for name, process in self.processes.items():
                if process.poll() is not None:
                    text = (self.folder / f"{name}.log").read_text()
                    sys.exit(f"{name} has ended\n{text[-2000:]}")
            if time.monotonic() - begun > seconds:
                sys.exit(f"not within {seconds} s: {what}")
            time.sleep(0.3)
        print(f"{what}, after {time.monotonic() - begun:.1f} s", file=sys.stderr)

    def query(self, text: str) -> list[dict]:
        done = subprocess.run(
            [self.program, "query", "--json", text], cwd=self.folder, capture_output=True, text=True
        )
        return json.loads(done.stdout) if done.returncode == 0 else []

    def everything_landed(self) -> bool:
        text = (
            "SELECT DISTINCT split_part(source, ':', 1) AS kind FROM ingest_ledger JOIN sources "
            "USING (source_no) WHERE n_kept > 0"
        )
        return {row["kind"] for row in self.query(text)} >= {"kafka", "upload"}

    def watched(self) -> bool:
        """Every node is up, and no alarm is about to say that one is missing."""
        seen = ask_prometheus("/api/v1/query?" + urllib.parse.urlencode({"query": "up"}))
        up = [sample["value"][1] for sample in seen.get("result", [])]
        alarms = {a["labels"]["alertname"] for a in ask_prometheus("/api/v1/alerts")["alerts"]}
        missing = alarms & {"NodeAbsent", "StoreAbsent"}
        return up == ["1"] * len(nodes(self.profile)) and not missing

    def order(self) -> list[str]:
        """The layout's services, each after what it waits for."""
        left = {n: s for n, s in layout(self.profile).items() if n not in ("grafana", "kafka")}
        ordered: list[str] = []
        while left:
            waits = {n: set(s.get("depends_on", {})) & set(left) for n, s in left.items()}
            ready = [name for name in left if not waits[name]]
            ordered += ready
            left = {name: service for name, service in left.items() if name not in ready}
        return ordered

    def run(self) -> None:
        self.start_broker()
        for name in self.order():
            self.start_service(name)
            self.wait(f"{name} is healthy", lambda name=name: self.healthy(name), HEALTHY_S)
        self.wait("rows from Kafka and from files have landed", self.everything_landed, LANDED_S)
        self.wait("Prometheus sees every node", self.watched, LANDED_S)
        for name in reversed(self.order()):
            self.processes[name].send_signal(signal.SIGTERM)
            if code := self.processes[name].wait(STOPPED_S):
                sys.exit(f"{name} ended with {code}")
            del self.processes[name]
            print(f"{name} has stopped", file=sys.stderr)
        held = sorted(
            n for n in nodes(self.profile) if (self.folder / n / "features.duckdb").exists()
        )
        assert held == [n for n, node in nodes(self.profile).items() if "store" in roles(node)], (
            held
        )

    def end(self) -> None:
        for process in self.processes.values():
            process.kill()
            process.wait()
        where = ["--dir", str(self.folder / "kafka")]
        subprocess.run([ROOT / "scripts" / "kafka.sh", "stop", *where], check=False)


def get(url: str) -> str | Exception:
    try:
        with urllib.request.urlopen(url, timeout=5) as answer:
            return answer.read().decode()
    except (urllib.error.URLError, ConnectionError, TimeoutError) as error:
        return error


def ask_prometheus(path: str) -> dict:
    answer = get(f"http://{addresses('prometheus')[0]}{path}")
    return {} if isinstance(answer, Exception) else json.loads(answer)["data"]


def main() -> None:
    if len(sys.argv) != 3 or sys.argv[1] not in ("kafka", "roles"):
        sys.exit(__doc__)
    with tempfile.TemporaryDirectory(prefix="millstream-rehearsal.") as folder:
        rehearsal = Rehearsal(sys.argv[1], Path(sys.argv[2]), Path(folder))
        try:
            rehearsal.run()
        finally:
            rehearsal.end()
    print(f"ok: {sys.argv[1]}", file=sys.stderr)


if __name__ == "__main__":
    main()
