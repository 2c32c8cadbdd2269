#!/bin/bash
# policy_folds.sh: readers for policy.sh, each trained without one part of the policy's questions: $ROOT/folds, $ROOT/folds/ready.
# Wants policy.sh's parts joined, the part fold-readers, policy.sh's material (100 s; waited for: long contexts are made of its candidates, and
# readers are stopped by its questions) and, once its rows are made (one to two minutes), the reader (reader.sh). READERS (4; 2: halves, as before):
# parts. They train side by side, dealt over the job's GPUs (start.sh NAME 0,1,2,3 ...), each 14M tokens; TRAIN (220): seconds, at most (some 90 s
# with a GPU each, 120 with two, 200 with one). WORKERS (14) make rows. It goes on where it was ended. MORE: options of `make` (--shipped-reads with
# no set: RealTimeQA and newswire are read by fold readers too, as before 2026-12-01). Then all readers read test questions side by side (equal.json),
# by number of sentences too (slopes.json); who_reads.json tells who reads what. Give 460 s. Start what reads with FOLDS=1 FOLDS_WAIT=450.
set -u
ROOT=${LEASE_ROOT:-/tmp}
cd "$ROOT/tree" || exit 2
folds=$ROOT/folds
extra=$ROOT/parts/fold-readers
wait_for() {  # wait_for FILE SECONDS
  for _ in $(seq "$2"); do [ -f "$1" ] && return 0; sleep 1; done
  echo "policy_folds.sh: $1 is not there after $2 s" >&2
  return 1
}
wait_for "$ROOT/carried/joined" 120 || exit 2
export PYTHONPATH="$ROOT/carried/site:$ROOT/reader/site"
material=$ROOT/work/policy/material
wait_for "$material/manifest.json" "${MATERIAL_WAIT:-300}" || exit 2
python3 -m infra.training.reader_folds make --carried "$ROOT/carried" --extra "$extra" --material "$material" --out "$WORK/rows" \
  --folds "${READERS:-4}" --processes "${WORKERS:-14}" ${MORE:-} || exit 2
wait_for "$ROOT/reader/ready.json" $((SECONDS_LIMIT - SECONDS)) || exit 2
python3 -m infra.training.reader_folds train --reader "$ROOT/reader" --rows "$WORK/rows" --work "$WORK" --out "$folds" \
  --seconds "${TRAIN:-220}" --device "${DEVICE:-cuda}"
rc=$?
mkdir -p "$OUT"
cp "$folds"/*.json "$folds"/*.log "$OUT/" 2>/dev/null
[ $rc = 0 ] || exit $rc
date +%s > "$folds/ready"
for name in "$folds"/fold*/; do cp -r "$name" "$OUT/"; done
python3 -m infra.training.policy_readers --material "$material" --reader "$ROOT/reader" --fold-readers "$folds" --out "$folds/equal.json" --slopes "$folds/slopes.json" \
  --device "${DEVICE:-cuda}" || exit 3
cp "$folds"/{equal,slopes,who_reads}.json "$OUT/"
