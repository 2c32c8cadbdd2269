#!/bin/bash
# subq.sh: one seed of subq with lookahead. SEED; MINUTES: train so long; LENGTHS: then needles of these lengths (ALSO: other searches).
# ROUTING (0.25): that share of the run first teaches what to read, the rest gives the contrastive term ROUTING_AFTER (0.1; 1: the stage alone).
# CHECKPOINT: needles of that folder instead ($ROOT/work/fade/alike-0 of fade.sh: all cells from 16k to 16M, some 110 s).
# Parts subq-*: the files of subq_pack. One process a GPU: two of them on one ended with "unspecified launch failure".
set -u
ROOT=${LEASE_ROOT:-/tmp}
cd "$ROOT/tree" || exit 2
mkdir -p "$ROOT/subq-data" && cp "$ROOT"/parts/subq-[abc]/* "$ROOT/subq-data/"
common=(--data "$ROOT/subq-data" --work "$ROOT/work/subq" --out "$OUT" --seed "$SEED" --lookahead 32 --lookbehind 32 --call-seconds "$SECONDS_LIMIT"
  --device "${DEVICE:-cuda}")
named=subq
if [ -n "${ROUTING:-}" ]; then
  after=${ROUTING_AFTER:-0.1}
  common+=(--routing-first "$ROUTING" --routing-after "$after")
  named=subq-routing
  [ "$after" = 0.1 ] || named=$named$after
fi
read -r -a more <<< "${MORE:-}"
common+=("${more[@]}")
if [ -n "${MINUTES:-}" ]; then
  # made again it goes on from its saved state
  python3 -m infra.training.subq_gpu train "${common[@]}" --minutes "$MINUTES" --short-steps "${SHORT:-2000}" \
    || python3 -m infra.training.subq_gpu train "${common[@]}" --minutes "$MINUTES" --short-steps "${SHORT:-2000}" || exit 1
fi
if [ -n "${LENGTHS:-}" ]; then
  python3 -m infra.training.subq_gpu needles "${common[@]}" --checkpoint "${CHECKPOINT:-$ROOT/work/subq/$named-around-$SEED-int8}" --lengths "$LENGTHS" --also "${ALSO:-}" \
    --call-seconds $((SECONDS_LIMIT - SECONDS))
fi
