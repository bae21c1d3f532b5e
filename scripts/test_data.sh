#!/usr/bin/env bash
# Prints the folder that the tests' data goes to: memory where there is plenty of it, else the
# folder for temporary files. A disk that is busy with what the compiler has just written takes
# seconds for an fsync, and then a broker's session ends and a recovery is late that were not at
# fault. The tests of full and failing disks make such disks themselves.
set -euo pipefail

NEEDED_KIB=$((6 * 1024 * 1024))

roomy() { [[ -w $1 ]] && (($(df --output=avail "$1" | tail -n 1) >= NEEDED_KIB)); }
available() { awk '/^MemAvailable:/ { print $2 }' /proc/meminfo; }

if roomy /dev/shm && (($(available) >= 2 * NEEDED_KIB)); then
  printf '/dev/shm\n'
else
  printf '%s\n' "${TMPDIR:-/tmp}"
fi
