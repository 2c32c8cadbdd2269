#!/bin/bash
# apart.sh: choices of the policy for GPUs and of simple methods read together and apart (apart_gpu): $OUT/rows.jsonl.gz.*, for apart_fit at home.
# Wants the parts carry-*, reader-* and weights, or what another job has made of them ($ROOT/carried/joined, $ROOT/reader/ready.json: policy.sh and
# reader.sh; without them it joins and unpacks itself), and the part policy-decoder (19 MB; else the tree's models/weights/retriever-decoder).
# MATERIAL=$ROOT/work/policy/material: takes what policy.sh has made (waited for), else it makes the dev and test questions' own.
# WORKERS (10) read; CROSS (6): see apart_gpu; MORE: of its options. GPU memory: some 4 GB a process. Rows so far go home at every end, a cut run's too.
set -u
ROOT=${LEASE_ROOT:-/tmp}
cd "$ROOT/tree" || exit 2
if [ ! -f "$ROOT/carried/joined" ] && [ -z "${WAIT:-}" ]; then
  rm -rf "$ROOT/carried"
  mapfile -t parts < <(ls -d "$ROOT"/parts/carry-*/part-* | sort)
  python3 -m infra.training.policy_carry --join "${parts[@]}" --out "$ROOT/carried" && touch "$ROOT/carried/joined" || exit 2
fi
[ -f "$ROOT/reader/ready.json" ] || [ -n "${WAIT:-}" ] || bash infra/gpu_host/jobs/reader.sh || exit 2
for file in "$ROOT/carried/joined" "$ROOT/reader/ready.json" ${MATERIAL:+"$MATERIAL/manifest.json"}; do
  for _ in $(seq "${WAIT:-60}"); do [ -f "$file" ] && break; sleep 1; done
  [ -f "$file" ] || { echo "apart.sh: $file is not there after ${WAIT:-60} s; look at the log of the job that makes it" >&2; exit 2; }
done
export PYTHONPATH="$ROOT/carried/site:$ROOT/reader/site"
export PYTORCH_CUDA_ALLOC_CONF=${PYTORCH_CUDA_ALLOC_CONF:-expandable_segments:True}
policy=$ROOT/parts/policy-decoder/retriever-decoder
[ -d "$policy" ] || policy=models/weights/retriever-decoder
[ -f "$policy/policy.safetensors" ] || { echo "apart.sh: no policy at $policy; bring the part policy-decoder (pack.sh policy-decoder)" >&2; exit 2; }
read -r -a more <<< "${MORE:-}"
work=$ROOT/work/apart
apart() {  # apart STAGE ...
  python3 -m infra.training.apart_gpu --stage "$@" --carried "$ROOT/carried" --reader "$ROOT/reader" --out "$work" --policy "$policy" ${MATERIAL:+--material "$MATERIAL"} \
    --workers "${WORKERS:-10}" --cross "${CROSS:-6}" --seconds $((SECONDS_LIMIT - SECONDS - 15)) "${more[@]}"
}
apart material read
rc=$?
apart home --home "$OUT"
exit $rc
