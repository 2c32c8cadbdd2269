#!/bin/bash
# policy.sh: stages of policy_gpu. STAGES, WORKERS (10); READER=1 where a stage reads (parts reader-* unpacked by reader.sh).
# First call: STAGES="material pairs teach" (200 s); second: STAGES="readings trust reward judge" READER=1 (SECONDS 700).
set -u
ROOT=${LEASE_ROOT:-/tmp}
cd "$ROOT/tree" || exit 2
if [ ! -f "$ROOT/carried/joined" ]; then
  rm -rf "$ROOT/carried"
  mapfile -t parts < <(ls -d "$ROOT"/parts/carry-*/part-* | sort)
  python3 -m infra.training.policy_carry --join "${parts[@]}" --out "$ROOT/carried" && touch "$ROOT/carried/joined" || exit 2
fi
options=()
if [ -n "${READER:-}" ]; then
  [ -f "$ROOT/reader/ready.json" ] || { echo "policy.sh: $ROOT/reader is not ready; run reader.sh first and look at its log" >&2; exit 2; }
  options=(--reader "$ROOT/reader")
fi
read -r -a stages <<< "$STAGES"
export PYTHONPATH="$ROOT/carried/site:$ROOT/reader/site"
python3 -m infra.training.policy_gpu --stage "${stages[@]}" --carried "$ROOT/carried" "${options[@]}" --out "$ROOT/work/policy" \
  --seconds $((SECONDS_LIMIT - 20)) --workers "${WORKERS:-10}"
rc=$?
python3 -m infra.training.policy_gpu --out "$ROOT/work/policy" --stage collect --collect "$OUT"
exit $rc
