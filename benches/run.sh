#!/usr/bin/env bash
# What `make bench` runs, in parts:
#
#   events  events a second from a real broker into DuckDB: Millstream beside a hand-written Python loop in the
#           same style (confluent-kafka, polars, duckdb), on the same topic, in the same run
#   metrics what keeping metrics costs, scraped every second, beside the same without
#   files   files of events: rows a second, and what they do to live events
#   swaps   live swaps of a script, every second one broken: how long they take, and what they do to live events
#   reads   training sets and online features, beside Feast on the same data
#
# Usage: benches/run.sh [--only PART] [--events N] [--rounds R] [--keep] [-- READS…]
#
# READS are arguments of benches/reads.py, such as --rows N or --no-feast. `swaps` and `reads` need no Kafka.
# Absolute figures depend on the machine and on what else it does: compare within one run.
set -euo pipefail

BENCH=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
# shellcheck source=scripts/common.sh
. "$BENCH/../scripts/common.sh"

EVENTS=2000000 ROUNDS=2 KEEP=no ONLY=""
while (($#)); do
  case $1 in
    --only) ONLY=$2 && shift ;;
    --events) EVENTS=$2 && shift ;;
    --rounds) ROUNDS=$2 && shift ;;
    --keep) KEEP=yes ;;
    --) shift && break ;;
    -h | --help) sed -n '2,/^set -/{/^set -/d;s/^# \{0,1\}//;p;}' "$0" && exit 0 ;;
    *) die "unknown argument $1; see --help" ;;
  esac
  shift
done
READS=("$@")
case $ONLY in
  "" | events | metrics | files | swaps | reads) ;;
  *) die "no part $ONLY: events, metrics, files, swaps or reads" ;;
esac
wanted() { [[ -z $ONLY || $ONLY == "$1" ]]; }

PYTHON=$ROOT/.venv/bin/python
MILLSTREAM=${CARGO_TARGET_DIR:-$ROOT/target}/release/millstream
WORK=$(mktemp -d "${TMPDIR:-/tmp}/millstream-bench.XXXXXX")
cleanup() {
  [[ ! -d $WORK/kafka ]] || "$ROOT/scripts/kafka.sh" stop --dir "$WORK/kafka" --kill || true
  if [[ $KEEP == yes ]]; then say "kept: $WORK"; else rm -rf "$WORK"; fi
}
trap cleanup EXIT
trap 'exit 130' INT TERM

start_kafka() {
  say "Starting Kafka with its full compiler …"
  MILLSTREAM__KAFKA__BROKERS=$(KAFKA_OPTS=-XX:TieredStopAtLevel=4 \
    "$ROOT/scripts/kafka.sh" start --dir "$WORK/kafka" --owner $$)
  export MILLSTREAM__KAFKA__BROKERS
}

events() {
  local round
  say "Producing $EVENTS events …"
  "$MILLSTREAM" generate --config "$BENCH/bench.toml" --count "$EVENTS" --flat-out >&2

  for round in $(seq "$ROUNDS"); do
    # A group of its own: each round reads everything.
    export MILLSTREAM__KAFKA__GROUP=bench-$round
    say "Round $round of $ROUNDS: Millstream …"
    "$PYTHON" "$BENCH/drain.py" --millstream "$MILLSTREAM" --config "$BENCH/bench.toml" \
      --events "$EVENTS" --dir "$WORK/node-$round" >"$WORK/millstream-$round.json"
    say "Round $round of $ROUNDS: the Python loop …"
    "$PYTHON" "$BENCH/python_loop/loop.py" --brokers "$MILLSTREAM__KAFKA__BROKERS" \
      --topic bench-feature-events --events "$EVENTS" --db "$WORK/loop-$round.duckdb" \
      >"$WORK/loop-$round.json"
  done

  "$PYTHON" - "$WORK" "$ROUNDS" <<'PY'
import json
import sys
from pathlib import Path

work, rounds = Path(sys.argv[1]), int(sys.argv[2])
print(f"{'':24}{'events/s':>10}{'seconds':>9}{'CPU s':>8}{'CPU µs/event':>14}{'peak MB':>9}")
for round_ in range(1, rounds + 1):
    ours = json.loads((work / f"millstream-{round_}.json").read_text())
    loop = json.loads((work / f"loop-{round_}.json").read_text())
    for name, r, peak in (
        ("millstream", ours, "peak_rss_mb"),
        ("python loop", loop, "max_rss_mb"),
    ):
        each = 1e6 * r["cpu_s"] / r["events"]
        row = f"{r['events_per_s']:>10,.0f}{r['seconds']:>9.1f}{r['cpu_s']:>8.1f}{each:>14.1f}"
        print(f"{f'{round_}: {name}':24}{row}{r[peak]:>9,.0f}")
    print(f"{'':24}ratio {ours['events_per_s'] / loop['events_per_s']:.2f}")
print("millstream: with ledger, event ids, dead letters, online store; the loop has none of these.")
PY
}

metrics() {
  say "Producing $EVENTS events …"
  "$MILLSTREAM" generate --config "$BENCH/bench.toml" --count "$EVENTS" --flat-out >&2
  local round kept turns
  for round in $(seq "$ROUNDS"); do
    # In turns, so that neither always comes first.
    if ((round % 2)); then turns="true false"; else turns="false true"; fi
    for kept in $turns; do
      say "Round $round of $ROUNDS: metrics = $kept …"
      MILLSTREAM__KAFKA__GROUP=bench-$round-$kept MILLSTREAM__NODE__METRICS=$kept \
        "$PYTHON" "$BENCH/drain.py" --millstream "$MILLSTREAM" --config "$BENCH/bench.toml" \
        --events "$EVENTS" --dir "$WORK/metrics-$round-$kept" --scrape >"$WORK/metrics-$round-$kept.json"
    done
  done
  "$PYTHON" "$BENCH/metrics_table.py" "$WORK" "$ROUNDS"
}

files() {
  say "Files: a Parquet file of 10 million rows, then 1 GiB of NDJSON beside live events …"
  "$PYTHON" "$BENCH/uploads.py" --millstream "$MILLSTREAM" --config "$BENCH/bench.toml" --dir "$WORK/uploads"
}

swaps() {
  say "Swaps: versions of a script beside live events …"
  "$PYTHON" "$BENCH/swaps.py" --millstream "$MILLSTREAM" --config "$BENCH/bench.toml" \
    --dir "$WORK/swaps" --rounds "$ROUNDS"
}

reads() {
  say "Reads: training sets and online features …"
  "$PYTHON" "$BENCH/reads.py" --millstream "$MILLSTREAM" --config "$BENCH/bench.toml" \
    --dir "$WORK/reads" "${READS[@]}"
}

# Said before minutes have passed.
if wanted reads; then "$PYTHON" "$BENCH/greatest_rate.py"; fi
if wanted events || wanted metrics || wanted files; then start_kafka; fi
if wanted events; then events; fi
if wanted metrics; then metrics; fi
if wanted files; then files; fi
if wanted swaps; then swaps; fi
if wanted reads; then reads; fi
