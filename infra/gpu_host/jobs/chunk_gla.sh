#!/bin/bash
# chunk_gla.sh: fla's operator against ours (part fla: fla-core unpacked under site). Compiles for minutes, on one core of the host and hardly any of the
# GPU: start it first, beside anything (500 s). JSON after each length; what was compiled stays under WORK, so a call made again is quick.
set -u
ROOT=${LEASE_ROOT:-/tmp}
cd "$ROOT/tree" || exit 2
[ -d "$ROOT/parts/fla/site" ] || { echo "chunk_gla.sh: part fla is not here; carry build/fla" >&2; exit 2; }
export PYTHONPATH="$ROOT/parts/fla/site:$ROOT/carried/site" TRITON_CACHE_DIR="$WORK/triton"
timeout -k 5 $((SECONDS_LIMIT - 10)) python3 -m infra.training.subq_gla --out "$OUT" --lengths "${LENGTHS:-4100,1000,64}" --device "${DEVICE:-cuda}"
