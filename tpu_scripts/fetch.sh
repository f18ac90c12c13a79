#!/usr/bin/env bash
# Copies the run's results from WORKDIR: metrics, config, tokenizer, evaluations. Needs no pod.
#
#   fetch.sh [--to=FOLDER] [--checkpoint=STEP] [--settings=FILE] [--dry-run]
#
#   --to           default: runs/NAME. Given again, only what is new is copied.
#   --checkpoint   also this step's checkpoint, or "newest"; `bigjax generate --workdir=FOLDER` and
#                  the like need one
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "$0")/common.sh"
begin "to= checkpoint=" "$@"
need_gcloud
need_cloud_storage "it is on the pod's disk"
step=${OPTION[checkpoint]:-}
[[ $step =~ ^(|newest|[0-9]+)$ ]] || bad "--checkpoint is '$step'; give a step, or newest."
to=${OPTION[to]:-$ROOT/runs/$NAME}

call mkdir -p "$to"
call gcloud storage rsync --recursive "--exclude=^((checkpoints|damaged)/|[.]lease$)" "$WORKDIR" "$to"
if [[ -z $step ]]; then exit; fi
# A bucket has no step before its last file is there; Orbax writes that one when all others are.
list=(gcloud storage ls "$WORKDIR/checkpoints/*/commit_success.txt")
if $DRY_RUN; then
  show "${list[@]}"
  step=${step/newest/STEP}
else
  # It fails also where there is none.
  found=$("${list[@]}" 2>&1) || [[ $found == *"matched no objects"* ]] || fail "could not look" \
    "which checkpoints are whole: $found"
  whole=$(sed -nE 's|.*/([0-9]+)/[^/]*$|\1|p' <<< "$found" | sort -n | tr '\n' ' ')
  whole=${whole% }
  if [[ $step == newest ]]; then step=${whole##* }; fi
  [[ -n $step && " $whole " == *" $step "* ]] || fail "$WORKDIR has no whole" \
    "checkpoint${step:+ of step $step}. Those that are whole: ${whole:-none}."
fi
call mkdir -p "$to/checkpoints/$step"
call gcloud storage rsync --recursive "$WORKDIR/checkpoints/$step" "$to/checkpoints/$step"
