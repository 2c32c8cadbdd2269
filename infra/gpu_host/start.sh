#!/bin/bash
# start.sh NAME GPUS SECONDS SCRIPT [VARIABLE=VALUE ...]: a job in the background that outlives the call.
# The job finds OUT, WORK, SECONDS_LIMIT and CUDA_VISIBLE_DEVICES set; its log is logs/NAME.log, its exit code logs/NAME.rc, its session logs/NAME.session.
set -u
ROOT=${LEASE_ROOT:-/tmp}
[ $# -ge 4 ] || { echo "start.sh: given $# words; allowed: NAME GPUS SECONDS SCRIPT [VARIABLE=VALUE ...]" >&2; exit 2; }
name=$1 gpus=$2 seconds=$3 script=$4
shift 4
[ -f "$script" ] || { echo "start.sh: $script is not here; bring its part first (arrive.sh)" >&2; exit 2; }
if [ -f "$ROOT/logs/$name.t0" ] && [ ! -f "$ROOT/logs/$name.rc" ]; then
  echo "start.sh: $name is running; end it first (stop.sh $name), or give another name" >&2
  exit 2
fi
mkdir -p "$ROOT/out/$name" "$ROOT/work/$name" "$ROOT/logs"
rm -f "$ROOT/logs/$name".*
date +%s > "$ROOT/logs/$name.t0"
cd "$ROOT/tree" || exit 2
# JAX_PLATFORMS: bm25s imports JAX, which would take three quarters of a GPU's memory
setsid env CUDA_VISIBLE_DEVICES="$gpus" OUT="$ROOT/out/$name" WORK="$ROOT/work/$name" SECONDS_LIMIT="$seconds" TOKENIZERS_PARALLELISM=false \
  RAY_AUTH_MODE=disabled NCCL_NVLS_ENABLE=0 JAX_PLATFORMS=cpu "$@" \
  bash -c 'echo $$ > "$1.session"; timeout -k 10 "$2" bash "$3"; echo $? > "$1.rc"; date +%s > "$1.t1"' job "$ROOT/logs/$name" $((seconds + 45)) "$script" \
  > "$ROOT/logs/$name.log" 2>&1 < /dev/null &
echo "started $name on GPUs '$gpus' for $seconds s"
