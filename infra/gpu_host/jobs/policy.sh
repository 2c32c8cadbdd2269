#!/bin/bash
# policy.sh: stages of policy_gpu. STAGES, WORKERS (10); READER=1 where a stage reads (parts reader-* unpacked by reader.sh).
# First call: STAGES="material pairs teach" (200 s alone; 350 s where other trainings share the GPU: its pair readers stop by the clock, and 121
# of 416 steps cost their order 2.5 to 3.9 points on 2026-11-30); second: STAGES="readings trust reward judge" READER=1 (SECONDS 700).
# A pair reader over the reader's decoder beside MiniLM's: OPTIONS="--pair-base both" READER=1 in every call; ranks.json comes home with it. With
# "--pair-base both --pair-features both" in every call policies see a weighted sum of both readers' scores (stage both, behind pairs).
# OPTIONS="--pair-base e5+bge+minilm --pair-features both" (any of decoder, e5, bge, minilm; READER=1 for the decoder's) trains over other encoders too:
# carry the parts of `pack.sh e5 bge`. With three kinds or more ranks.json also has every weighted sum of some of them (pair_mix_...).
# OPTIONS="... --together --arms log likelihood expected labels --arm-seeds 3" in every call: pair readers trained on by reward too (stages alone, rewarded,
# rewarded_whole and, with --pair-features both, rewarded_both come before teach), policies over both scores, rl_over_supervised of all sets at the end.
# Wants READER=1 FOLDS=1 from alone on. --rewarded-kinds e5: of several kinds that policies see only these are trained by reward. Give 250 s more.
# RUN=policy_e5 FROM=policy OPTIONS="--pair-base e5_dual+minilm --pair-features both ..." STAGES="both teach reward judge": policies over fewer kinds, in a
# run folder of their own over the material and the pair readers of another run, whose stage pairs is done.
# DEVICES="0 1 2 3": its processes go in turn over these (else over the GPUs that start.sh was given); from 3 on each reader over the decoder has one of
# its own, with 4 MiniLM's share the last. The longest training behind made questions decides: on one GPU some 450 s in all alone, give SECONDS 600.
# Beside a soak and faults on the host's cores it took twice that on 2026-11-30 (made 205, pairs 459, teach 55), and the decoder's were cut by the clock.
# MADE=1: pair readers learn the questions of made_questions.sh first, waited for (MADE_WAIT, 300 s) while material is made; without them it goes on.
# MADE=2: also a pair reader that does without, for ranks.json. Give 120 s more. Only the call with the stage pairs needs it.
# GPU memory seen: 4 GB for each of 10 workers of rewards (up to 5), 21 to 25 GB while a pair reader over the decoder trains.
# FOLDS=1: training and dev questions are read by the readers of policy_folds.sh, waited for, or by those of an earlier lease: the part fold-adapters
# (out/folds as it came home, 30 MiB). The part policy-material (policy_again.sh with KEEP=1): material that need not be made again. The policy in service
# is judged too where the part served (or fold-readers) is there. OPTIONS: more of policy_gpu's.
# PARTS="carry-0 carry-1 reader-1 encoder-e5-0 ...": parts that must be there, waited for (PARTS_WAIT, 180 s): those named carry-* first, then policy-material, all
# others while material is made. LATER="reader-1 ... fold-adapters": parts for what reads, waited for behind the stages that read nothing (pairs, both, teach); not with a
# decoder in --pair-base. OPTIONS="--leave pairs=520 reward=190 ...": a stage ends so long before the job does, so that none eats the others.
# KEPT=infra/bench/results/NAME_scores.npz: pair readers' scores of an earlier run (policy_pairs_kept) instead of the stages pairs and both; --pair-base
# must name its kinds. No encoder parts then: STAGES="teach reward choose read". With the parts policy-pairs-0, -1, -2 of that run too (policy_home.sh
# readers, fold0, fold1) and its encoders STAGES="both teach ...": the second pass is read again, behind the sum's own first pick. The part policy-made
# (policy_home.sh made): made questions of an earlier run for MADE=1. The part policy-read (readings-*.npz of an earlier run): what it holds is not read again, if material and readers are the same.
set -u
[ -z "${DEVICES:-}" ] || export CUDA_VISIBLE_DEVICES="${DEVICES// /,}"
ROOT=${LEASE_ROOT:-/tmp}
cd "$ROOT/tree" || exit 2
parts_here() {  # parts_here NAME ...: wait until these have arrived
  local part
  for part in "$@"; do
    for _ in $(seq "${PARTS_WAIT:-180}"); do [ -d "$ROOT/parts/$part" ] && break; sleep 1; done
    [ -d "$ROOT/parts/$part" ] || {
      echo "policy.sh: the part $part has not arrived after ${PARTS_WAIT:-180} s; carry build/$part, or leave it out of PARTS" >&2
      exit 2
    }
  done
}
read -r -a wanted <<< "${PARTS:-}"
read -r -a stages <<< "$STAGES"
read -r -a more <<< "${OPTIONS:-}"
run=$ROOT/work/${RUN:-policy}
options=()
policy() {  # policy STAGE ...
  python3 -m infra.training.policy_gpu --stage "$@" --carried "$ROOT/carried" "${options[@]}" "${more[@]}" --out "$run" \
    --seconds $((SECONDS_LIMIT - SECONDS - 20)) --workers "${WORKERS:-10}"
}
for part in "${wanted[@]}"; do [[ $part != carry-* ]] || parts_here "$part"; done
if [ ! -f "$ROOT/carried/joined" ]; then
  rm -rf "$ROOT/carried"
  mapfile -t parts < <(ls -d "$ROOT"/parts/carry-*/part-* | sort)
  python3 -m infra.training.policy_carry --join "${parts[@]}" --out "$ROOT/carried" && touch "$ROOT/carried/joined" || exit 2
