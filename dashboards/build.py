"""Writes the dashboards as JSON beside this file, or says that they are not current.

python dashboards/build.py           writes dashboards/*.json
python dashboards/build.py --check   exits 1 when one differs from what would be written
"""

import argparse
import sys
from pathlib import Path

from boards import BOARDS
from boards.parts import to_text

HERE = Path(__file__).parent


def rendered() -> dict[Path, str]:
    """Every dashboard's file and the text that belongs there."""
    return {HERE / f"{name}.json": to_text(board()) for name, board in BOARDS.items()}


def stale(files: dict[Path, str]) -> list[Path]:
    """The files that are missing, differ, or belong to no dashboard any more."""
    differ = [f for f, text in files.items() if not f.exists() or f.read_text("utf-8") != text]
    return differ + [file for file in sorted(HERE.glob("*.json")) if file not in files]


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true", help="only compare, write nothing")
    check = parser.parse_args().check
    files = rendered()
    changed = stale(files)
    for file in changed:
        name = file.relative_to(HERE.parent)
        if check:
            print(f"{name} is not current; run `make dashboards`", file=sys.stderr)
        elif file in files:
            file.write_text(files[file], "utf-8")
            print(f"wrote {name}", file=sys.stderr)
        else:
            file.unlink()
            print(f"removed {name}, which no dashboard makes", file=sys.stderr)
    return int(check and bool(changed))


if __name__ == "__main__":
    sys.exit(main())
