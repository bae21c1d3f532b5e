"""Lets the tests import `steps`, and what the tests of the dashboards have."""

import sys
from pathlib import Path

DOCKER = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(DOCKER), str(DOCKER.parent / "dashboards" / "tests")]

from programs import prometheus, promtool  # noqa: E402

__all__ = ["prometheus", "promtool"]
