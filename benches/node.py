"""A node as a benchmark's child: its start, its memory, its processor time, its end."""

import json
import os
import re
import signal
import subprocess
import threading
import time
from pathlib import Path

START_S = 60.0
SAMPLE_S = 0.1


def resident_mb(root: int) -> float:
    """Resident memory of a process and all its descendants, in MB."""
    total = 0
    for pid in family(root):
        try:
            total += int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        except OSError:
            continue
    return total * os.sysconf("SC_PAGE_SIZE") / 1e6


def stats() -> dict[int, list[str]]:
    """Of each process what `/proc/PID/stat` says after its name: state, parent, …"""
    found: dict[int, list[str]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text()
            except OSError:
                continue
            found[int(entry.name)] = stat.rsplit(")", 1)[1].split()
    return found


def family(root: int, known: dict[int, list[str]] | None = None) -> list[int]:
    """A process and all its descendants."""
    parents: dict[int, list[int]] = {}
    for pid, fields in (stats() if known is None else known).items():
        parents.setdefault(int(fields[1]), []).append(pid)
    found, todo = [], [root]
    while todo:
        pid = todo.pop()
        found.append(pid)
        todo.extend(parents.get(pid, []))
    return found


def processor_s(root: int) -> float:
    """Processor time of a process and all its descendants until now, in seconds.

    User and system time. What a descendant that has ended took counts once it was waited for, and
    until then as a zombie's own.
    """
    known = stats()
    ticks = sum(
        int(ticks) for pid in family(root, known) if pid in known for ticks in known[pid][11:15]
    )
    return ticks / os.sysconf("SC_CLK_TCK")


def address(node: subprocess.Popen, log: Path) -> str:
    """Where the node answers, as it says itself."""
    until = time.monotonic() + START_S
    while time.monotonic() < until and node.poll() is None:
        if found := re.search(r"page\s+(http://\S+?)/\s", log.read_text()):
            return found[1]
        time.sleep(0.02)
    raise RuntimeError(f"the node did not start:\n{log.read_text()}")


def configured(config: Path, critical: str, *more: str) -> str:
    """The configuration with these critical features and more lines of the stream, for another folder."""
    lines = "\n".join([f"critical = {critical}", *more])
    text, n = re.subn(r"(?m)^critical = .*$", lines, config.read_text())
    if n != 1:
        raise RuntimeError(f"{config} does not say once which features are critical")
    return text.replace('"../', f'"{config.resolve().parent.parent}/')


class Node:
    """A running node; left with `with`, it is stopped in order."""

    def __init__(
        self, program: Path, folder: Path, config: str, roles: str, environment: dict[str, str]
    ) -> None:
        """Starts it and waits until it has told its addresses.

        Args:
            program: `millstream`.
            folder: For its configuration, log and data; made.
            config: Text of the configuration.
            roles: As in `--roles`.
            environment: All of it.
        """
        folder.mkdir(parents=True)
        self.program = program
        self.log = folder / "node.log"
        file = folder / "millstream.toml"
        file.write_text(config)
        command = [program, "run", "--roles", roles, "--config", file]
        command += ["--data-dir", folder / "data", "--http", "127.0.0.1:0", "--grpc", "127.0.0.1:0"]
        with self.log.open("w") as out:
            self.process = subprocess.Popen(command, stdout=out, stderr=out, env=environment)
        try:
            self.url = address(self.process, self.log)
        except BaseException:
            self.process.kill()
            self.process.wait()
            raise
        self.http = self.url.removeprefix("http://")
        self.grpc = re.search(r"gRPC\s+(\S+)", self.log.read_text())[1]
        self.peak = 0.0
        self.watching = True
        threading.Thread(target=self.watch, daemon=True).start()

    def watch(self) -> None:
        """Keeps the greatest memory seen."""
        while self.watching:
            self.peak = max(self.peak, resident_mb(self.process.pid))
            time.sleep(SAMPLE_S)

    def upload(self, file: Path, *, wait: bool = True) -> dict:
        """`millstream upload` into the stream `features`: the receipt."""
        command = [self.program, "upload", file, "--stream", "features", "--json"]
        command += ["--grpc", self.grpc] if wait else ["--grpc", self.grpc, "--no-wait"]
        done = subprocess.run(command, capture_output=True, text=True)
        if done.returncode:
            raise RuntimeError(f"the upload failed: {done.stdout}{done.stderr}")
        return json.loads(done.stdout.splitlines()[-1])

    def verify(self, *more: str) -> dict:
        """The verdict of `millstream verify --full`; without one, not `ok`, and `error` says why."""
        command = [self.program, "verify", "--json", "--full", "--http", self.http, *more]
        done = subprocess.run(command, capture_output=True, text=True)
        return json.loads(done.stdout) if done.stdout else {"ok": False, "error": done.stderr}

    def __enter__(self) -> "Node":
        """Is itself."""
        return self

    def __exit__(self, *_: object) -> None:
        """SIGTERM, and its end."""
        self.watching = False
        self.process.send_signal(signal.SIGTERM)
        self.process.wait()
