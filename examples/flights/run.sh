#!/usr/bin/env bash
# 336,776 real flights through Kafka, Python and Redis into DuckDB, checked against the file.
#
# Usage: examples/flights/run.sh [--keep]
#
#   --keep   leave the data folder (DuckDB file, logs) there at the end and say where it is
#
# Needs the release binary (`make build`), .venv, and Java with Kafka's jars (`make setup`).
# Everything listens on free ports of 127.0.0.1 and is stopped at the end. Exit codes: 0 all is
# there, 4 a dependency is missing, 5 what landed differs from the file, 1 anything else.
set -euo pipefail

EXAMPLE=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=scripts/common.sh
. "$EXAMPLE/../../scripts/common.sh"

READY_DEADLINE_S=60
PYTHON=$ROOT/.venv/bin/python
MILLSTREAM=${CARGO_TARGET_DIR:-$ROOT/target}/release/millstream
CONFIG=$EXAMPLE/flights.toml
FLIGHTS=$EXAMPLE/data/flights.parquet

missing() {
  say "error: $*"
  exit 4
}

KEEP=no
for argument in "$@"; do
  case $argument in
    --keep) KEEP=yes ;;
    -h | --help) sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//;p;}' "$0" && exit 0 ;;
    *) say "error: unknown argument $argument; see --help" && exit 2 ;;
  esac
done

[[ -x $PYTHON ]] || missing "there is no .venv; scripts/setup.sh makes it"
[[ -x $MILLSTREAM ]] || missing "there is no $MILLSTREAM; make it with: cargo build --release"
"$ROOT/scripts/kafka.sh" classpath >/dev/null ||
  missing "this example runs on a real Kafka: it needs Java 17 or newer and Kafka's jars; scripts/setup.sh fetches them"

WORK=$(mktemp -d "${TMPDIR:-/tmp}/millstream-flights.XXXXXX")
NODE=''
cleanup() {
  [[ -z $NODE ]] || end_process "$NODE" 30
  "$ROOT/scripts/kafka.sh" stop --dir "$WORK/kafka" || true
  if [[ $KEEP == yes ]]; then say "kept: $WORK"; else rm -rf "$WORK"; fi
}
trap cleanup EXIT
trap 'exit 130' INT TERM

if [[ ! -f $FLIGHTS ]]; then
  say "Writing the flights to examples/flights/data/ …"
  "$PYTHON" "$EXAMPLE/prepare.py" "$FLIGHTS" >&2
fi

say "Starting Kafka …"
MILLSTREAM__KAFKA__BROKERS=$("$ROOT/scripts/kafka.sh" start --dir "$WORK/kafka" --owner $$)
export MILLSTREAM__KAFKA__BROKERS

say "Starting a node (Redis comes with it) …"
HTTP=127.0.0.1:$(free_port)
GRPC=127.0.0.1:$(free_port)
"$MILLSTREAM" run --roles process,store --config "$CONFIG" --data-dir "$WORK/node" \
  --http "$HTTP" --grpc "$GRPC" >"$WORK/node.log" 2>&1 &
NODE=$!

node_failed() {
  tail -n 30 "$WORK/node.log" >&2
  KEEP=yes
  die "$1"
}

# Succeeds when the node says that all its parts are ready.
ready() {
  "$PYTHON" - "http://$HTTP/readyz" 2>/dev/null <<'PY'
import sys, urllib.request
urllib.request.urlopen(sys.argv[1], timeout=2).read()
PY
}

deadline=$((SECONDS + READY_DEADLINE_S))
until ready; do
  kill -0 "$NODE" 2>/dev/null || node_failed "the node ended while starting"
  ((SECONDS < deadline)) || node_failed "the node was not ready within $READY_DEADLINE_S s"
  sleep 0.1
done

say "Sending the flights to the topic \`flights\` …"
started=$(date +%s.%N)
"$MILLSTREAM" generate --config "$CONFIG" --replay "$FLIGHTS" --topic flights --flat-out >&2

say "Waiting until all of it has landed …"
"$MILLSTREAM" verify --http "$HTTP" --wait --json >"$WORK/verify.json" || {
  cat "$WORK/verify.json" >&2
  KEEP=yes
  exit 5
}
say "Landed and audited after $(awk -v a="$started" -v b="$(date +%s.%N)" 'BEGIN { printf "%.1f", b - a }') s."

say ""
"$PYTHON" "$EXAMPLE/check.py" "$FLIGHTS" --http "$HTTP" --millstream "$MILLSTREAM"

printf '\nThe carriers by mean delay at arrival, in minutes:\n'
"$MILLSTREAM" query --http "$HTTP" \
  "SELECT entity_id, count(*) AS flights, round(avg(value), 1) AS mean_minutes
   FROM features_table WHERE feature_name = 'carrier_arr_delay_minutes'
   GROUP BY entity_id ORDER BY mean_minutes DESC LIMIT 5"
