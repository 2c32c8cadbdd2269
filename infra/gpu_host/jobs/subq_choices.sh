#!/bin/bash
# subq_choices.sh: the backbone's choices side by side (8M parameters, 13 of them, JOBS at a time on one GPU, MAKERS cores for their batches); 330 s.
# CHOICES: some of them, in that order; STEPS (600 updates of 32k tokens). Made again it goes on with what is missing (the same WORK: the same NAME).
set -u
ROOT=${LEASE_ROOT:-/tmp}
cd "$ROOT/tree" || exit 2
mkdir -p "$ROOT/subq-data" && cp "$ROOT"/parts/subq-[abc]/* "$ROOT/subq-data/"
if [ -d "$ROOT/parts/fla/site" ]; then export PYTHONPATH="$ROOT/parts/fla/site:$ROOT/carried/site"; fi
python3 -m infra.training.subq_choices --data "$ROOT/subq-data" --work "$WORK" --out "$OUT" --seconds $((SECONDS_LIMIT - 10)) --jobs "${JOBS:-6}" \
  --makers "${MAKERS:-10}" --steps "${STEPS:-600}" --device "${DEVICE:-cuda}" ${CHOICES:+--choices "$CHOICES"} ${MORE:-}
rc=$?
mkdir -p "$OUT/logs" && cp "$WORK"/*.log "$OUT/logs/" 2>/dev/null
exit $rc
