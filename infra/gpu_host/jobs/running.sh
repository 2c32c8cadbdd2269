#!/bin/bash
# running.sh: the running system without network: ingest against the bare loop over many cores, the soak, published → searchable with MiniLM
# and searches on a GPU; soak-long, ten minutes beside other jobs; search-gpu, 10 million vectors on a GPU that nobody else uses. STAGES (of
# ingest soak freshness soak-long search-gpu, in the order given), SIZE (host: 32 cores; small: a try on two).
# CORES=40-63: only these cores, as taskset takes them (soak-long is sized to them: Ray, Java and the numbers of processes; trainings keep the others).
# Parts ingest-*: host-java, host-ray, host-store and host-minilm as infra/bench/host_pack.py --carry dealt them. Seconds: ingest 190 on 32 cores (REPEATS=2: 145; ARTICLES=200000 on 16), soak
# 140, freshness 152 where it is quiet (give 200 s: cut at 155 beside others), soak-long 760 (it takes what it is given, 660 of it under load; what comes after the first 330 counts), search-gpu 100. Ingest wants the cores to itself. What a stage found is in $OUT (host.json, host.md, host.log) as soon as it ends; started again it does what is left.
set -u
if [ -n "${CORES:-}" ] && [ -z "${PINNED:-}" ]; then  # all that follows inherits it
  PINNED=1 exec taskset -c "$CORES" bash "$0"
fi
ROOT=${LEASE_ROOT:-/tmp}
cd "$ROOT/tree" || exit 2
here=$ROOT/host
mkdir -p "$here"
(  # one at a time: other jobs use the same folder
  flock -w 120 9
  for part in java store ray minilm; do  # minilm is for freshness alone
    [ -f "$here/.unpacked-$part" ] && continue
    if python3 infra/bench/host_session.py unpack "$ROOT"/parts/ingest-*/host-$part --target "$here"; then touch "$here/.unpacked-$part"
    elif [ $part != minilm ]; then exit 2; fi
  done
) 9> "$here/.lock" || exit 2
if [ "${SIZE:-host}" = small ]; then
  ingest='bench ingest --articles 1500 --set partitions=4 --set ingesters=1 --set shards=2 --set producers=2 --set loops=2 --set repeats=1
    --set shapes=2x1x2'
  soak='bench soak --articles 2000 --set partitions=4 --set ingesters=2 --set shards=2 --set near_duplicate_shards=2 --set producers=2
    --set retained_s=12 --set window_s=3 --set seconds=30'
  freshness='bench freshness --set embedder=none --set seconds=5 --set rates=20 --set searches=5'
  soak_long='bench soak --articles 100000 --set partitions=4 --set ingesters=2 --set shards=2 --set near_duplicate_shards=2 --set producers=2
    --set retained_s=6 --set window_s=2 --set seconds=60 --set warm_s=15 --set ahead=20000'
  search_gpu='python infra.bench.search_gpu --rows 20000 --device cpu:0 --shard-chunks 2000 --runs 3 --stages speed'
else
  # 24 cores or more: 16 ingesters, 16 shards, 4 keepers, 28 producers, as all kept figures; fewer: two thirds of the cores
  all=$(env -u OMP_NUM_THREADS nproc) ingesters=16 keepers=4 producers=28
  if [ "$all" -lt 24 ]; then ingesters=$((all * 2 / 3 > 1 ? all * 2 / 3 : 1)) keepers=$((all / 6 > 1 ? all / 6 : 1)) producers=$((all > 2 ? all : 2)); fi
  ingest="bench ingest --articles ${ARTICLES:-400000} --set partitions=$((3 * ingesters)) --set ingesters=$ingesters --set shards=$ingesters
    --set near_duplicate_shards=$keepers --set producers=$producers --set inflight=8192 --set commit_ms=1000 --set repeats=${REPEATS:-3} --set seconds=200"
  soak='bench soak --articles 720000 --set partitions=20 --set ingesters=10 --set shards=8 --set near_duplicate_shards=3 --set producers=12
    --set retained_s=12 --set window_s=3 --set seconds=135'
  freshness='bench freshness --set embedder=minilm --set seconds=30 --set rates=50,200 --set searches=20 --set device=cuda:0'
  # by cores, 24 at most: 8 ingesters, 6 shards, 2 keepers, 10 producers, where a shard is busiest with commits of its keyword index
  n=$(env -u OMP_NUM_THREADS nproc) && [ "$n" -gt 24 ] && n=24
  ingesters=$((n / 3 > 1 ? n / 3 : 1)) shards=$((n / 4 > 1 ? n / 4 : 1)) keepers=$((n / 12 > 1 ? n / 12 : 1)) producers=$((n * 5 / 12 > 1 ? n * 5 / 12 : 1))
  # what is left after start, the records that are ahead, and the end: 80 s
  lasts=$((SECONDS_LIMIT - SECONDS - 80)) && [ "$lasts" -gt 660 ] && lasts=660
  warm=${WARM:-330} && [ "$lasts" -lt $((warm + 120)) ] && warm=$((lasts / 2 > 0 ? lasts / 2 : 1))
  soak_long="bench soak --articles 20000000 --set partitions=$((3 * ingesters)) --set ingesters=$ingesters --set shards=$shards
    --set near_duplicate_shards=$keepers --set producers=$producers
    --set retained_s=12 --set window_s=3 --set seconds=$lasts --set warm_s=$warm --set ahead=60000"
  search_gpu='python infra.bench.search_gpu --rows 10000000 --device cuda:0 --shard-chunks 50000 --stages speed,proof,live'
fi
# shards search on the GPU and claim none: Ray would hide it from them
export RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO=0
failed=0
read -r -a stages <<< "${STAGES:-ingest soak freshness}"
for stage in "${stages[@]}"; do
  [ -f "$WORK/$stage.done" ] && continue
  niceness=0
  case $stage in
    ingest) command=$ingest limit=230 ;;
    soak) command=$soak limit=200 ;;
    freshness) command=$freshness limit=220 ;;
    soak-long) command=$soak_long limit=750 niceness=10 ;;  # jobs beside it go first
    search-gpu) command=$search_gpu limit=180 ;;
    *) echo "running.sh: given stage $stage; allowed: ingest soak freshness soak-long search-gpu" >&2; exit 2 ;;
  esac
  left=$((SECONDS_LIMIT - SECONDS))
  [ "$limit" -gt "$left" ] && limit=$left
  if [ "$limit" -lt 45 ]; then echo "running.sh: $stage left out, $left s are left"; failed=1; continue; fi
  echo "==> $stage, at most $limit s (load $(cut -d' ' -f1-2 /proc/loadavg), $(env -u OMP_NUM_THREADS nproc) of $(nproc --all) cores)"
  python3 infra/bench/host_session.py run "$(echo $command)" --target "$here" --out "$OUT" --seconds "$limit" --nice $niceness --commit "${COMMIT:-}" \
    && touch "$WORK/$stage.done" || failed=1
done
exit $failed
