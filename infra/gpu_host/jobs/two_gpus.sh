#!/bin/bash
# two_gpus.sh: the same steps on one worker and on two, by Ray Train where the part ray-part is (155 s for 40 steps); both GPUs idle.
set -u
ROOT=${LEASE_ROOT:-/tmp}
cd "$ROOT/tree" || exit 2
if [ -d "$ROOT/parts/ray-part" ] && [ ! -d "$ROOT/ray-site" ]; then
  mkdir -p "$ROOT/ray-site.part" && cat "$ROOT"/parts/ray-part/part-* | xz -dc | tar x -C "$ROOT/ray-site.part" && mv "$ROOT/ray-site.part" "$ROOT/ray-site"
fi
PYTHONPATH="$ROOT/ray-site:$ROOT/carried/site" python3 -m infra.training.train_two_gpus --data "$ROOT/subq-data" --out "$OUT" --work "$WORK" \
  --steps "${STEPS:-40}" --skip "${SKIP:-12}"
