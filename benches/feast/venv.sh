#!/usr/bin/env bash
# Makes Feast's environment when it is missing (about 700 MB) and prints its python.
set -euo pipefail

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
VENV=${FEAST_VENV:-$HERE/../../.millstream/bench/feast-venv}
STAMP=$(cat "$HERE/requirements.txt" "$HERE/constraints.txt" | sha256sum)

if [[ $(cat "$VENV/.stamp" 2>/dev/null) != "$STAMP" ]]; then
  printf 'Installing Feast into %s …\n' "$VENV" >&2
  python3 -m venv "$VENV"
  "$VENV/bin/python" -m pip install --disable-pip-version-check --quiet --progress-bar off \
    -r "$HERE/requirements.txt" -c "$HERE/constraints.txt" >&2
  printf '%s\n' "$STAMP" >"$VENV/.stamp"
fi
printf '%s\n' "$(cd "$VENV" && pwd)/bin/python"
