#!/usr/bin/env bash
# Shows the output of a worker: the last 200 lines, then new ones. Ctrl-C does not end the run.
#
#   logs.sh [--worker=0] [--slice=0] [--settings=FILE] [--dry-run]
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "$0")/common.sh"
begin "worker= slice=" "$@"
need_gcloud
worker=${OPTION[worker]:-0} slice=${OPTION[slice]:-0}
if [[ ! $worker =~ ^(0|[1-9][0-9]{0,4})$ ]] || ((worker >= HOSTS)); then
  bad "--worker is '$worker'; a slice of $ACCELERATOR_TYPE has workers 0 to $((HOSTS - 1))."
fi
if [[ ! $slice =~ ^(0|[1-9][0-9]{0,4})$ ]] || ((slice >= SLICES)); then
  bad "--slice is '$slice'; the pod has slices 0 to $((SLICES - 1))."
fi
mapfile -t names < <(nodes)
limited() { call "$@"; }  # it may take days
on_worker "${names[slice]}" "$worker" "tail -n 200 -F bigjax-run/log.txt"
