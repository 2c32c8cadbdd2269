#!/bin/bash
# prices.sh: what a token's price (gamma, beta) and minimal sets buy, over the run of policy.sh (job "policy", stages material, pairs and teach).
# FOLDS=1: training questions are read by the readers of policy_folds.sh, waited for (FOLDS_WAIT, 240 s). A process is all prices of a form and a seed,
# in step, or a kind of minimal sets for all seeds: WORKERS (8) share one GPU, as many as three seeds make. ARGS: more of policy_prices' options
# (--seeds 0 1, --iterations 60). It goes on where it was ended; what is judged comes home in prices.json as it comes. Each reader (two folds and the
# shipped one) stands once, in a process that all groups ask together (SHARE=0: each group its own); what stage alone of policy.sh has read is known to it.
# Expected on an H200: 60 iterations of three seeds in 120 to 170 s beside one other job, with mining and judging 200 to 240 s; some 3 GB a process.
set -u
ROOT=${LEASE_ROOT:-/tmp}
cd "$ROOT/tree" || exit 2
run=${RUN:-$ROOT/work/policy}
[ -f "$run/policies/supervised-0/record.json" ] || { echo "prices.sh: $run has no supervised-0; end policy.sh with STAGES=\"material pairs teach\" first" >&2; exit 2; }
[ -f "$ROOT/reader/ready.json" ] || { echo "prices.sh: $ROOT/reader is not ready; run reader.sh first and look at its log" >&2; exit 2; }
options=(--reader "$ROOT/reader")
if [ -n "${FOLDS:-}" ]; then
  for _ in $(seq "${FOLDS_WAIT:-240}"); do [ -f "$ROOT/folds/ready" ] && break; sleep 1; done
  [ -f "$ROOT/folds/ready" ] || { echo "prices.sh: $ROOT/folds is not ready; look at the log of policy_folds.sh, or start without FOLDS" >&2; exit 2; }
  options+=(--fold-readers "$ROOT/folds")
fi
read -r -a more <<< "${ARGS:-}"
[ "${SHARE:-1}" = 0 ] || more+=(--share-readers)
export PYTHONPATH="$ROOT/carried/site:$ROOT/reader/site"
mkdir -p "$OUT"
python3 -m infra.training.policy_prices --run "$run" --carried "$ROOT/carried" "${options[@]}" --out "$WORK" --workers "${WORKERS:-8}" \
  --seconds $((SECONDS_LIMIT - SECONDS - 20)) --device "${DEVICE:-cuda}" "${more[@]}"
rc=$?
cp "$WORK"/prices.json "$OUT/" 2>/dev/null
cp -r "$WORK/logs" "$OUT/" 2>/dev/null
exit $rc
