#!/bin/bash
# cotrain.sh: reader and policy alone, in turn and together, over the material that policy.sh made (300 s for two seeds, 12 cores).
# Wants policy.sh's first call (material pairs teach) under $ROOT/work/policy and reader.sh's $ROOT/reader. ARGS: more options.
# EQUAL=1: no run sees a label, an update by reward is as many readings and passes as one of the joint run, one of the reader as many tokens; nine side by side.
set -u
ROOT=${LEASE_ROOT:-/tmp}
cd "$ROOT/tree" || exit 2
policy="$ROOT/work/policy"
for path in "$policy/material/manifest.json" "$policy/policies/supervised-0/carried/config.json" "$ROOT/reader/ready.json"; do
  [ -e "$path" ] || { echo "cotrain.sh: $path is not there; end policy.sh (material pairs teach) and reader.sh first" >&2; exit 2; }
done
export PYTHONPATH="$ROOT/carried/site:$ROOT/reader/site"
equal=()
[ -n "${EQUAL:-}" ] && equal=(--gold 0 --oracle 0 --labels 0 --group 4 --epochs 1 --tokens-per-batch 2048 --updates 90 --at-once 9 --memory 0.1 --training 200)
read -r -a more <<< "${ARGS:-}"
python3 -m infra.training.cotrain_gpu --material "$policy/material" --pairs "$policy" --warm "$policy/policies/supervised-0/carried" \
  --reader "$ROOT/reader" --adapter models/weights/reader-lora --work "$WORK" --out "$OUT" --seeds 0 1 --seconds $((SECONDS_LIMIT - 5)) \
  --device "${DEVICE:-cuda}" "${equal[@]}" "${more[@]}"
