#!/usr/bin/env bash
# Deletes the pod, with everything on its disks. What is in WORKDIR (gs://) stays.
#
#   delete.sh [--yes] [--settings=FILE] [--dry-run]
#
#   --yes   does not ask; else the pod's name must be typed
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "$0")/common.sh"
begin "yes" "$@"
need_gcloud
if [[ -z ${OPTION[yes]:-} ]] && ! $DRY_RUN; then
  echo "This deletes $NAME ($SLICES x $ACCELERATOR_TYPE) in $ZONE of $PROJECT, and ends what" \
    "runs there. To go on, type its name:"
  read -r answer || true
  [[ ${answer:-} == "$NAME" ]] || fail "that is not $NAME. Nothing was deleted."
fi
call rm -f "$LOST"  # watch.sh is not to create it again
delete_pod || fail "gcloud has not deleted $NAME; what it said is above. It may still cost."
