"""Lets the tests import the oracle, and `pytest tests/asof` run from anywhere."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
