"""Lets the tests import the example's scripts, and `millstream` from a checkout."""

import sys
from pathlib import Path

_EXAMPLE = Path(__file__).parents[1]
for _path in (_EXAMPLE, _EXAMPLE / "py_transforms", _EXAMPLE.parents[1] / "python" / "src"):
    sys.path.insert(0, str(_path))
