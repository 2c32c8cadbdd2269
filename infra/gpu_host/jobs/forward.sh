#!/bin/bash
# forward.sh: forms of sparse attention's forward pass for Hopper and what binds them, checked and timed in turn (forward.json, as it goes
# forward.jsonl); one GPU, 10 cores while it compiles, 13 GB of GPU memory then, 5 GB afterwards, 60 s. Nothing else may run on this GPU while it
# times. COMPILE=1: only compiles and checks, beside whatever runs (checks.json, 20 s); given again without it, it times what passed.
set -u
ROOT=${LEASE_ROOT:-/tmp}
cd "$ROOT/tree" || exit 2
export PYTHONPATH="$ROOT/carried/site${PYTHONPATH:+:$PYTHONPATH}"
limit=${SECONDS_LIMIT:-60}
python3 -m infra.bench.gpu_forward --out "$OUT" --limit $((limit - 5)) ${COMPILE:+--compile}
