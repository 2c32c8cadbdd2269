#!/bin/bash
# fade.sh: a trained subq goes on while the contrastive loss fades away, and beside it without fading; needles before and after (about 400 s
# alone; with alike and 4 lengths 600). An arm named alike comes home in 8 bits (OUT/alike-SEED-int8); subq.sh CHECKPOINT=... judges it whole.
# Parts subq-[abc]. SEED (0); the checkpoint is job subq.sh's of this lease (ROUTING as there), else the shipped one (of the tree, or the part
# weights-subq). ARGS: more options (--arms fade kept alike --lengths 16k,1M,16M). One process a GPU. Made again (the same NAME) it goes on.
set -u
ROOT=${LEASE_ROOT:-/tmp}
cd "$ROOT/tree" || exit 2
mkdir -p "$ROOT/subq-data" && cp "$ROOT"/parts/subq-[abc]/* "$ROOT/subq-data/"
seed=${SEED:-0}
named=subq
weight=()
if [ -n "${ROUTING:-}" ]; then
  after=${ROUTING_AFTER:-0.1}
  named=subq-routing
  [ "$after" = 0.1 ] || named=$named$after
  weight=(--contrastive "$after")
fi
checkpoint="$ROOT/work/subq/$named-around-$seed-int8"
[ -f "$checkpoint/config.json" ] || weight=()
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
  --seconds $((SECONDS_LIMIT - 5)) --device "${DEVICE:-cuda}" "${weight[@]}" "${more[@]}"
