#!/bin/bash
# policy_home.sh FOLDER RUN WHAT ...: of a run of policy.sh that still works ($ROOT/work/RUN), WHAT it has so far, in pieces of at most 15 MiB under FOLDER
# (the call's $OUT); policy.sh itself packs at its end only. WHAT: judged (choices and readings: 5 MiB; all that `policy_gpu --stage report` wants beside
# the material), policies (each as it is shipped: 2 MiB each, and as it was carried), scores (of each kind of pair reader and of their sum; 7 MiB each), readers
# (pair readers trained on all questions: over MPNet 5 MiB, over the decoder 8, others 10 to 35 a kind), fold0, fold1 (the same of a fold: with readers and
# scores all that the stage both wants), material (questions and features, without vectors: 6 MiB, 40 s of a core; once), made (made questions, the same way).
# Here again: cat FOLDER/RUN-WHAT.tgz.* | tar xz -C SOMEWHERE; of readers, fold0 and fold1 into build/policy-pairs-0, -1 and -2: parts from which policy.sh
# goes on at the stage both. made into build: the part policy-made.
set -u
ROOT=${LEASE_ROOT:-/tmp}
[ $# -ge 3 ] || { echo "policy_home.sh: given $# words; allowed: FOLDER RUN WHAT ..." >&2; exit 2; }
folder=$1 run=$2
shift 2
[ -d "$ROOT/work/$run" ] || { echo "policy_home.sh: $ROOT/work/$run is not there; name a RUN of policy.sh" >&2; exit 2; }
mkdir -p "$folder"
cd "$ROOT/work/$run" || exit 2
for what in "$@"; do
  case $what in
    judged) paths=(judged/*.points.json judged/readings-*.npz ranks.json arms.json) ;;
    policies) paths=(policies/*/policy policies/*/record.json) ;;
    scores) paths=(pairs*/*/scores.npz pairs*/*/config.json) ;;
    readers) paths=(pairs*/whole/*.safetensors pairs*/whole/*.json) ;;
    fold0|fold1) paths=(pairs*/"$what"/*.safetensors pairs*/"$what"/*.json) ;;
    made)
      [ -f "$ROOT/made/ready" ] || continue
      [ -d "$ROOT/out/policy-made" ] || (
        cd "$ROOT/tree" && PYTHONPATH="$ROOT/carried/site" python3 -m infra.training.policy_again bare --material "$ROOT/made" --out "$ROOT/out/policy-made"
      ) || continue
      tar cz -C "$ROOT/out" policy-made | split -b 15728640 -d -a 2 - "$folder/$run-made.tgz."
      continue ;;
    material)
      [ -d "$ROOT/out/$run-material" ] || (
        cd "$ROOT/tree" && PYTHONPATH="$ROOT/carried/site" python3 -m infra.training.policy_again bare --material "$ROOT/work/$run/material" --out "$ROOT/out/$run-material"
      ) || continue
      tar cz -C "$ROOT/out" "$run-material" | split -b 15728640 -d -a 2 - "$folder/$run-material.tgz."
      continue ;;
    *) echo "policy_home.sh: given $what; allowed: judged policies scores readers fold0 fold1 material made" >&2; exit 2 ;;
  esac
  found=()
  for path in "${paths[@]}"; do [ -e "$path" ] && found+=("$path"); done
  # what a worker is just writing is read as it is: readings are written whole beside their place
  [ ${#found[@]} -eq 0 ] || tar cz --exclude='*.part*' "${found[@]}" | split -b 15728640 -d -a 2 - "$folder/$run-$what.tgz."
done
ls -l "$folder"
