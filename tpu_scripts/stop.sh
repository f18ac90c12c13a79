#!/usr/bin/env bash
# Stops the run on all workers: it saves a checkpoint and ends. run.sh resumes it later.
#
#   stop.sh [--settings=FILE] [--dry-run]
#
# The pod remains, and is billed. A watch.sh that is running ends too.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "$0")/common.sh"
begin "" "$@"
need_gcloud
on_all "bash bigjax/tpu_scripts/on_worker.sh stop"
