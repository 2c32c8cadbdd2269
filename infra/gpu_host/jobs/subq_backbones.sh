#!/bin/bash
# subq_backbones.sh: backbones of equal size on news and books with needles among them, three seeds, side by side on one GPU; losses by position and keys
# at 4k and 16k. Parts: subq-small (or subq-a, subq-c), subq-news, fla. METHODS ("subq,no-retrieval,transformer,mamba-2,linear-transformer,gca"),
# SEEDS ("0 1 2"), STEPS (300 updates of 32k tokens), JOBS (6), MAKERS (6 cores for batches), ANSWERS (.25: their weight in the loss), MORE. Whole seeds come first: a call that ended early leaves
# whole seeds, and made again (the same NAME) goes on. Expected on an H200: 18 runs of 300 updates 200 s alone, 300 s beside another job; some 10 GB a run
# at a time. With the part fla its kernels run in one configuration each (see subq_choices.sh); without it the linear transformer is left out.
set -u
ROOT=${LEASE_ROOT:-/tmp}
cd "$ROOT/tree" || exit 2
books=$ROOT/subq-backbones-data
news=$ROOT/parts/subq-news
[ -f "$news/manifest.json" ] || { echo "subq_backbones.sh: $news is not there; carry the part subq-news (pack.sh subq-small)" >&2; exit 2; }
if [ -d "$ROOT/parts/subq-small" ]; then
  books=$ROOT/parts/subq-small
else
  mkdir -p "$books" && cp -n "$ROOT"/parts/subq-[abc]/* "$books/"
fi
methods=${METHODS:-subq,no-retrieval,transformer,mamba-2,linear-transformer,gca}
pinned=()
if [ -d "$ROOT/parts/fla/site" ]; then
  export PYTHONPATH="$ROOT/parts/fla/site${PYTHONPATH:+:$PYTHONPATH}" TRITON_CACHE_DIR="$ROOT/work/triton"
  check=(python3 -m infra.training.subq_gla --out "$OUT/gla" --lengths 4096,1000 --heads 4 --dtype bfloat16 --device "${DEVICE:-cuda}")
  if [ -n "${PINNED_ALREADY:-}" ] || timeout -k 5 100 "${check[@]}" --pinned "$ROOT/work/fla-configs"; then
    pinned=(--pinned "$ROOT/work/fla-configs")
  else
    methods=$(echo ",$methods," | sed 's/,linear-transformer,/,/; s/^,//; s/,$//')
    echo "subq_backbones.sh: fla's pinned kernels are not right here; without the linear transformer: $methods"
  fi
  echo "subq_backbones.sh: fla's kernels compiled after $SECONDS s"
elif [ "${DEVICE:-cuda}" = cuda ]; then
  methods=$(echo ",$methods," | sed 's/,linear-transformer,/,/; s/^,//; s/,$//')
  echo "subq_backbones.sh: the part fla is not there; without the linear transformer: $methods"
fi
read -r -a seeds <<< "${SEEDS:-0 1 2}"
read -r -a keep <<< "${KEEP:-}"  # seeds whose checkpoints come home, 9 MB a method
read -r -a more <<< "${MORE:---compiled}"
python3 -m infra.training.subq_backbones --books "$books" --news "$news" --work "$WORK" --out "$OUT" --seconds $((SECONDS_LIMIT - SECONDS - 12)) \
  --jobs "${JOBS:-6}" --makers "${MAKERS:-6}" --steps "${STEPS:-300}" --answers "${ANSWERS:-0.25}" --seeds "${seeds[@]}" --methods "$methods" --device "${DEVICE:-cuda}" \
  "${pinned[@]}" "${more[@]}" --keep "${keep[@]}"
rc=$?
mkdir -p "$OUT/logs" && cp "$WORK"/*.log "$OUT/logs/" 2>/dev/null
exit $rc
