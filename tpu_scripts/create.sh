#!/usr/bin/env bash
# Creates the pod of the settings and waits until it is ready. Ctrl-C ends only the waiting.
#
#   create.sh [--settings=FILE] [--dry-run]
#
# With QUEUED=true it asks by a queued resource, which may wait for hours until there is room; else
# it creates a TPU VM at once or fails. watch.sh does the same and goes on from there.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "$0")/common.sh"
begin "" "$@"
need_gcloud
[[ $GENERATION != tpu7x ]] || bad "ACCELERATOR_TYPE is '$ACCELERATOR_TYPE'; tpu7x is only to be" \
  "had by Kubernetes. See jobset.sh."

create_pod || fail "gcloud has not created $NAME; what it said is above."
before=""
while true; do
  state=$(pod_state)
  if $DRY_RUN; then exit; fi
  [[ $before,$state != NOT_FOUND,NOT_FOUND ]] || fail "there is no such pod any more:" \
    "somebody has deleted it, or its request was refused."
  if [[ $state != "$before" ]]; then echo "$(date +%T) $NAME: $state"; fi
  before=$state
  if [[ $state == READY ]]; then break; fi
  if is_dead "$state"; then
    fail "$NAME could not be had: it is $state. delete.sh removes what is left of it."
  fi
  sleep "$INTERVAL"
done
echo "Next: setup.sh, then run.sh. It costs until delete.sh."
