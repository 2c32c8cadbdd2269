#!/bin/bash
# policy_small.sh: MiniLM's pair reader taught by the decoder's of policy.sh, then policies over it, in a run folder of its own: $ROOT/work/policy_small.
# Start it on its own GPU(s) once policy.sh with OPTIONS="--pair-base both" (or decoder) READER=1 MADE=1 is begun: it waits for that run's material, its
# decoder's made reader and its folds, for made_questions.sh, and (before rewards) for policy_folds.sh unless FOLDS is empty. RUN ($ROOT/work/policy): that run.
# GPU memory: as policy.sh's. It goes on where it was ended. The part served (pack.sh served) brings the policy in service with its own pair reader, judged beside these.
# STAGES (distil teach reward judge), DISTIL (450): seconds of distilling, waiting included; WORKERS (13); SEEDS (0 1 2); MORE: of policy_distill; OPTIONS: of policy_gpu.
set -u
ROOT=${LEASE_ROOT:-/tmp}
cd "$ROOT/tree" || exit 2
run=${RUN:-$ROOT/work/policy}
small=$ROOT/work/policy_small
wait_for() {  # wait_for FILE SECONDS
  for _ in $(seq "$2"); do [ -f "$1" ] && return 0; sleep 1; done
  echo "policy_small.sh: $1 is not there after $2 s; look at the log of the job that makes it" >&2
  return 1
}
left() { echo $((SECONDS_LIMIT - SECONDS - 20)); }
wait_for "$ROOT/carried/joined" "${WAIT:-300}" || exit 2
wait_for "$ROOT/reader/ready.json" "${WAIT:-300}" || exit 2
export PYTHONPATH="$ROOT/carried/site:$ROOT/reader/site"
export PYTORCH_CUDA_ALLOC_CONF=${PYTORCH_CUDA_ALLOC_CONF:-expandable_segments:True}
stages=" ${STAGES:-distil teach reward judge} "
read -r -a more <<< "${MORE:-}"
read -r -a options <<< "${OPTIONS:---budgets 48 64 96 128 192 256 --biases -12 -8 -4 -1.5 0}"
read -r -a seeds <<< "${SEEDS:-0 1 2}"
device=(); [ -n "${DEVICE:-}" ] && device=(--device "$DEVICE")
mkdir -p "$OUT"
rc=0
if [[ $stages == *" distil "* ]]; then
  wait_for "$ROOT/made/ready" $(($(left) - 60)) || exit 2
  python3 -m infra.training.policy_distill --run "$run" --out "$small" --carried "$ROOT/carried" --reader "$ROOT/reader" --made "$ROOT/made" \
    --seconds "${DISTIL:-450}" "${device[@]}" "${more[@]}" || exit 3
  for file in "$small"/ranks_beside.json "$small"/pairs/*/config.json "$small"/pairs/*/curve.json; do
    [ -f "$file" ] && cp "$file" "$OUT/$(basename "$(dirname "$file")")-$(basename "$file")"
  done
fi
served=$ROOT/parts/served/retriever
shipped=()
if [ -d "$served" ]; then
  # scored alone, before anything that chooses needs it; the decoder's run takes it over
  python3 -m infra.training.policy_served --out "$small" --policy "$served" --carried "$ROOT/carried" "${device[@]}" && shipped=(--shipped "$served")
  [ -d "$run/pairs_shipped" ] || cp -r "$small/pairs_shipped" "$run/.pairs_shipped" 2>/dev/null && mv -n "$run/.pairs_shipped" "$run/pairs_shipped" 2>/dev/null
elif [ -d "$ROOT/parts/fold-readers/retriever" ]; then
  shipped=(--shipped "$ROOT/parts/fold-readers/retriever")
fi
policy() {  # policy STAGE ...
  python3 -m infra.training.policy_gpu --stage "$@" --carried "$ROOT/carried" --reader "$ROOT/reader" --pair-base minilm --together --multi-hop 3 \
    --seeds "${seeds[@]}" "${device[@]}" "${options[@]}" --out "$small" --workers "${WORKERS:-13}" --seconds "$(left)"
}
if [[ $stages == *" teach "* ]]; then policy teach || exit 4; fi
if [[ $stages == *" reward "* || $stages == *" judge "* ]]; then
  folds=()
  if [ -n "${FOLDS-1}" ]; then
    wait_for "$ROOT/folds/ready" $(($(left) - 120)) || exit 2
    folds=(--fold-readers "$ROOT/folds")
  fi
  rest=(); for name in reward judge; do [[ $stages == *" $name "* ]] && rest+=("$name"); done
  policy "${rest[@]}" "${folds[@]}" "${shipped[@]}" || rc=5
fi
python3 -m infra.training.policy_gpu --out "$small" --stage collect --collect "$OUT"
exit $rc
