#!/usr/bin/env bash
# Feast on this machine: training sets with its duckdb store, and online reads with its feature server on
# Redis. Millstream is measured on the same files (make_data.py) with the same client (online_load.py).
#
# Usage: benches/feast/run.sh [--rows N] [--entities N] [--questions N] [--ask N,…] [--seconds S] [--dir DIR]
#
# Prints one JSON object a line. DIR (default: a temporary folder) keeps data and Feast's answers; data that
# is there is taken as it is, whatever its size. Of the questions so many are asked (default: all), once by
# event time and once as known. Online: ../online_reads.py.
set -euo pipefail

HERE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=scripts/common.sh
. "$HERE/../../scripts/common.sh"

ROWS=10000000 ENTITIES=100000 QUESTIONS=100000 ASK="" SECONDS_EACH=10 DIR=
while (($#)); do
  case $1 in
    --rows) ROWS=$2 && shift ;;
    --entities) ENTITIES=$2 && shift ;;
    --questions) QUESTIONS=$2 && shift ;;
    --ask) ASK=$2 && shift ;;
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

make_data() {
  if [[ -e $DIR/$1/meta.json ]]; then
    say "The history of $1 features is there."
  else
    say "Making the history of $1 features …"
    "$PYTHON" "$HERE/make_data.py" --out "$DIR" --features "$1" --rows "$2" --entities "$ENTITIES" \
      --questions "$3" >&2
  fi
}
made() { "$PYTHON" -c 'import json, sys; print(json.load(open(sys.argv[1]))[sys.argv[2]])' "$DIR/$1/meta.json" "$2"; }
make_data 5 "$ROWS" "$QUESTIONS"
# For online reads alone: about two observations of 50 features an entity.
make_data 50 $((ENTITIES * 100)) 1000

ASK=${ASK:-$(made 5 questions)}
for questions in ${ASK//,/ }; do
  say "Feast reads a training set of $questions questions by event time, then as known by created_at …"
  "$FEAST" -W ignore "$HERE/historical.py" --dir "$DIR" --questions "$questions" \
    --out "$DIR/feast-event-time-$questions.parquet"
  "$FEAST" -W ignore "$HERE/historical.py" --dir "$DIR" --questions "$questions" \
    --out "$DIR/feast-created-$questions.parquet" --created
done

say "Feast loads the online values, serves them …"
"$FEAST" -W ignore "$HERE/serve.py" --dir "$DIR" --log "$DIR/feast-server.log" -- \
  "$PYTHON" "$HERE/../online_reads.py" --url "{server}" --feature "user_{features}:f{n}" \
  --population "$(made 50 entities)" --seconds "$SECONDS_EACH"
