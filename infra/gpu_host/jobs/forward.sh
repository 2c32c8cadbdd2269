#!/bin/bash
# forward.sh: forms of sparse attention's forward pass for Hopper, checked and timed in turn (forward.json, as it goes forward.jsonl); one GPU,
# 16 cores while it compiles, 8 GiB of GPU memory, 60 s. Nothing else may run on this GPU while it times. TESTS=1: then the GPU tests of these forms
# (gpu_tests_forward.log). COMPILE=1: only compiles and checks, beside whatever runs (checks.json, 20 s on 16 cores, 60 s beside others); given again
# without it, it times what passed in 20 s.
set -u
ROOT=${LEASE_ROOT:-/tmp}
cd "$ROOT/tree" || exit 2
export PYTHONPATH="$ROOT/carried/site${PYTHONPATH:+:$PYTHONPATH}"
limit=${SECONDS_LIMIT:-60}
started=$(date +%s)
python3 -m infra.bench.gpu_forward --out "$OUT" --limit $((limit < 65 ? limit - 5 : 60)) ${COMPILE:+--compile}
code=$?
[ -n "${TESTS:-}" ] || exit $code
left=$((limit - ($(date +%s) - started) - 3))
timeout -k 5 "$left" python3 -m pytest -m gpu -q -rfE -p no:cacheprovider -n 6 --timeout 60 --timeout-method thread --confcutdir tests/models/kernels \
  tests/models/kernels/test_sparse_attention.py -k "hopper_kernel_agrees and (-4- or -5-)" > "$OUT/gpu_tests_forward.log" 2>&1
tail -n 3 "$OUT/gpu_tests_forward.log"
exit $code
