"""Programs that some tests need, here and in docker/tests."""

import os
import shutil
from pathlib import Path

import pytest


def needed(program: str) -> str:
    """The path of a program of Prometheus. Without it a test is left out by name, but not in CI."""
    found = shutil.which(program)
    if found:
        return found
    why = f"{program} is not installed (Debian: prometheus; scripts/setup.sh --ci installs it)"
    if os.environ.get("CI") == "true":
        pytest.fail(why)
    left_out(f"dashboards, what needs {program}: {why}")


def left_out(what: str) -> None:
    """Leaves a test out, and has `make test` say so at its end."""
    if path := os.environ.get("MILLSTREAM_LEFT_OUT"):
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(f"{what}\n")
    pytest.skip(what)


@pytest.fixture(scope="session")
def promtool() -> str:
    """Prometheus' judge of rules, queries and metrics."""
    return needed("promtool")


@pytest.fixture(scope="session")
def prometheus() -> str:
    """The server."""
    return needed("prometheus")
