#!/bin/bash
# kernels.sh: forms of the kernels on one GPU and 12 cores. Without PICK agreement tests of a step's (tests-*.log, .rc; 150 s at most), then
# the times of all beside what ships (forms.json, as it goes). PICK=1: the rows that the bars read (kept.json: decode at 128k and 1M, sparse
# attention at 64k). ROWS=1: steps of many rows and over landmarks' codes in every form (rows.json; 130 s at most), then their tests
# (gpu_tests_decode_forms.log). Nothing else may run on this GPU. Given again it leaves what is whole.
set -u
ROOT=${LEASE_ROOT:-/tmp}
cd "$ROOT/tree" || exit 2
export PYTHONPATH="$ROOT/carried/site${PYTHONPATH:+:$PYTHONPATH}"
limit=${SECONDS_LIMIT:-240}
started=$(date +%s)
left() { echo $((limit - ($(date +%s) - started))); }
if [ -n "${PICK:-}" ]; then
  [ -f "$OUT/kept.whole" ] && exit 0
  python3 -m infra.bench.gpu_session kept --out "$OUT" --limit $(($(left) - 5)) && touch "$OUT/kept.whole"
  exit
fi
if [ -n "${ROWS:-}" ]; then
  [ -f "$OUT/rows.json" ] || python3 -m infra.bench.gpu_session rows --out "$OUT" --limit $(($(left) < 135 ? $(left) - 5 : 130))
  python3 -m infra.bench.gpu_session tests decode_forms --out "$OUT" --limit $(($(left) - 5))
  tail -n 3 "$OUT/gpu_tests_decode_forms.log"
  exit
fi
check() { # a name, and which tests
  [ "$(cat "$OUT/tests-$1.rc" 2>/dev/null)" = 0 ] && return
  timeout -k 5 150 python3 -m pytest -m gpu -q -rfE -p no:cacheprovider --confcutdir tests/models/kernels tests/models/kernels -k "$2" > "$OUT/tests-$1.log" 2>&1
  echo $? > "$OUT/tests-$1.rc"
}
check steps "retrieve_decode and (every_form or the_form)" &
check steps-wide "retrieve_decode and every_width" &
check order "retrieve_decode and replayed" &
wait
tail -qn 1 "$OUT"/tests-*.log
python3 -m infra.bench.gpu_session forms --out "$OUT" --limit $(($(left) - 5))
