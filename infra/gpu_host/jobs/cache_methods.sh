#!/bin/bash
# cache_methods.sh: missing rows of the cache table on one H200, in stages (STAGES), each going on where it stopped:
# adapted (the adapted reader, whole grid), base (the base reader, likewise; with KNOWN=1 RazorAttention at 50% and cases to be read anew, 90 s computed),
# codes (learned compressors and weighted SVD, base reader), kvpress (its presses, outside peer).
# Wants the parts cache-rows (cases, rows of the embedding that they need, weights of ranker and compressors), kvpress, reader-*, weights (reader-lora) and reader.sh's folder $ROOT/reader.
# One job of all: STAGES="codes kvpress adapted", SECONDS 430; each stage ends by its share: CODES_S (110), KVPRESS_S (100), adapted what is left.
# Side by side, a job a stage with a NAME of its own: CODES_S and KVPRESS_S may then be the whole of SECONDS. WORKERS (8), KVPRESS_WORKERS (6).
# A stage that is given again goes on with the same number of workers (a grid's rows are kept by worker).
# KNOWN=1: rows in the part's known.jsonl.gz (kept rows; infra.bench.cache_methods_known writes it) are not made again: codes whole, 38% of adapted, 97% of kvpress.
# GPU memory: codes and adapted 34 to 50 GB with 8 workers. kvpress KVPRESS_GIB (9) a worker, so 60 GB with 6 (computed; without that bound 14 to 33 a worker, 100
# to 122 in all, which ended the jobs beside it on 2026-11-30). Rows of all stages are written as they come: home.sh brings them at any time.
# At home `python -m infra.bench.cache_methods_collect` joins everything. Whole on a quiet host: codes 260 s, kvpress 160, adapted 320 (from parts of each, 2026-11-30).
set -u
ROOT=${LEASE_ROOT:-/tmp}
cd "$ROOT/tree" || exit 2
began=$(date +%s) rc=0
left() { echo $((SECONDS_LIMIT - 15 - ($(date +%s) - began))); }
least() { [ "$1" -lt "$2" ] && echo "$1" || echo "$2"; }
carried=$ROOT/parts/cache-rows
export PYTHONPATH="$ROOT/carried/site:$ROOT/reader/site"
model=$ROOT/reader-cache
# build/head has no weights
[ -d "$carried/weights" ] && cp -r --update=none "$carried/weights/." models/weights/
for _ in $(seq 60); do [ -f "$ROOT/reader/ready.json" ] && break; sleep 1; done
[ -f "$ROOT/reader/ready.json" ] || { echo "cache_methods.sh: $ROOT/reader is not ready; run reader.sh first and look at its log" >&2; exit 2; }
(  # made once, also where several of these jobs start side by side
  flock 9
  [ -f "$model/ready.json" ] && exit
  rm -rf "$model"
  python3 -m infra.training.reader_parts adopt --other "$ROOT/reader" --supplement "$carried/rows.npz" --to "$model"
) 9> "$model.lock" || exit 2
known=()
[ -n "${KNOWN:-}" ] && known=(--known "$carried/known.jsonl.gz")
grid() {  # grid NAME SECONDS [OPTION ...]: rows under $OUT/NAME, which come home as they are written
  local name=$1 seconds=$2
  shift 2
  [ "$seconds" -lt 40 ] && { echo "$name: $seconds s left, too few to begin"; rc=5; return; }
  python3 -m infra.bench.cache_methods_gpu --carried "$carried" --cases "$WORK/cases" --model "$model" --out "$OUT/$name" \
    --limit "$seconds" --workers "${WORKERS:-8}" --device "${DEVICE:-cuda}" "$@" "${known[@]}" || rc=$?
}
for stage in ${STAGES:-codes kvpress adapted}; do
  echo "== $stage, $(left) s left"
  case $stage in
    adapted) grid adapted "$(left)" --readers adapted ;;
    base) grid base "$(least "${BASE_S:-110}" "$(left)")" --readers base ;;
    codes) grid codes "$(least "${CODES_S:-110}" "$(left)")" --readers base \
      --methods ours_weighted,ours_projection,ours_autoencoder ;;
    kvpress)
      [ -d "$ROOT/kvpress/kvpress" ] || python3 -c "import sys, tarfile; tarfile.open(sys.argv[1]).extractall(sys.argv[2], filter='data')" "$ROOT/parts/kvpress/part-00" "$ROOT/kvpress" || { rc=2; continue; }
      [ -d "$WORK/cases" ] || python3 -c "from pathlib import Path; from infra.bench.cache_methods_pack import unpack; unpack(Path('$carried'), Path('$WORK/cases'))"
      python3 -m infra.bench.peers.kvpress_rows --model "$model" --cases "$WORK/cases" --site "$ROOT/kvpress" --out "$OUT/kvpress" \
        --seconds "$(least "${KVPRESS_S:-100}" "$(left)")" --workers "${KVPRESS_WORKERS:-6}" \
        --memory-gib "${KVPRESS_GIB:-9}" --device "${DEVICE:-cuda}" "${known[@]}" || rc=$? ;;
    *) echo "cache_methods.sh: given $stage; allowed: adapted base codes kvpress" >&2; exit 2 ;;
  esac
done
exit $rc
