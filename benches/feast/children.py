"""Starts a redis-server and Feast's feature server as children, and ends them."""

import http.client
import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

READY_S = 120.0


def free_port() -> int:
    """A port of the loopback address that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def wait_until(child: subprocess.Popen, ready: object, what: str) -> None:
    """Waits until `ready()` is true.

    Raises:
        RuntimeError: The child ended, or the time is up.
    """
    until = time.monotonic() + READY_S
    while time.monotonic() < until and child.poll() is None:
        try:
            if ready():
                return
        except OSError:
            pass
        time.sleep(0.05)
    raise RuntimeError(f"{what} did not start")


@contextmanager
def redis_server(folder: Path) -> Iterator[str]:
    """A redis-server that keeps nothing on disk; its address as host:port."""
    port = free_port()
    options = ["--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", str(folder)]
    child = subprocess.Popen(["redis-server", *options], stdout=subprocess.DEVNULL)
    try:
        wait_until(
            child, lambda: socket.create_connection(("127.0.0.1", port)).close() is None, "Redis"
        )
        yield f"127.0.0.1:{port}"
    finally:
        child.terminate()
        child.wait()


@contextmanager
def feast_server(repo: Path, log: Path, workers: int = 1) -> Iterator[str]:
    """`feast serve` of a repository, as fast as its options let it be; its address as host:port.

    Without an access log, and without the restart of a worker after a thousand requests that is the
    default.
    """
    port = free_port()
    command = [Path(sys.executable).with_name("feast"), "serve", "--port", str(port)]
    command += ["--workers", str(workers), "--no-access-log", "--max-requests", str(1 << 40)]
    # gunicorn keeps a control socket below HOME.
    environment = {**os.environ, "HOME": str(log.parent), "FEAST_USAGE": "False"}
    with log.open("w") as out:
        child = subprocess.Popen(command, cwd=repo, stdout=out, stderr=out, env=environment)
    try:

        def healthy() -> bool:
            connection = http.client.HTTPConnection("127.0.0.1", port, timeout=5)
            connection.request("GET", "/health")
            return connection.getresponse().status == 200

        wait_until(child, healthy, f"Feast's server (see {log})")
        yield f"127.0.0.1:{port}"
    finally:
        child.terminate()
        child.wait()


def feast(repo: Path, *arguments: str) -> None:
    """Runs a command of Feast in a repository."""
    program = Path(sys.executable).with_name("feast")
    done = subprocess.run([program, *arguments], cwd=repo, capture_output=True, text=True)
    if done.returncode:
        raise RuntimeError(f"feast {arguments[0]}: {done.stdout}{done.stderr}")
