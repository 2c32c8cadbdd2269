#!/bin/bash
# stop.sh NAME ...: ends jobs with all their processes, by their session. (A pattern of names would also match the call that asks.)
set -u
ROOT=${LEASE_ROOT:-/tmp}
for name in "$@"; do
  # just started: its session is written a moment later
  for _ in $(seq 20); do [ -f "$ROOT/logs/$name.t0" ] && [ ! -s "$ROOT/logs/$name.session" ] && sleep 0.1; done
  session=$(cat "$ROOT/logs/$name.session" 2>/dev/null) || { echo "stop.sh: no job $name; jobs: $(cd "$ROOT/logs" && ls -- *.t0 2>/dev/null | sed 's/\.t0//' | tr '\n' ' ')" >&2; exit 2; }
  pkill -TERM -s "$session"
  for _ in 1 2 3 4 5 6 7 8 9 10; do pgrep -s "$session" > /dev/null || break; sleep 0.2; done
  pkill -KILL -s "$session"
  [ -f "$ROOT/logs/$name.rc" ] || { echo 143 > "$ROOT/logs/$name.rc"; date +%s > "$ROOT/logs/$name.t1"; }
  echo "ended $name"
done
