#!/bin/bash
# faults.sh: `dysra bench faults` as several runs side by side on many cores, then one table of all. HARNESSES runs of FAULTS faults each in shards,
# sessions and small disks (seeds SEED+1 …), and CLUSTERS runs of CLUSTER_FAULTS each on whole clusters, which share the cluster's kinds out among them.
# Each has a broker, a Ray, a folder, and namespaces of its own (processes, network, mounts), so that none can see or end another's.
# CORES=40-63: only these cores, as taskset takes them. A fault that is not made good within SETTLE seconds (a cluster's; half of that for the others)
# counts as not held, and what stands then comes home (standstill-*); no fault begins so late that it could not be told.
# Parts ingest-*: host-java, host-ray, host-store, host-minilm and host-serve (infra/bench/host_pack.py). 6 x 164 and 6 x 7 are 1,026 faults of all 56 kinds.
set -u
if [ -n "${CORES:-}" ] && [ -z "${PINNED:-}" ]; then  # all that follows inherits it
  PINNED=1 exec taskset -c "$CORES" bash "$0"
fi
ROOT=${LEASE_ROOT:-/tmp}
cd "$ROOT/tree" || exit 2
here=$ROOT/host
mkdir -p "$here"
if [ "${INSTALLED:-0}" = 0 ]; then
  (  # one at a time: running.sh uses the same folder
    flock -w 120 9
    for part in java store ray minilm serve; do
      [ -f "$here/.unpacked-$part" ] && continue
      python3 infra/bench/host_session.py unpack "$ROOT"/parts/ingest-*/host-$part --target "$here" || exit 2
      touch "$here/.unpacked-$part"
    done
  ) 9> "$here/.lock" || exit 2
fi
harnesses=${HARNESSES:-6} each=${FAULTS:-164} clusters=${CLUSTERS:-6} cluster_each=${CLUSTER_FAULTS:-7} seed=${SEED:-80} settle=${SETTLE:-120}
if [ "${INSTALLED:-0}" = 0 ]; then
  export PYTHONPATH=$ROOT/tree:$here/site DYSRA_CACHE=$here/cache JAVA_HOME=$here/jre DYSRA_KAFKA_LIBS=$here/kafka-libs
fi
export PYTHONUNBUFFERED=1 RAY_AUTH_MODE=disabled RAY_USAGE_STATS_ENABLED=0 RAY_memory_monitor_refresh_ms=0 TOKENIZERS_PARALLELISM=false
# Nothing here computes much: libraries that took all cores for each process would stand in each other's way.
export OMP_NUM_THREADS=1 MKL_NUM_THREADS=1 OPENBLAS_NUM_THREADS=1 CUDA_VISIBLE_DEVICES= DYSRA_COMMIT=${COMMIT:-unknown}
# once, not once a run
python3 -c 'from models.embed import EmbedderConfig, load_embedder; load_embedder(EmbedderConfig(model="static"))' || exit 2
alone=(unshare --net --pid --fork --kill-child --mount-proc)
if ! "${alone[@]}" true 2> /dev/null; then
  echo "faults.sh: no namespaces here; runs keep apart by ports and folders alone"
  alone=()
fi
# the loopback of a new network namespace is down
lo='import fcntl, socket, struct
s = socket.socket(); fcntl.ioctl(s, 0x8914, struct.pack("16sH14x", b"lo", 0x49))'
names=() seeds=()
start() {  # start NAME SEED FAULTS SETTLE ARGUMENTS
  local name=$1 own=$2 count=$3 settled=$4 minutes
  shift 4
  minutes=$(awk "BEGIN {left = $SECONDS_LIMIT - $SECONDS - 30; print (left > 2 * $settled ? left - $settled : left / 2) / 60}")
  local resume=
  [ -f "$WORK/$name/faults.jsonl" ] && resume=--resume
  names+=("$WORK/$name") seeds+=("$own")
  mkdir -p "$WORK/$name" "$OUT/$name"
  # bash stays the first process of the namespace: it reaps what is orphaned. A killed raylet that nobody reaps counts as alive to its workers,
  # which live on, beside those that Ray starts in their places
  "${alone[@]}" bash -c '[ "$1" = 0 ] || python3 -c "$2"; shift 2; python3 -m infra.cli bench faults "$@"; exit $?' run "${#alone[@]}" "$lo" \
    --faults "$count" --seed "$own" --minutes "$minutes" --work "$WORK/$name" --out "$OUT/$name" --json $resume --set settle_s="$settled" "$@" > "$OUT/$name/log.txt" 2>&1 &
}
for number in $(seq "$harnesses"); do
  start "shards-$number" $((seed + number)) "$each" $((settle / 2)) --kinds shard,tmpfs,session,session-tmpfs --set cluster_every=0
done
number=0
while read -r kinds; do
  number=$((number + 1))
  start "cluster-$number" $((seed + 100 + number)) "$cluster_each" "$settle" --kinds "$kinds"
done < <([ "$clusters" = 0 ] || python3 -m infra.bench.faults.merged --shares "$clusters")
echo "==> ${#names[@]} runs, $((SECONDS_LIMIT - SECONDS)) s at most (load $(cut -d' ' -f1-2 /proc/loadavg), $(env -u OMP_NUM_THREADS nproc) of $(nproc --all) cores)"
tell() {
  python3 -m infra.bench.faults.merged "${names[@]}" --seeds "$(IFS=,; echo "${seeds[*]}")" --out "$OUT"
  for name in "${names[@]}"; do  # why a cluster stands is in there, and a host keeps nothing
    cat "$name"/cluster-*/ingest.log 2> /dev/null | tail -c 100000 > "$OUT/$(basename "$name")/ingest.log"
    cp -r "$name"/standstill-* "$OUT/$(basename "$name")/" 2> /dev/null
  done
}
while [ -n "$(jobs -r)" ]; do
  sleep 10
  [ "$SECONDS" -gt "$SECONDS_LIMIT" ] && { echo "faults.sh: the time is over; runs end as they are"; kill $(jobs -pr); sleep 15; kill -KILL $(jobs -pr); break; }
  [ $((SECONDS / 10 % 3)) = 0 ] && tell
done
wait
tell
wanted=$((harnesses * each + clusters * cluster_each)) done=$(wc -l < "$OUT/faults.jsonl")
[ "$done" -ge "$wanted" ] || { echo "faults.sh: $done of $wanted faults"; exit 1; }
