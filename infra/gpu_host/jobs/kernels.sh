#!/bin/bash
# kernels.sh: new forms of the kernels on one GPU and 12 cores. Without PICK their agreement tests (tests-*.log, .rc; 90 s at most), then
# their times beside what ships (forms.json, as it goes). PICK=1: the rows that the bars read (kept.json: decode at 128k and 1M, sparse
# attention at 64k). Nothing else may run on this GPU. Given again it leaves what is whole.
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
check() { # a name, and which tests
  [ "$(cat "$OUT/tests-$1.rc" 2>/dev/null)" = 0 ] && return
  timeout -k 5 90 python3 -m pytest -m gpu -q -rfE -p no:cacheprovider --confcutdir tests/models/kernels tests/models/kernels -k "$2" > "$OUT/tests-$1.log" 2>&1
  echo $? > "$OUT/tests-$1.rc"
}
check forward-bf16 "hopper_kernel and [3- and bfloat16-128" &
check forward-fp16 "hopper_kernel and [3- and .float16-128" &
check forward-64 "hopper_kernel and [3- and -64]" &
check backward-bf16 "hopper_gradients and [3- and bfloat16-128" &
check backward-fp16 "hopper_gradients and [3- and .float16-128" &
check backward-64 "hopper_gradients and [3- and -64]" &
check steps "retrieve_decode and every_form" &
check steps-wide "retrieve_decode and every_width" &
check order "beside or replayed" &
wait
tail -qn 1 "$OUT"/tests-*.log
python3 -m infra.bench.gpu_session forms --out "$OUT" --limit $(($(left) - 5))
