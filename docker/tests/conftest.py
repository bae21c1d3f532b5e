"""Lets the tests import `steps`, and what the tests of the dashboards have."""

import sys
from pathlib import Path

import pytest

DOCKER = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(DOCKER), str(DOCKER.parent / "dashboards" / "tests")]

from programs import needed  # noqa: E402


@pytest.fixture(scope="session")
def promtool() -> str:
    return needed("promtool")


@pytest.fixture(scope="session")
def prometheus() -> str:
    return needed("prometheus")
