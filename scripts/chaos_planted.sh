#!/usr/bin/env bash
# Who judges the judge: each defect of src/failpoint.rs is planted in the real program, which then has a
# minute of random chaos. The verdict must find it. Takes about twenty minutes.
#
#   [EACH=60s] [DEFECTS="order_lost …"] scripts/chaos_planted.sh PROGRAM [ARGUMENT…]
#
# PROGRAM is built with the feature failpoints. Processes and Redis are hurt, as most defects show when one of
# them dies or stands still, and the others by themselves; two show only in moments of some milliseconds, and
# get the kinds that strike those.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."

program=$1
shift
known=$(sed -n 's/^    ("\([a-z_]*\)", ".*/\1/p' src/failpoint.rs)
read -r -d '' -a defects <<<"${DEFECTS:-$known}" || true
((${#defects[@]} > 0)) || { echo "chaos_planted: no defects in src/failpoint.rs" >&2; exit 1; }

# The checks that the defect broke. A run that was slow, or hurt less than it should, found nothing.
FOUND='
import json, sys
BESIDE = {"actors_back_within_1_s", "caught_up", "faults_were_done", "generator_sound", "memory_bounded",
          "stopped_in_order"}
text = open(sys.argv[1]).read()
if not text:
    sys.exit("no report")
report = json.loads(text)
checks = [check["id"] for check in report["checks"] if not check["ok"] and check["id"] not in BESIDE]
print(format(report["faults"], "<7"), ", ".join(checks))
sys.exit(not checks)
'

mkdir -p .millstream/planted
missed=0
printf '%-26s %-7s %s\n' defect faults 'checks that found it'
for defect in "${defects[@]}"; do
  dir=.millstream/planted/$defect
  case $defect in
    watermark_apart) targets=store-kill,process-kill every=1500ms ;;
    lease_without_quarantine) targets=process-stop,redis-flush,redis-empty every=600ms ;;
    *) targets=processes,redis every=700ms ;;
  esac
  status=0
  "$program" chaos --plant "$defect" --broker-script scripts/kafka.sh --dir "$dir" --duration "${EACH:-60s}" \
    --targets "$targets" --every "$every" --rate 2000 --catch-up 30s --json "$@" \
    >"$dir.json" 2>"$dir.log" || status=$?
  if found=$(.venv/bin/python -c "$FOUND" "$dir.json") && ((status == 5)); then
    printf '%-26s %s\n' "$defect" "$found"
  else
    printf '%-26s NOT FOUND (exit %s): %s\n' "$defect" "$status" "$found"
    tail -n 3 "$dir.log" >&2
    missed=1
  fi
done
exit "$missed"
