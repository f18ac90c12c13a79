#!/usr/bin/env bash
# Starts or resumes `bigjax train` on all workers of all slices, at the commit of the settings,
# which setup.sh must have installed.
#
#   run.sh [--follow] [--settings=FILE] [--dry-run] [-- ARGUMENT...]
#
#   --follow   then shows the output of worker 0, as logs.sh does
#   ARGUMENT   additional arguments of `bigjax train`, such as --config.train.batch_size=512
#
# The run does not depend on this shell or on ssh. A worker with a run in progress refuses to start
# another. The same command resumes from the latest checkpoint in WORKDIR.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "$0")/common.sh"
begin "follow --" "$@"
need_gcloud

commit=$(exact_commit "$COMMIT")
folder=bigjax-${commit:0:12}
train=$(quoted "--config=$CONFIG" "--workdir=$WORKDIR" "${REST[@]}")
on_all "if [ -e $folder/.installed ]; then bash $folder/tpu_scripts/on_worker.sh start $train;\
 else echo \"\$(hostname): commit ${commit:0:12} is not installed. Run setup.sh, or set COMMIT to\
 the installed one.\" >&2; exit 1; fi" || fail "not all workers of $NAME have" \
  "started the run. Their output is above; stop.sh stops it on the others."
if [[ -n ${OPTION[follow]:-} ]]; then
  flags=("--settings=$SETTINGS")
  if $DRY_RUN; then flags+=(--dry-run); fi
  exec "$TPU_SCRIPTS/logs.sh" "${flags[@]}"
fi
$DRY_RUN || echo "Next: logs.sh shows its output; watch.sh restarts it after a preemption."
