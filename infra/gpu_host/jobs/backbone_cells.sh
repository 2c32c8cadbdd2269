#!/bin/bash
# backbone_cells.sh: needles of 4k and 16k of their own tokens asked of the backbones that subq_backbones.sh has trained (its NAME in FROM, default subq-backbones; it must
# have ended or have written the checkpoints wanted), `dysra evaluate --task needle` a method and file; 66 s for 24 cases a file, 2 to 4 GB a process. Part: backbone-cells. SEEDS (0), JOBS (7), LIMIT (0).
set -u
ROOT=${LEASE_ROOT:-/tmp}
cd "$ROOT/tree" || exit 2
export PYTHONPATH="$ROOT/parts/fla/site:$ROOT/carried/site:$ROOT/reader/site" TRITON_CACHE_DIR="$ROOT/work/triton"
pinned=()  # without it fla timed its own kernels for more than 140 s (2026-12-01)
[ -d "$ROOT/parts/fla/site" ] && pinned=(--pinned "$ROOT/work/fla-configs")
read -r -a seeds <<< "${SEEDS:-0}"
python3 -m infra.bench.backbone_cells run --checkpoints "$ROOT/work/${FROM:-subq-backbones}/checkpoints" --cases "$ROOT/parts/backbone-cells" --out "$OUT" \
  --seconds $((SECONDS_LIMIT - 10)) --jobs "${JOBS:-7}" --limit "${LIMIT:-0}" --device "${DEVICE:-cuda}" --seeds "${seeds[@]}" "${pinned[@]}"
rc=$?
tail -n 3 "$OUT"/logs/*.log
exit $rc
