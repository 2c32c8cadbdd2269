#!/bin/bash
# policy.sh: stages of policy_gpu. STAGES, WORKERS (10); READER=1 where a stage reads (parts reader-* unpacked by reader.sh).
# First call: STAGES="material pairs teach" (200 s alone; 350 s where other trainings share the GPU: its pair readers stop by the clock, and 121
# of 416 steps cost their order 2.5 to 3.9 points on 2026-11-30); second: STAGES="readings trust reward judge" READER=1 (SECONDS 700).
# A pair reader over the reader's decoder beside MiniLM's: OPTIONS="--pair-base both" READER=1 in every call; the first then takes 400 to 450 s
# alone (material 60, pairs 250 to 300, teach 60): give SECONDS 560. ranks.json comes home with it.
# FOLDS=1: training and dev questions are read by the readers of policy_folds.sh, waited for. OPTIONS: more of policy_gpu's.
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
  for _ in $(seq "${READER_WAIT:-120}"); do [ -f "$ROOT/reader/ready.json" ] && break; sleep 1; done
  [ -f "$ROOT/reader/ready.json" ] || { echo "policy.sh: $ROOT/reader is not ready; run reader.sh first and look at its log" >&2; exit 2; }
  options=(--reader "$ROOT/reader")
fi
if [ -n "${FOLDS:-}" ]; then
  for _ in $(seq "${FOLDS_WAIT:-240}"); do [ -f "$ROOT/folds/ready" ] && break; sleep 1; done
  [ -f "$ROOT/folds/ready" ] || { echo "policy.sh: $ROOT/folds is not ready; look at the log of policy_folds.sh, or start without FOLDS" >&2; exit 2; }
  options+=(--fold-readers "$ROOT/folds" --shipped "$ROOT/parts/fold-readers/retriever")
fi
read -r -a stages <<< "$STAGES"
read -r -a more <<< "${OPTIONS:-}"
export PYTHONPATH="$ROOT/carried/site:$ROOT/reader/site"
python3 -m infra.training.policy_gpu --stage "${stages[@]}" --carried "$ROOT/carried" "${options[@]}" "${more[@]}" --out "$ROOT/work/policy" \
  --seconds $((SECONDS_LIMIT - SECONDS - 20)) --workers "${WORKERS:-10}"
rc=$?
python3 -m infra.training.policy_gpu --out "$ROOT/work/policy" --stage collect --collect "$OUT"
exit $rc
