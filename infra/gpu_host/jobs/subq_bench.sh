#!/bin/bash
# subq_bench.sh: what a sequence of 16k to 16M tokens costs, flat and by hierarchical index, fitted to n log n and n² (120 s; GPU and host quiet; no parts).
set -u
ROOT=${LEASE_ROOT:-/tmp}
cd "$ROOT/tree" || exit 2
timeout -k 5 $((SECONDS_LIMIT - 5)) python3 -m infra.training.subq_gpu bench --data "$ROOT/subq-data" --work "$WORK" --out "$OUT" \
  --lengths "${LENGTHS:-16k,64k,256k,1M,4M,16M}" --indexes "${INDEXES:-flat,tree,ivf,groups}" --device "${DEVICE:-cuda}"
