#!/bin/bash
# made_questions.sh: questions made from Wikipedia sentences for policy.sh with MADE=1: $ROOT/made, $ROOT/made/ready once it is whole.
# Wants policy.sh's parts joined and the reader (reader.sh). SENTENCES (60000) and TWO_HOP (20000) links of two sentences are asked of, on all GPUs that
# start.sh gives (0,1,2,3), or DEVICES="0 1": one process each; the maker is tuned on the first. WORKERS (12) cut and search. OPTIONS/OPTIONS2: more of
# the verbs questions/candidates. It goes on where it was ended; what the clock left undone is left out. 60,000 sentences alone took one H200 some 250 s:
# 130 to tune, make and judge, 120 for candidates. On four: SENTENCES=120000 TWO_HOP=60000 WORKERS=30 SECONDS 300 or more.
set -u
ROOT=${LEASE_ROOT:-/tmp}
cd "$ROOT/tree" || exit 2
made=$ROOT/made
wait_for() {  # wait_for FILE SECONDS
  for _ in $(seq "$2"); do [ -f "$1" ] && return 0; sleep 1; done
  echo "made_questions.sh: $1 is not there after $2 s; look at the log of the job that makes it" >&2
  return 1
}
[ -f "$made/ready" ] && exit 0
wait_for "$ROOT/carried/joined" "${WAIT:-120}" || exit 2
wait_for "$ROOT/reader/ready.json" "${WAIT:-120}" || exit 2
export PYTHONPATH="$ROOT/carried/site:$ROOT/reader/site"
export TOKENIZERS_PARALLELISM=true  # the device's process makes tokens; workers turn it off for themselves
export PYTORCH_CUDA_ALLOC_CONF=${PYTORCH_CUDA_ALLOC_CONF:-expandable_segments:True}
read -r -a more <<< "${OPTIONS:-}"
read -r -a more2 <<< "${OPTIONS2:-}"
device=(); [ -n "${DEVICE:-}" ] && device=(--device "$DEVICE")
given=${CUDA_VISIBLE_DEVICES:-}
read -r -a devices <<< "${DEVICES:-${given//,/ }}"
[ ${#devices[@]} -gt 0 ] || devices=("${given:-0}")
turns=${#devices[@]} parts=()
left=$((SECONDS_LIMIT - SECONDS - 20))
for turn in "${!devices[@]}"; do
  part=(); [ "$turns" -eq 1 ] || part=(--part "$turn/$turns")
  CUDA_VISIBLE_DEVICES=${devices[$turn]} python3 -m infra.training.made_questions questions --carried "$ROOT/carried" --reader "$ROOT/reader" --out "$made" \
    --sentences "${SENTENCES:-60000}" --two-hop "${TWO_HOP:-20000}" --seconds $((left * 55 / 100)) "${part[@]}" "${device[@]}" "${more[@]}" &
  parts+=($!)
done
failed=0
for each in "${parts[@]}"; do wait "$each" || failed=$((failed + 1)); done
if [ "$turns" -gt 1 ]; then
  # one that failed leaves its shards out; the others' are enough
  [ "$failed" -eq 0 ] || echo "made_questions.sh: $failed of $turns parts failed; going on with what is there" >&2
  python3 -m infra.training.made_questions gather --out "$made" || exit 3
elif [ "$failed" -gt 0 ]; then
  exit 3
fi
left=$((SECONDS_LIMIT - SECONDS - 10))
CUDA_VISIBLE_DEVICES=${devices[0]} python3 -m infra.training.made_questions candidates --carried "$ROOT/carried" --out "$made" --processes "${WORKERS:-12}" \
  --seconds "$left" "${device[@]}" "${more2[@]}" || exit 3
mkdir -p "$OUT"
cp "$made/manifest.json" "$made/maker/record.json" "$OUT/"
date +%s > "$made/ready"
