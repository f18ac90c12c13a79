#!/usr/bin/env bash
# The command of a container of jobset.sh: bigjax train ARGUMENT...
#
# A run that gets SIGTERM saves and exits with 0. Kubernetes would regard it as finished, although
# it only has to leave its machine; so this script exits with 75, and JobSet starts the run again. A
# run that is refused because another process trains in the work folder is tried again every minute
# by this script, since each start by JobSet would be one of MAX_RESTARTS.
set -euo pipefail
stopped=false child=""
trap 'stopped=true; kill -TERM "$child" 2> /dev/null || true' TERM
errors=$(mktemp)

is_held() {
  local i
  for ((i = 0; i < 20; i++)); do  # tee may write the last line after the run has ended
    if grep -q "is held by process" "$errors"; then return; fi
    sleep 0.1
  done
  return 1
}

while true; do
  bigjax train "$@" 2> >(tee "$errors" >&2) &
  child=$!
  if $stopped; then kill -TERM "$child" 2> /dev/null || true; fi  # it came before the child existed
  code=0
  wait "$child" || code=$?
  if $stopped; then  # the signal ended only that wait
    code=0
    wait "$child" || code=$?
    # 0: it has saved; 143: it was still loading; other codes: bash did not get the exit code.
    if ((code != 1 && code != 2)); then code=75; fi
  fi
  if $stopped || ((code != 75)) || ! is_held; then exit "$code"; fi
  echo "in_pod.sh: trying again in a minute." >&2
  sleep 60 &
  child=$!
  wait "$child" || true
  if $stopped; then exit 75; fi
done
