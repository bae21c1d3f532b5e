"""Lets the tests import the scripts beside them, and `millstream` from a checkout."""

import sys
from pathlib import Path

_SCRIPTS = Path(__file__).parents[1]
sys.path.insert(0, str(_SCRIPTS))
sys.path.insert(0, str(_SCRIPTS.parent / "python" / "src"))
