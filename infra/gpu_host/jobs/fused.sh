#!/bin/bash
# fused.sh: latents as factors in a session's decoding (backbone.fused_latents), against latents unpacked: agreement and ms a token in both key
# frames, the GPU tests, and where SESSION=1 session-bytes to 262,144 tokens (fused_ms beside captured_ms). On a GPU that does nothing else.
# Wants $ROOT/reader (reader.sh). 75 s a stage at most (meant to take 60), some 200 s in all (SECONDS 290 with SESSION=1); a stage that is written is passed over.
set -u
ROOT=${LEASE_ROOT:-/tmp}
cd "$ROOT/tree" || exit 2
export PYTHONPATH="$ROOT/carried/site:$ROOT/reader/site"
for _ in $(seq 60); do [ -f "$ROOT/reader/ready.json" ] && break; sleep 1; done
[ -f "$ROOT/reader/ready.json" ] || { echo "fused.sh: $ROOT/reader is not ready; run reader.sh first and look at its log" >&2; exit 2; }
began=$(date +%s) rc=0
stage() {  # stage NAME SECONDS COMMAND ...: within its time and the job's; NAME.done when it was well
  local name=$1 seconds=$2 left=$((SECONDS_LIMIT - 5 - ($(date +%s) - began)))
  shift 2
  [ -f "$OUT/$name.done" ] && return
  [ "$left" -lt "$seconds" ] && seconds=$left
  [ "$seconds" -lt 10 ] && { echo "$name: $seconds s left, too few to begin"; rc=5; return; }
  timeout -k 5 "$seconds" "$@" > "$OUT/$name.log" 2>&1
  local ended=$?
  echo "$name: rc=$ended after $(($(date +%s) - began)) s: $(tail -n 1 "$OUT/$name.log" | cut -c1-300)"
  [ $ended = 0 ] || rc=$ended
  # 1 is a verdict too: figures are written, and a bound or a test does not hold
  [ $ended -le 1 ] && touch "$OUT/$name.done"
}
agree=(python3 -m infra.bench.decode_agreement --model "${MODEL:-$ROOT/reader}" --tokens ${TOKENS:-16384} --read-block "${READ_BLOCK:-2048}" --count 32 --device "${DEVICE:-cuda}")
stage before_rotary 75 "${agree[@]}" --out "$OUT/before_rotary.json"
stage within_block 75 "${agree[@]}" --out "$OUT/within_block.json" --cache '{"key_frame": "within_block"}'
stage tests 60 python3 -m pytest -q -m gpu --confcutdir tests/models tests/models/hf/test_fused_latents.py tests/infra/bench/test_decode_agreement.py
if [ -n "${SESSION:-}" ]; then
  stage session 75 python3 -m infra.bench.session_bytes --out "$OUT/session" --model "${MODEL:-$ROOT/reader}" --tokens 262144 --seconds 60 --device "${DEVICE:-cuda}"
fi
exit $rc
