#!/bin/bash
# fade.sh: a trained subq goes on while the contrastive loss fades away, and beside it without fading; needles before and after (about 400 s).
# Parts subq-[abc]. SEED (0); the checkpoint is job subq.sh's of this lease, else the shipped one (of the tree, or the part weights-subq). ARGS: more
# options. One process a GPU. Made again (the same NAME) it goes on.
set -u
ROOT=${LEASE_ROOT:-/tmp}
cd "$ROOT/tree" || exit 2
mkdir -p "$ROOT/subq-data" && cp "$ROOT"/parts/subq-[abc]/* "$ROOT/subq-data/"
seed=${SEED:-0}
checkpoint="$ROOT/work/subq/subq-around-$seed-int8"
if [ ! -f "$checkpoint/config.json" ]; then
  checkpoint=models/weights/subq
  [ -f "$checkpoint/config.json" ] || checkpoint=$ROOT/parts/weights-subq
  [ -f "$checkpoint/config.json" ] || { echo "fade.sh: no checkpoint: end subq.sh (SEED=$seed) first, or carry build/weights-subq (a copy of models/weights/subq)" >&2; exit 2; }
fi
# what subq.sh compiled on this host serves again
mkdir -p "$WORK"
[ -f "$ROOT/work/subq/inductor.bin" ] && [ ! -f "$WORK/inductor.bin" ] && cp "$ROOT/work/subq/inductor.bin" "$WORK/"
read -r -a more <<< "${ARGS:-}"
python3 -m infra.training.subq_fade --data "$ROOT/subq-data" --work "$WORK" --out "$OUT" --checkpoint "$checkpoint" --seed "$seed" \
  --seconds $((SECONDS_LIMIT - 5)) "${more[@]}"
