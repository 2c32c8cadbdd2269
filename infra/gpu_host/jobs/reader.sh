#!/bin/bash
# reader.sh: unpacks the parts reader-1, -2, … to $ROOT/reader (7 s). Wants the part `weights` (reader-lora) and policy.sh's packages (carried).
set -u
ROOT=${LEASE_ROOT:-/tmp}
cd "$ROOT/tree" || exit 2
mapfile -t parts < <(ls -d "$ROOT"/parts/reader-* | sort -V)
for _ in $(seq 60); do [ -f "$ROOT/carried/joined" ] && break; sleep 1; done
PYTHONPATH="$ROOT/carried/site" python3 -m infra.training.reader_parts unpack --part "${parts[@]}" --to "$ROOT/reader"