fi
export PYTHONPATH="$ROOT/carried/site:$ROOT/reader/site"
# named, it is waited for before material would be made anew
[[ " ${wanted[*]} " != *" policy-material "* ]] || parts_here policy-material
if [ -d "$ROOT/parts/policy-material" ] && [ ! -e "$ROOT/work/policy/material" ]; then
  mkdir -p "$ROOT/work/policy"
  cp -r "$ROOT/parts/policy-material" "$ROOT/work/policy/.material" && mv "$ROOT/work/policy/.material" "$ROOT/work/policy/material"
fi
if [ -n "${FROM:-}" ]; then
  mkdir -p "$run"
  for folder in "$ROOT/work/$FROM"/material "$ROOT/work/$FROM"/pairs*; do
    [ "$(basename "$folder")" = pairs_both ] || ln -sfn "$folder" "$run/$(basename "$folder")"
  done
fi
# material needs no reader, no other encoder and no made questions: it is made while these are carried or made
[ "${stages[0]}" != material ] || policy material || exit $?
parts_here "${wanted[@]}"
if ls -d "$ROOT"/parts/policy-pairs-* > /dev/null 2>&1 && [ ! -f "$run/pairs-put" ]; then
  mkdir -p "$run"
  for part in "$ROOT"/parts/policy-pairs-*; do cp -r "$part"/pairs* "$run"/ || exit 2; done
  touch "$run/pairs-put"
fi
if [ -n "${KEPT:-}" ] && [ ! -f "$run/kept" ]; then
  kept=$KEPT
  [ -f "$kept" ] || kept=$ROOT/parts/policy-scores/$(basename "$KEPT")  # kept results do not travel with the part head
  sum=(--both)
  [ ! -f "$run/pairs-put" ] || sum=()  # the readers are there: the stage both makes the sum and reads behind it
  python3 -m infra.training.policy_pairs_kept put --file "$kept" --material "$run/material" --out "$run" "${sum[@]}" && touch "$run/kept" || exit 2
fi
if ls -d "$ROOT"/parts/encoder-*/part-* > /dev/null 2>&1; then
  [ -f "$ROOT/encoders/joined" ] || {
    rm -rf "$ROOT/encoders"
    python3 -m infra.training.encoders --join "$ROOT"/parts/encoder-*/part-* --out "$ROOT/encoders" && touch "$ROOT/encoders/joined" || exit 2
  }
  options+=(--encoders "$ROOT/encoders")
fi
if [ -d "$ROOT/parts/policy-made" ] && [ ! -e "$ROOT/made" ]; then
  cp -r "$ROOT/parts/policy-made" "$ROOT/.made" && date +%s > "$ROOT/.made/ready" && mv "$ROOT/.made" "$ROOT/made"
fi
if [ -n "${MADE:-}" ]; then
  for _ in $(seq "${MADE_WAIT:-300}"); do [ -f "$ROOT/made/ready" ] && break; sleep 1; done
  if [ -f "$ROOT/made/ready" ]; then
    options+=(--made "$ROOT/made")
    [ "$MADE" != 2 ] || options+=(--unmade)
  else
    echo "policy.sh: $ROOT/made is not ready after ${MADE_WAIT:-300} s: pair readers do without; look at the log of made_questions.sh" >&2
  fi
fi
# stages that read nothing run while the reader's parts are carried; not where pair readers are over its decoder
early=()
if [ -n "${LATER:-}" ]; then
  while [[ ${stages[0]:-} =~ ^(material|made|pairs|both|teach)$ ]]; do early+=("${stages[0]}"); stages=("${stages[@]:1}"); done
fi
[ ${#early[@]} -eq 0 ] || policy "${early[@]}" || exit $?
read -r -a later <<< "${LATER:-}"
parts_here "${later[@]}"
if [ -n "${READER:-}" ]; then
  for _ in $(seq "${READER_WAIT:-120}"); do [ -f "$ROOT/reader/ready.json" ] && break; sleep 1; done
  [ -f "$ROOT/reader/ready.json" ] || { echo "policy.sh: $ROOT/reader is not ready; run reader.sh first and look at its log" >&2; exit 2; }
  options+=(--reader "$ROOT/reader")
fi
if [ -n "${FOLDS:-}" ]; then
  if [ -d "$ROOT/parts/fold-adapters" ] && [ ! -e "$ROOT/folds" ]; then
    cp -r "$ROOT/parts/fold-adapters" "$ROOT/.folds" && date +%s > "$ROOT/.folds/ready" && mv "$ROOT/.folds" "$ROOT/folds"
  fi
  for _ in $(seq "${FOLDS_WAIT:-240}"); do [ -f "$ROOT/folds/ready" ] && break; sleep 1; done
  [ -f "$ROOT/folds/ready" ] || { echo "policy.sh: $ROOT/folds is not ready; look at the log of policy_folds.sh, or start without FOLDS" >&2; exit 2; }
  options+=(--fold-readers "$ROOT/folds")
  # the policy in service with its own pair reader beside it (pack.sh served), else over the run's
  for served in "$ROOT/parts/served/retriever" "$ROOT/parts/fold-readers/retriever"; do
    [ -d "$served" ] && { options+=(--shipped "$served"); break; }
  done
  if [ -d "$ROOT/parts/policy-read" ]; then
    python3 -m infra.training.policy_again known --judged "$ROOT/parts/policy-read" --material "$run/material" --folds "$ROOT/folds" --out "$run/judged" &
  fi
fi
[ ${#stages[@]} -eq 0 ] || policy "${stages[@]}"
rc=$?
python3 -m infra.training.policy_gpu --out "$run" --stage collect --collect "$OUT"
exit $rc
