#!/bin/bash
# arrive.sh: on the GPU host, in the folder that a call brought. Keeps the tree once, and every part of build/ that this call carried.
# A call's own folder is replaced by the next call; what jobs run from must not be. Where the first call carries build/head (pack.sh),
# the tree is what was committed then, not the working tree that somebody may be editing.
set -u
ROOT=${LEASE_ROOT:-/tmp}
mkdir -p "$ROOT/parts" "$ROOT/work" "$ROOT/out" "$ROOT/logs"
if [ ! -d "$ROOT/tree" ]; then
  mkdir -p "$ROOT/tree.part"
  if [ -f build/head/tree.tgz ]; then
    tar xzf build/head/tree.tgz -C "$ROOT/tree.part" && mv "$ROOT/tree.part" "$ROOT/tree"
  else
    tar cf - --exclude=./build --exclude=./.git . | tar xf - -C "$ROOT/tree.part" && mv "$ROOT/tree.part" "$ROOT/tree"
  fi
fi
for folder in build/*/; do
  name=$(basename "$folder")
  [ "$name" = '*' ] && continue
  [ -d "$ROOT/parts/$name" ] || { cp -r "build/$name" "$ROOT/parts/.$name" && mv "$ROOT/parts/.$name" "$ROOT/parts/$name"; }
done
# weights that were left out of the tree to keep it small
[ -d "$ROOT/parts/weights" ] && cp -r --update=none "$ROOT/parts/weights/." "$ROOT/tree/models/weights/" 2>/dev/null
[ -f "$ROOT/begin" ] || date +%s > "$ROOT/begin"
echo "t=$(($(date +%s) - $(cat "$ROOT/begin"))) parts: $(ls "$ROOT/parts" | tr '\n' ' ')"
