#!/usr/bin/env bash
# What a container of jobset.sh runs: bigjax train ARGUMENT...
#
# A run that gets SIGTERM saves and exits with 0. To Kubernetes that would be a run that is done,
# when it only has to leave its machine; so here it exits with 75, and JobSet starts it again.
set -euo pipefail
stopped=false
bigjax train "$@" &
child=$!
trap 'stopped=true; kill -TERM "$child" 2> /dev/null || true' TERM
code=0
wait "$child" || code=$?
if $stopped; then  # the signal ended only that wait
  code=0
  wait "$child" || code=$?
  if ((code == 0)); then code=75; fi
fi
exit "$code"
