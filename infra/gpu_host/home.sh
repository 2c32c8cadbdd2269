#!/bin/bash
# home.sh FOLDER NAME ...: packs what jobs have written so far, and all logs, into pieces of at most 15 MiB under FOLDER (the call's $OUT).
# Call it with every wait: what is only on the host is lost with the lease. Here again: cat FOLDER/home.tgz.* | tar xz -C SOMEWHERE
set -u
ROOT=${LEASE_ROOT:-/tmp}
folder=$1
shift
mkdir -p "$folder"
paths=(logs)
for name in "$@"; do [ -d "$ROOT/out/$name" ] && paths+=("out/$name"); done
tar cz -C "$ROOT" "${paths[@]}" | split -b 15728640 -d -a 2 - "$folder/home.tgz."
ls -l "$folder"
