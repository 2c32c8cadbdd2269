#!/bin/bash
# policy_again.sh: test points of an earlier run's policies, which came home as choices, read by the shipped reader (`policy_again`): nothing is trained.
# Wants the parts policy-again (`policy_again wanted`, 1 MiB), reader-* (reader.sh) and carry-*, or the material of a policy.sh that runs (MATERIAL_WAIT,
# 240 s). MAKE=1: makes the material itself, where no policy.sh does (some 35 s to join and 83 to make, 14 of the host's cores). WORKERS (8): 4 GB each
# on the GPU. Seconds: 50,000 readings in 60 with 8 workers; 10,000 of them, the first, are the points that dev questions choose. Give 300 with MAKE=1.
# Home in OUT: readings-again-*.npz, again.json (is the material the run's own?), material (without vectors). KEEP=1: the material with its vectors in
# 8 bits under $ROOT/out/policy-material (some 40 MiB; 60 s of a core): carried as the part policy-material, policy.sh need not make it again.
set -u
ROOT=${LEASE_ROOT:-/tmp}
cd "$ROOT/tree" || exit 2
wait_for() {  # wait_for FILE SECONDS WHAT
  for _ in $(seq "$2"); do [ -f "$1" ] && return 0; sleep 1; done
  echo "policy_again.sh: $1 is not there after $2 s; $3" >&2
  return 1
}
wait_for "$ROOT/parts/policy-again/wanted.npz" "${PARTS_WAIT:-60}" "carry the part policy-again" || exit 2
material=$ROOT/work/policy/material
if [ -n "${MAKE:-}" ] && [ ! -f "$material/manifest.json" ]; then
  STAGES=material OUT=$WORK/collected bash infra/gpu_host/jobs/policy.sh || exit 2
fi
wait_for "$material/manifest.json" "${MATERIAL_WAIT:-240}" "look at the log of policy.sh, or start with MAKE=1" || exit 2
wait_for "$ROOT/reader/ready.json" "${READER_WAIT:-120}" "run reader.sh first" || exit 2
export PYTHONPATH="$ROOT/carried/site:$ROOT/reader/site"
mkdir -p "$OUT"
python3 -m infra.training.policy_again read --wanted "$ROOT/parts/policy-again" --folds "$ROOT/parts/policy-again" --material "$material" \
  --reader "$ROOT/reader" --out "$OUT" --seconds $((SECONDS_LIMIT - SECONDS - 40)) --workers "${WORKERS:-8}" --device "${DEVICE:-cuda}"
rc=$?
date +%s > "$OUT/read"
python3 -m infra.training.policy_again bare --material "$material" --out "$OUT/material"
[ -z "${KEEP:-}" ] || python3 -m infra.training.policy_again bare --vectors --material "$material" --out "$ROOT/out/policy-material"
exit $rc
