#!/bin/bash
# issue_four.sh: what issue 4's Show wants of a GPU beside the cache table (cache_methods.sh), in stages (STAGES, in this order):
# kernels     sparse attention, decode, landmarks with every peer: all named ratios (bench.json; GPU and host quiet; no parts; 76 s on 16 quiet cores, 161 to 200 s before). With the part
#             flashinfer FlashInfer stands beside decode too: start flashinfer.sh as a job of its own while other parts are carried (it compiles)
# agreement   captured against eager decoding, latents unpacked and as factors, both key frames (2 × 60 s; wants reader.sh)
# session     session-bytes to 16,777,216 tokens, evictions begun a block ahead (GPU and host quiet; 140 s before; wants reader.sh)
# tests       every test marked gpu, its files side by side, sparse attention's (they compile most) in SPARSE_WORKERS (8) processes, the other kernels' in
#             KERNEL_WORKERS (3; one each was too few on 2026-12-01: landmarks 143 s, retrieve and decode not through at 160; three were not tried there yet):
#             gpu_tests.log (GROUPS_ONLY=sparse: those alone). The part weights-subq and subq-* add the
#             shipped weights at 1M tokens, running.sh's $ROOT/host/site (faiss) the vector indexes; fla's and the five-minute run are apart
# minutes     subq trained for five minutes, then 100 keys of known wording at 1M tokens (370 s; parts subq-a, -b, -c; GPU to itself)
# What a stage left whole is passed over (NAME.done); a stage that has too few seconds is named and the ones behind it go on.
# A stage's own limit: KERNELS_S, AGREEMENT_S (a frame), SESSION_S, TESTS_S, MINUTES_S.
set -u
ROOT=${LEASE_ROOT:-/tmp}
cd "$ROOT/tree" || exit 2
export PYTHONPATH="$ROOT/carried/site:$ROOT/reader/site:$ROOT/host/site"
model=${MODEL:-$ROOT/reader} device=${DEVICE:-cuda} began=$(date +%s) rc=0
left() { echo $((SECONDS_LIMIT - 5 - ($(date +%s) - began))); }
stage() {  # stage NAME SECONDS COMMAND ...: within its time and the job's
  local name=$1 seconds=$2 had
  shift 2
  [ -f "$OUT/$name.done" ] && return
  had=$(left)
  [ "$had" -lt "$seconds" ] && seconds=$had
  [ "$seconds" -lt "${LEAST_S:-20}" ] && { echo "$name: $seconds s left, too few to begin"; rc=5; return; }
  timeout -k 5 "$seconds" "$@" > "$OUT/$name.log" 2>&1
  local ended=$?
  echo "$name: rc=$ended after $((had - $(left))) s: $(tail -n 1 "$OUT/$name.log" | cut -c1-300)"
  [ $ended = 0 ] || rc=$ended
  # 1 is a verdict where figures are written: a bound or a test does not hold; else it is a traceback
  if [ $ended = 0 ] || { [ $ended = 1 ] && { [ -f "$OUT/$name.json" ] || [ "$name" = tests ]; }; }; then touch "$OUT/$name.done"; fi
}
reader() {  # the reader's folder, waited for
  [ -n "${MODEL:-}" ] && return
  for _ in $(seq 60); do [ -f "$ROOT/reader/ready.json" ] && return; sleep 1; done
  echo "issue_four.sh: $ROOT/reader is not ready; run reader.sh first and look at its log" >&2
  exit 2
}
kernels() {
  local began
  began=$(date +%s)
  if [ -f "$ROOT/parts/flashinfer/part-00" ] && FLASHINFER_S=${FLASHINFER_S:-50} bash infra/gpu_host/jobs/flashinfer.sh; then
    # a way that is not ready is told as such, not compiled in the middle of a measurement
    export PYTHONPATH="$PYTHONPATH:$ROOT/flashinfer" FLASHINFER_WORKSPACE_BASE="$ROOT/flashinfer-built" FLASHINFER_DISABLE_JIT=1
  fi
  # whole only where all three are: what was cut off stands in bench.json all the same
  python3 -m infra.bench.gpu_session bench --out "$OUT/kernels" --limit "$(($1 - ($(date +%s) - began)))" || return 2
  python3 -c "import json, sys; found = json.load(open(sys.argv[1]))['results']; sys.exit(0 if len(found) == 3 else 4)" "$OUT/kernels/bench.json"
}
agreement() {  # agreement FRAME
  python3 -m infra.bench.decode_agreement --model "$model" --tokens "${TOKENS:-16384}" --read-block "${READ_BLOCK:-2048}" --count 32 \
    --device "$device" --out "$OUT/$1.json" --cache "{\"key_frame\": \"$1\"}"
}
session() {  # once more where it was cut off: rows are written as they come, and read again from the beginning
  python3 -m infra.bench.session_bytes --out "$OUT/session_bytes" --model "$model" --tokens "${SESSION_TOKENS:-16777216}" \
    --read-block "${SESSION_BLOCK:-16384}" --seconds "$1" --device "$device"
}
told() {  # told LOG: a line a test; of a log that was cut off what it had told so far
  if grep -q '^=* *short test summary info' "$1"; then grep -E '^(PASSED|FAILED|ERROR|SKIPPED)' "$1"; return; fi
  sed -nE -e '/^(PASSED|FAILED|ERROR|SKIPPED) /p' -e 's/^\[gw[0-9]+\] \[ *[0-9]+%\] (PASSED|FAILED|ERROR|SKIPPED) (.*[^ ]) *$/\1 \2/p' \
    -e 's/^(tests\/.*::.*) (PASSED|FAILED|ERROR|SKIPPED)( .*)?$/\2 \1/p' "$1"
}
tests() {  # a process a group, each with its log; then one log of all
  local name files most=$1 worst=0 run=() ids=() spread
  mkdir -p "$OUT/tests"
  if [ -d "$ROOT/parts/weights-subq" ]; then
    mkdir -p models/weights/subq && cp "$ROOT"/parts/weights-subq/* models/weights/subq/
    mkdir -p "$ROOT/subq-data" && cp "$ROOT"/parts/subq-[abc]/* "$ROOT/subq-data/" && export DYSRA_SUBQ_DATA="$ROOT/subq-data"
  fi
  while read -r name files; do
    [ -n "${GROUPS_ONLY:-}" ] && [[ " $GROUPS_ONLY " != *" $name "* ]] && continue
    case $name in sparse) spread=${SPARSE_WORKERS:-8} ;; landmarks|retrieve|decode) spread=${KERNEL_WORKERS:-3} ;; *) spread=1 ;; esac
    if [ "$spread" -gt 1 ] && python3 -c 'import xdist' 2> /dev/null; then spread="-n $spread"; else spread=; fi
    # shellcheck disable=SC2086 # files are several words
    timeout -k 5 "$most" python3 -m pytest -o addopts= -m "${MARK:-gpu}" -v -rfEsp $spread -p no:cacheprovider ${WORDS:+-k "$WORDS"} $files > "$OUT/tests/$name.log" 2>&1 &
    run+=("$!") ids+=("$name")
  done <<'GROUPS_OF_FILES'
sparse --confcutdir tests/models/kernels tests/models/kernels/test_sparse_attention.py
landmarks --confcutdir tests/models/kernels tests/models/kernels/test_landmark_topk.py
retrieve --confcutdir tests/models/kernels tests/models/kernels/test_retrieve_decode.py
decode --confcutdir tests/models/kernels tests/models/kernels/test_latent_decode.py tests/models/kernels/test_decode_forms.py tests/models/kernels/test_latent_decode_of_sessions.py
sessions --confcutdir tests/models tests/models/hf/test_backbone.py tests/models/hf/test_captured.py tests/models/hf/test_causal.py tests/models/hf/test_evictions_ahead.py tests/models/hf/test_fused_latents.py tests/infra/bench/test_decode_agreement.py
subq --confcutdir tests/models tests/models/subq/test_gpu.py
vectors --confcutdir tests/pipeline tests/pipeline/store/test_vector_index.py
GROUPS_OF_FILES
  for at in "${!run[@]}"; do
    wait "${run[$at]}"
    local code=$?
    [ $code -gt $worst ] && worst=$code
    echo "${ids[$at]}: rc=$code: $(tail -n 1 "$OUT/tests/${ids[$at]}.log")"
  done > "$OUT/tests/ended"
  { cat "$OUT/tests/ended"; echo; for name in "$OUT"/tests/*.log; do told "$name"; done | sort; } > "$OUT/gpu_tests.log"
  cat "$OUT/tests/ended"
  return $worst
}
minutes() {
  mkdir -p "$ROOT/subq-data" && cp "$ROOT"/parts/subq-[abc]/* "$ROOT/subq-data/" || return 2
  local common=(--data "$ROOT/subq-data" --work "$WORK/subq" --out "$OUT/minutes" --seed "${SEED:-3}" --lookahead "${LOOK:-32}" --lookbehind "${LOOK:-32}" --device "$device")
  # shellcheck disable=SC2086 # a try on a CPU adds words
  python3 -m infra.training.subq_gpu train "${common[@]}" --minutes "${MINUTES:-5}" --call-seconds "$1" ${TRY:-} || return
  # shellcheck disable=SC2086
  python3 -m infra.training.subq_gpu needles "${common[@]}" --lengths "${LENGTHS:-1M}" --cells known-5 --trials "${TRIALS:-100}" --keys 0 ${TRY:-}
}
export OUT WORK ROOT model device
export -f kernels agreement session told tests minutes
for name in ${STAGES:-kernels agreement session tests minutes}; do
  case $name in
    kernels) most=${KERNELS_S:-270}; stage kernels "$most" bash -c 'kernels "$1"' _ $((most - 10)) ;;
    agreement) reader; for frame in before_rotary within_block; do stage "$frame" "${AGREEMENT_S:-80}" bash -c 'agreement "$1"' _ "$frame"; done ;;
    session) reader; most=${SESSION_S:-220}; stage session "$most" bash -c 'session "$1"' _ $((most - 20)) ;;
    tests) most=${TESTS_S:-240}; stage tests "$most" bash -c 'tests "$1"' _ $((most - 10)) ;;
    minutes) most=${MINUTES_S:-430}; stage minutes "$most" bash -c 'minutes "$1"' _ $((most - 10)) ;;
    *) echo "issue_four.sh: given $name; allowed: kernels agreement session tests minutes" >&2; exit 2 ;;
  esac
done
exit $rc
