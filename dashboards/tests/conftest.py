"""Prometheus' own tools, which judge rules and queries."""

import pytest
from programs import needed


@pytest.fixture(scope="session")
def promtool() -> str:
    return needed("promtool")


@pytest.fixture(scope="session")
def prometheus() -> str:
    return needed("prometheus")
