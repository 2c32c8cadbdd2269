#!/bin/bash
# policy_folds.sh: two readers for policy.sh, each trained without one half of the policy's questions: $ROOT/folds, $ROOT/folds/ready.
# Wants policy.sh's parts joined, the part fold-readers, policy.sh's material (100 s; waited for: long contexts are made of its candidates) and,
# once its rows are made (two minutes), the reader (reader.sh). TRAIN (260): seconds of training, both on one GPU; WORKERS (14) make rows. It goes
# on where it was ended. Then all three read test questions (equal.json), by number of sentences too (slopes.json). MORE: options of `make`.
# Ready some 500 s after policy.sh began: start what reads with FOLDS=1 FOLDS_WAIT=450.
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
  --processes "${WORKERS:-14}" ${MORE:-} || exit 2
wait_for "$ROOT/reader/ready.json" $((SECONDS_LIMIT - SECONDS)) || exit 2
python3 -m infra.training.reader_folds train --reader "$ROOT/reader" --rows "$WORK/rows" --work "$WORK" --out "$folds" \
  --seconds "${TRAIN:-260}" --device "${DEVICE:-cuda}"
rc=$?
mkdir -p "$OUT"
cp "$folds"/*.json "$folds"/*.log "$OUT/" 2>/dev/null
[ $rc = 0 ] || exit $rc
date +%s > "$folds/ready"
for name in fold0 fold1; do cp -r "$folds/$name" "$OUT/"; done
python3 -m infra.training.policy_readers --material "$material" --reader "$ROOT/reader" --fold-readers "$folds" --out "$folds/equal.json" --slopes "$folds/slopes.json" \
  --device "${DEVICE:-cuda}" || exit 3
cp "$folds/equal.json" "$folds/slopes.json" "$OUT/"
