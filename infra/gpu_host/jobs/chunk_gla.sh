#!/bin/bash
# chunk_gla.sh: fla's operator against ours (part fla: fla-core unpacked under site). Its first call compiles for minutes on one core: start it early.
set -u
ROOT=${LEASE_ROOT:-/tmp}
cd "$ROOT/tree" || exit 2
export PYTHONPATH="$ROOT/parts/fla/site:$ROOT/carried/site"
python3 -m pytest -q -m gpu --confcutdir tests/models/subq tests/models/subq/test_gpu.py -k chunk_gla > "$OUT/chunk_gla.log" 2>&1
echo "chunk_gla rc=$?"
python3 -m infra.training.subq_gpu tests --data "$ROOT/subq-data" --work "$WORK" --out "$OUT"
