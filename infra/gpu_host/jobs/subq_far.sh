#!/bin/bash
# subq_far.sh: needles of a trained seed (SEED) far beyond its length (LENGTHS: 64M,100M), on one GPU with 115 GB free (2 GB of the host). A text is
# encoded once for all its cells (30 s at 100M), a cell of 32 keys takes under a second; the stream rows encode again, and search by a tree too.
# SEED 1 needs no training: part weights-subq (a copy of models/weights/subq). Made again, it goes on behind the rows that are there.
set -u
ROOT=${LEASE_ROOT:-/tmp}
cd "$ROOT/tree" || exit 2
mkdir -p "$ROOT/subq-data" && cp "$ROOT"/parts/subq-[abc]/* "$ROOT/subq-data/"
checkpoint=$ROOT/work/subq/subq-around-$SEED-int8
if [ ! -f "$checkpoint/config.json" ]; then
  [ "$SEED" = 1 ] || { echo "subq_far.sh: $checkpoint is not there; train seed $SEED by subq.sh first, or give SEED=1 (the weights that ship)" >&2; exit 2; }
  [ -f "$ROOT/parts/weights-subq/config.json" ] || { echo "subq_far.sh: part weights-subq is not here; carry build/weights-subq" >&2; exit 2; }
  mkdir -p "$checkpoint.part" && cp "$ROOT"/parts/weights-subq/* "$checkpoint.part/" && mv "$checkpoint.part" "$checkpoint"
fi
# 64M first: where time is short, 100M is what is left out
for length in $(tr ',' ' ' <<< "${LENGTHS:-64M,100M}"); do
  left=$((SECONDS_LIMIT - SECONDS - 15))
  [ "$left" -gt 30 ] || { echo "subq_far.sh: $left s left, $length not asked; call again"; exit 1; }
  mkdir -p "$OUT/$length"
  python3 -m infra.training.subq_gpu needles --data "$ROOT/subq-data" --work "$WORK" --out "$OUT/$length" --seed "$SEED" \
    --checkpoint "$checkpoint" --lengths "$length" --also "${ALSO:-tree8}" --call-seconds "$left" --device "${DEVICE:-cuda}" ${MORE:-}
done
