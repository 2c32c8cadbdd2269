#!/bin/bash
# made_questions.sh: questions made from Wikipedia sentences for policy.sh with MADE=1: $ROOT/made, $ROOT/made/ready once it is whole.
# Wants policy.sh's parts joined and the reader (reader.sh). SENTENCES (60000), WORKERS (12) cut and search, OPTIONS/OPTIONS2: more of the verbs
# questions/candidates. It goes on where it was ended. Alone on an H200 some 250 s: 130 to tune, make and judge, 120 for candidates.
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
left=$((SECONDS_LIMIT - SECONDS - 20))
python3 -m infra.training.made_questions questions --carried "$ROOT/carried" --reader "$ROOT/reader" --out "$made" \
  --sentences "${SENTENCES:-60000}" --seconds $((left * 55 / 100)) "${device[@]}" "${more[@]}" || exit 3
left=$((SECONDS_LIMIT - SECONDS - 10))
python3 -m infra.training.made_questions candidates --carried "$ROOT/carried" --out "$made" --processes "${WORKERS:-12}" \
  --seconds "$left" "${device[@]}" "${more2[@]}" || exit 3
mkdir -p "$OUT"
cp "$made/manifest.json" "$made/maker/record.json" "$OUT/"
date +%s > "$made/ready"
