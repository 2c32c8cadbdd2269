#!/bin/bash
# flashinfer.sh: FlashInfer made ready beside decode, while other parts are still carried: unpacks the part flashinfer (pack.sh) into $ROOT/flashinfer and runs
# each way that the benchmark times once (infra.bench.peers.flashinfer_decode), a process each, so that nothing is compiled while kernels are measured.
# Compiled modules that the part brings (part-aot) are taken as they are; where one does not load here all are compiled instead: 62 s one after another on
# 2026-11-29. Ends by FLASHINFER_S (150); $ROOT/flashinfer/ready names the ways that ran, and their modules then lie in flashinfer/data/aot, where they are
# loaded without asking ninja. A second call waits for the first and returns at once; issue_four.sh's kernels calls it, and goes on without FlashInfer where
# nothing runs. 3 processes, 1 GB of GPU memory each.
set -u
ROOT=${LEASE_ROOT:-/tmp}
cd "$ROOT/tree" || exit 2
site=$ROOT/flashinfer part=$ROOT/parts/flashinfer began=$(date +%s) ways="single single-tensor-cores paged-tensor-cores"
[ -f "$part/part-00" ] || { echo "flashinfer.sh: $part/part-00 is not here; carry the part flashinfer first" >&2; exit 2; }
left() { echo $((${FLASHINFER_S:-150} - ($(date +%s) - began))); }
exec 9> "$site.lock"
flock -w "$(left)" 9 || { echo "flashinfer.sh: another call still compiles after ${FLASHINFER_S:-150} s" >&2; exit 5; }
[ -f "$site/ready" ] && exit 0
[ -f "$site/failed" ] && { echo "flashinfer.sh: no way ran before; see $site/*.log" >&2; exit 1; }
export FLASHINFER_WORKSPACE_BASE=$ROOT/flashinfer-built PYTHONPATH="$ROOT/carried/site:$ROOT/reader/site:$ROOT/host/site:$site"
unpack() { python3 -c "import sys, tarfile; tarfile.open(sys.argv[1]).extractall(sys.argv[2], filter='data')" "$1" "$2"; }
aot=$site/flashinfer/data/aot
if [ ! -d "$site" ]; then
  rm -rf "$site.part"
  unpack "$part/part-00" "$site.part" || exit 2
  [ -f "$part/part-aot" ] && unpack "$part/part-aot" "$site.part/flashinfer/data/aot"
  mv "$site.part" "$site"
fi
try() {  # those ways that have not run yet, side by side; one that runs leaves $site/ran-WAY
  local name had running=()
  had=$(left)
  for name in $ways; do
    [ -f "$site/ran-$name" ] || [ "$had" -lt 5 ] && continue
    { timeout -k 5 "$had" python3 -m infra.bench.peers.flashinfer_decode "$name" --device "${DEVICE:-cuda}" > "$site/$name.log" 2>&1 && touch "$site/ran-$name"; } 9>&- &
    running+=("$!")
  done
  [ ${#running[@]} = 0 ] || wait "${running[@]}"
}
ran() { ls "$site" | sed -n 's/^ran-//p'; }
try
if [ -d "$aot" ] && [ "$(ran | wc -l)" -lt 3 ]; then
  for name in $ways; do [ -f "$site/ran-$name" ] || echo "$name, as it was brought: $(tail -n 1 "$site/$name.log" 2> /dev/null | cut -c1-300)"; done
  rm -rf "$aot"
  rm -f "$site"/ran-*
  try
fi
for name in $ways; do echo "$name: $(tail -n 1 "$site/$name.log" 2> /dev/null | cut -c1-300)"; done
[ -n "$(ran)" ] || { touch "$site/failed"; echo "flashinfer.sh: no way runs; see $site/*.log" >&2; exit 1; }
for module in "$FLASHINFER_WORKSPACE_BASE"/.cache/flashinfer/*/*/cached_ops/*/*.so; do
  [ -f "$module" ] && name=$(basename "$module" .so) && mkdir -p "$aot/$name" && cp "$module" "$aot/$name/"
done
ran > "$site/ready.part" && mv "$site/ready.part" "$site/ready"
echo "ready after $(($(date +%s) - began)) s: $(tr '\n' ' ' < "$site/ready")"
