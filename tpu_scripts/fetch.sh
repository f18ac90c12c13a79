#!/usr/bin/env bash
# Copies the run's results from WORKDIR: metrics, config, tokenizer, evaluations. Needs no pod.
#
#   fetch.sh [--to=FOLDER] [--checkpoint=STEP] [--settings=FILE] [--dry-run]
#
#   --to           default: runs/NAME. If the folder exists, only new files are copied.
#   --checkpoint   also this step's checkpoint, or "latest"; commands such as
#                  `bigjax generate --workdir=FOLDER` need one
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "$0")/common.sh"
begin "to= checkpoint=" "$@"
need_gcloud
need_cloud_storage "it is on the pod's disk"
step=${OPTION[checkpoint]:-}
[[ $step =~ ^(|latest|[0-9]+)$ ]] || bad "--checkpoint is '$step'; it must be a step, or latest."
to=${OPTION[to]:-$ROOT/runs/$NAME}

call mkdir -p "$to"
call gcloud storage rsync --recursive "--exclude=^((checkpoints|damaged)/|[.]lease$)" "$WORKDIR" "$to"
if [[ -z $step ]]; then exit; fi
# A step is complete when this file exists: Orbax writes it last.
list=(gcloud storage ls "$WORKDIR/checkpoints/*/commit_success.txt")
if $DRY_RUN; then
  show "${list[@]}"
  step=${step/latest/STEP}
else
  # It also fails if there is none.
  files=$("${list[@]}" 2>&1) || [[ $files == *"matched no objects"* ]] || fail "could not list" \
    "the complete checkpoints: $files"
  complete=$(sed -nE 's|.*/([0-9]+)/[^/]*$|\1|p' <<< "$files" | sort -n | tr '\n' ' ')
  complete=${complete% }
  if [[ $step == latest ]]; then step=${complete##* }; fi
  [[ -n $step && " $complete " == *" $step "* ]] || fail "$WORKDIR has no complete" \
    "checkpoint${step:+ of step $step}. Complete checkpoints: ${complete:-none}."
fi
call mkdir -p "$to/checkpoints/$step"
call gcloud storage rsync --recursive "$WORKDIR/checkpoints/$step" "$to/checkpoints/$step"
