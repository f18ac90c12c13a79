#!/usr/bin/env bash
# Creates the pod of the settings and waits until it is ready. Ctrl-C ends only the waiting.
#
#   create.sh [--settings=FILE] [--dry-run]
#
# With QUEUED=true it requests a queued resource, which may wait for hours until there is capacity;
# else it creates a TPU VM immediately or fails. watch.sh continues from there.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "$0")/common.sh"
begin "" "$@"
need_gcloud
[[ $GENERATION != tpu7x ]] || bad "ACCELERATOR_TYPE is '$ACCELERATOR_TYPE'; tpu7x is available" \
  "only on Kubernetes. See jobset.sh."

create_pod || fail "gcloud has not created $NAME; its output is above."
before=""
while true; do
  state=$(pod_state)
  if $DRY_RUN; then exit; fi
  [[ $before,$state != NOT_FOUND,NOT_FOUND ]] || fail "the pod no longer exists: somebody has" \
    "deleted it, or its request was refused."
  if [[ $state != "$before" ]]; then echo "$(date +%T) $NAME: $state"; fi
  before=$state
  if [[ $state == READY ]]; then break; fi
  if is_dead "$state"; then
    fail "$NAME is not available: its state is $state. delete.sh removes what is left of it."
  fi
  sleep "$INTERVAL"
done
echo "Next: setup.sh, then run.sh. The pod is billed until delete.sh."
