#!/usr/bin/env bash
# Feast on this machine: training sets with its duckdb store, and online reads with its feature server on
# Redis. Millstream is measured on the same files (make_data.py) with the same client (online_load.py).
#
# Usage: benches/feast/run.sh [--rows N] [--entities N] [--questions N] [--seconds S] [--dir DIR]
#
# Prints one JSON object a line. DIR (default: a temporary folder) keeps data and Feast's answers. The
# greatest rate is found first; the latency is then measured at half of it.
set -euo pipefail

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=scripts/common.sh
. "$HERE/../../scripts/common.sh"

ROWS=10000000 ENTITIES=100000 QUESTIONS=100000 SECONDS_EACH=10 DIR=
while (($#)); do
  case $1 in
    --rows) ROWS=$2 && shift ;;
    --entities) ENTITIES=$2 && shift ;;
    --questions) QUESTIONS=$2 && shift ;;
    --seconds) SECONDS_EACH=$2 && shift ;;
    --dir) DIR=$2 && shift ;;
    -h | --help) sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//;p;}' "$0" && exit 0 ;;
    *) die "unknown argument $1; see --help" ;;
  esac
  shift
done

PYTHON=$ROOT/.venv/bin/python
FEAST=$("$HERE/venv.sh")
if [[ -z $DIR ]]; then
  DIR=$(mktemp -d "${TMPDIR:-/tmp}/millstream-feast.XXXXXX")
  trap 'rm -rf "$DIR"' EXIT
fi
mkdir -p "$DIR"

say "Making the history …"
"$PYTHON" "$HERE/make_data.py" --out "$DIR" --features 5 --rows "$ROWS" --entities "$ENTITIES" \
  --questions "$QUESTIONS" >&2
# For online reads alone: about two observations of 50 features an entity.
"$PYTHON" "$HERE/make_data.py" --out "$DIR" --features 50 --rows $((ENTITIES * 100)) \
  --entities "$ENTITIES" --questions 1000 >&2

say "Feast reads a training set by event time, then as known by created_at …"
"$FEAST" -W ignore "$HERE/historical.py" --dir "$DIR" --out "$DIR/feast-event-time.parquet"
"$FEAST" -W ignore "$HERE/historical.py" --dir "$DIR" --out "$DIR/feast-created.parquet" --created

say "Feast loads the online values, serves them …"
load=("$PYTHON" "$HERE/../online_load.py" --url "{server}" --population "$ENTITIES" --seconds "$SECONDS_EACH")
"$FEAST" -W ignore "$HERE/serve.py" --dir "$DIR" --log "$DIR/feast-server.log" -- \
  "$HERE/both_loops.sh" "$DIR" "${load[@]}"
