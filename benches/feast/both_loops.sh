#!/usr/bin/env bash
# For each size of a request: the greatest rate, then the latency at half of that rate.
#
# Usage: both_loops.sh DIR COMMAND…    (COMMAND: online_load.py with its options, without --rate)
set -euo pipefail

DIR=$1
shift
for features in 5 50; do
  for entities in 1 10 100; do
    "$@" --features "$features" --entities "$entities" | tee "$DIR/closed.json"
    rate=$(sed -E 's/.*"requests_per_s": ([0-9.]+).*/\1/' "$DIR/closed.json")
    "$@" --features "$features" --entities "$entities" --rate "$(awk "BEGIN { print $rate / 2 }")"
  done
done
