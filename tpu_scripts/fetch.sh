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
call gcloud storage rsync --recursive "--exclude=^checkpoints/" "$WORKDIR" "$to"
if [[ $step == newest ]]; then
  list=(gcloud storage ls "$WORKDIR/checkpoints/")
  if $DRY_RUN; then
    show "${list[@]}"
    step=STEP
  else
    step=$("${list[@]}" | sed -nE 's|.*/([0-9]+)/$|\1|p' | sort -n | tail -n 1)
    [[ -n $step ]] || fail "$WORKDIR has no checkpoint yet."
  fi
fi
if [[ -n $step ]]; then
  call mkdir -p "$to/checkpoints/$step"
  call gcloud storage rsync --recursive "$WORKDIR/checkpoints/$step" "$to/checkpoints/$step"
fi
