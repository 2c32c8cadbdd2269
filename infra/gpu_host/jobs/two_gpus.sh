#!/bin/bash
# two_gpus.sh: the same steps on one worker and on two, by Ray Train where the part ray-part is (155 s for 40 steps); both GPUs idle.
# NPROC=4: on one and on four, in four parts a step; BETWEEN=2: on two as well. Parts subq-[abc].
set -u
ROOT=${LEASE_ROOT:-/tmp}
cd "$ROOT/tree" || exit 2
if [ -d "$ROOT/parts/ray-part" ] && [ ! -d "$ROOT/ray-site" ]; then
  mkdir -p "$ROOT/ray-site.part" && cat "$ROOT"/parts/ray-part/part-* | xz -dc | tar x -C "$ROOT/ray-site.part" && mv "$ROOT/ray-site.part" "$ROOT/ray-site"
fi
mkdir -p "$ROOT/subq-data" && cp -n "$ROOT"/parts/subq-[abc]/* "$ROOT/subq-data/"
many=()
[ -n "${NPROC:-}" ] && many=(--workers "$NPROC" --accumulate "$NPROC")
[ -n "${BETWEEN:-}" ] && many+=(--between "$BETWEEN")
PYTHONPATH="$ROOT/ray-site:$ROOT/carried/site" python3 -m infra.training.train_two_gpus --data "$ROOT/subq-data" --out "$OUT" --work "$WORK" \
  --steps "${STEPS:-40}" --skip "${SKIP:-12}" --device "${DEVICE:-cuda}" "${many[@]}"
