#!/bin/bash
# cotrain.sh: reader and policy alone, in turn and together, over the material that policy.sh made (300 s and more).
set -u
ROOT=${LEASE_ROOT:-/tmp}
cd "$ROOT/tree" || exit 2
export PYTHONPATH="$ROOT/carried/site:$ROOT/reader/site"
read -r -a more <<< "${ARGS:-}"
python3 -m infra.training.cotrain_gpu --material "$ROOT/work/policy/material" --reader "$ROOT/reader" --adapter models/weights/reader-lora \
  --work "$WORK" --out "$OUT" --seconds $((SECONDS_LIMIT - 10)) "${more[@]}"
