#!/bin/bash
# subq_choices.sh: the backbone's choices side by side (8M parameters, 13 of them, JOBS at a time on one GPU, MAKERS cores for their batches); 330 s.
# CHOICES: some of them, in that order; STEPS (600 updates of 32k tokens). Made again it goes on with what is missing (the same WORK: the same NAME).
# With the part fla the kernels of gated linear attention run in one configuration each and are first compared with the recurrence in the dtype of
# training (OUT/gla, under a minute); where they are wrong, fla times its own, minutes long, and all processes share what one has compiled.
set -u
ROOT=${LEASE_ROOT:-/tmp}
cd "$ROOT/tree" || exit 2
mkdir -p "$ROOT/subq-data" && cp "$ROOT"/parts/subq-[abc]/* "$ROOT/subq-data/"
pinned=()
if [ -d "$ROOT/parts/fla/site" ]; then
  export PYTHONPATH="$ROOT/parts/fla/site:$ROOT/carried/site" TRITON_CACHE_DIR="$ROOT/work/triton"
  if [ -z "${CHOICES:-}" ] || [[ "$CHOICES" =~ linear|mixed ]]; then
    check=(python3 -m infra.training.subq_gla --out "$OUT/gla" --lengths 4096,1000 --heads 4 --dtype bfloat16 --device "${DEVICE:-cuda}")
    if timeout -k 5 150 "${check[@]}" --pinned "$ROOT/work/fla-configs"; then
      pinned=(--pinned "$ROOT/work/fla-configs")
    else
      echo "subq_choices.sh: fla's pinned kernels are not right here; it times its own"
      timeout -k 5 300 "${check[@]}"
    fi
    echo "subq_choices.sh: fla's kernels compiled after $SECONDS s"
  fi
fi
python3 -m infra.training.subq_choices --data "$ROOT/subq-data" --work "$WORK" --out "$OUT" --seconds $((SECONDS_LIMIT - SECONDS - 10)) --jobs "${JOBS:-6}" \
  --makers "${MAKERS:-10}" --steps "${STEPS:-600}" --device "${DEVICE:-cuda}" ${CHOICES:+--choices "$CHOICES"} "${pinned[@]}" ${MORE:-}
rc=$?
mkdir -p "$OUT/logs" && cp "$WORK"/*.log "$OUT/logs/" 2>/dev/null
exit $rc
