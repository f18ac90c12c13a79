#!/usr/bin/env bash
# Deletes the pod with everything on its disks. WORKDIR (gs://) is kept.
#
#   delete.sh [--yes] [--settings=FILE] [--dry-run]
#
#   --yes   does not ask for confirmation; otherwise the pod's name must be typed
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "$0")/common.sh"
begin "yes" "$@"
need_gcloud
if [[ -z ${OPTION[yes]:-} ]] && ! $DRY_RUN; then
  echo "This deletes $NAME ($SLICES x $ACCELERATOR_TYPE) in $ZONE of $PROJECT, and ends what" \
    "runs there. To continue, type its name:"
  read -r answer || true
  [[ ${answer:-} == "$NAME" ]] || fail "'${answer:-}' is not $NAME. Nothing was deleted."
fi
call rm -f "$LOST"  # so that watch.sh does not create it again
delete_pod || fail "gcloud has not deleted $NAME; its output is above. The pod may still be billed."
