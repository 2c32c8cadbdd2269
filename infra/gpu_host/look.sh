#!/bin/bash
# look.sh [LINES]: the state of every job, with the last lines of its log.
set -u
ROOT=${LEASE_ROOT:-/tmp}
lines=${1:-2} now=$(date +%s)
echo "t=$((now - $(cat "$ROOT/begin" 2>/dev/null || echo "$now"))) load $(cut -d' ' -f1 /proc/loadavg) memory $(free -g | awk '/Mem/ {print $3 "/" $2}') GiB"
nvidia-smi --query-gpu=index,utilization.gpu,memory.used --format=csv,noheader 2>/dev/null | tr '\n' ';'; echo
for t0 in "$ROOT"/logs/*.t0; do
  [ -f "$t0" ] || continue
  log=${t0%.t0} state=running end=$now
  [ -f "$log.rc" ] && state="rc=$(cat "$log.rc")"
  [ -f "$log.t1" ] && end=$(cat "$log.t1")
  echo "== $(basename "$log") $state $((end - $(cat "$t0"))) s | $(tail -n "$lines" "$log.log" 2>/dev/null | cut -c1-300 | tr '\n' '|')"
done
