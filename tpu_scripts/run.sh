#!/usr/bin/env bash
# Starts `bigjax train` on all workers of all slices, or goes on with a run that was stopped; at the
# commit of the settings, which setup.sh must have installed.
#
#   run.sh [--follow] [--settings=FILE] [--dry-run] [-- ARGUMENT...]
#
#   --follow   then shows what worker 0 prints, as logs.sh does
#   ARGUMENT   more of `bigjax train`, such as --config.train.batch_size=512
#
# The run does not depend on this shell or on ssh. A worker where a run is going on refuses to start
# another. The same command goes on from the newest checkpoint in WORKDIR.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "$0")/common.sh"
begin "follow --" "$@"
need_gcloud

commit=$(exact_commit "$COMMIT")
folder=bigjax-${commit:0:12}
train=$(quoted "--config=$CONFIG" "--workdir=$WORKDIR" "${REST[@]}")
on_all "if [ -e $folder/.installed ]; then bash $folder/tpu_scripts/on_worker.sh start $train;\
 else echo \"\$(hostname): commit ${commit:0:12} is not installed here. setup.sh does it; or set\
 COMMIT to the one that is.\" >&2; exit 1; fi" || fail "not all workers of $NAME have" \
  "started it. What they said is above; stop.sh stops it on the others."
if [[ -n ${OPTION[follow]:-} ]]; then
  flags=("--settings=$SETTINGS")
  if $DRY_RUN; then flags+=(--dry-run); fi
  exec "$TPU_SCRIPTS/logs.sh" "${flags[@]}"
fi
$DRY_RUN || echo "Next: logs.sh shows what it prints; watch.sh brings it back after a preemption."
