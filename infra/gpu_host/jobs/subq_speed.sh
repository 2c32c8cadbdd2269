#!/bin/bash
# subq_speed.sh: ms a token and bytes by length of a trained seed (SEED), on a GPU and a host that do nothing else (65 s to 16M).
set -u
ROOT=${LEASE_ROOT:-/tmp}
cd "$ROOT/tree" || exit 2
python3 -m infra.training.subq_speed --data "$ROOT/subq-data" --checkpoint "$ROOT/work/subq/subq-around-$SEED-int8" --out "$OUT" \
  --lengths "${LENGTHS:-16k,64k,256k,1M,4M,16M}"
