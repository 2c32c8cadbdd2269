#!/bin/bash
# wait.sh T [NAME ...]: until T seconds after the lease's first call, or until all named jobs have ended.
set -u
ROOT=${LEASE_ROOT:-/tmp}
until=$1
shift
while [ $(($(date +%s) - $(cat "$ROOT/begin"))) -lt "$until" ]; do
  if [ $# -gt 0 ]; then
    ended=1
    for name in "$@"; do [ -f "$ROOT/logs/$name.rc" ] || ended=0; done
    [ $ended = 1 ] && exit 0
  fi
  sleep 0.5
done
