"""Prometheus' own tools, which judge rules and queries."""

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
    if path := os.environ.get("MILLSTREAM_LEFT_OUT"):
        with Path(path).open("a", encoding="utf-8") as file:
            file.write(f"dashboards, what needs {program}: {why}\n")
    pytest.skip(why)


@pytest.fixture(scope="session")
def promtool() -> str:
    return needed("promtool")


@pytest.fixture(scope="session")
def prometheus() -> str:
    return needed("prometheus")
