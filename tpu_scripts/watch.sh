#!/usr/bin/env bash
# Keeps a run going until it is finished: waits for the pod, sets it up and starts the run. When the
# pod is preempted, deletes what is left of it, creates it again and resumes from the latest
# checkpoint. A run that ended with exit code 75 (a transient failure: a lost host, or storage) is
# started again. One that is refused because another process trains in WORKDIR is tried again, less
# and less often, until that one has ended; this does not count as a restart.
#
#   watch.sh [--settings=FILE] [--dry-run] [-- ARGUMENT...]
#
#   ARGUMENT    of `bigjax train`: the same as for run.sh
#   --dry-run   shows the commands for one preemption
#
# Call it after create.sh, on a machine that stays on (for example in tmux). It may be ended and
# called again at any time. Exit code 0: the run is finished, or stop.sh has stopped it. 2: the run
# ended with bad input. 1: the run failed otherwise on a healthy pod; somebody has deleted the pod;
# gcloud has no permission to create or delete it, or failed 20 times in a row (not counting a lack
# of capacity); gcloud or the pod gave no answer 60 times in a row; MAX_RESTARTS is reached. The pod
# is billed until delete.sh.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "$0")/common.sh"
begin "--" "$@"
need_gcloud
need_cloud_storage "a pod's disk is lost with the pod"
COMMIT=$(exact_commit "$COMMIT")
# Scripts called later get the settings read now: in a few days the file may describe another run,
# and COMMIT=HEAD may be another commit.
BIGJAX_POD_SETTINGS=$(settings_as_read)
export BIGJAX_POD_SETTINGS
flags=("--settings=$SETTINGS")  # for messages
if $DRY_RUN; then flags+=(--dry-run); fi

say() { echo "$(date '+%F %T') $NAME: $*"; }

start() {
  "$TPU_SCRIPTS/setup.sh" "${flags[@]}" &&
    "$TPU_SCRIPTS/run.sh" "${flags[@]}" -- "${REST[@]}"
}

run_state() {  # -> as printed by on_worker.sh; UNKNOWN if ssh fails
  local state
  mapfile -t names < <(nodes)
  state=$(LIMIT=2m on_worker "${names[0]}" 0 \
    "if [ -e bigjax ]; then bash bigjax/tpu_scripts/on_worker.sh state; else echo none; fi") ||
    state=UNKNOWN
  state=${state##*$'\n'}
  echo "${state:-UNKNOWN}"
}

if $DRY_RUN; then
  pod_state > /dev/null
  run_state > /dev/null
  delete_pod
  create_pod
  start
  exit
fi

restarts=0
need_restart() {  # FOR WHAT
  ((restarts < MAX_RESTARTS)) || fail "$1, but MAX_RESTARTS=$MAX_RESTARTS is reached. $WORKDIR" \
    "is unchanged. Fix the cause (see logs.sh) and call watch.sh again."
}

count() {  # WHAT
  restarts=$((restarts + 1))
  say "$1 ($restarts of at most $MAX_RESTARTS restarts)."
}

fresh=true       # no run was started on this pod, so starting one is not a restart
half=false       # the run was started, but not on all workers
silent=0         # consecutive checks without an answer
refused=0        # consecutive creations and deletions that failed
no_capacity=0    # how many of them failed for lack of capacity
held=0           # consecutive starts refused because another process trains in WORKDIR

begin_run() {  # WHY
  if $fresh; then say "$1"; else
    need_restart "$1"
    count "$1"
    # Workers may still have processes of the previous run, which have lost the others and must end.
    on_all "bash bigjax/tpu_scripts/on_worker.sh stop --restart" || true
  fi
  fresh=false half=true
  if start; then half=false; fi
  shown=started  # so that the next state is a new one
}

delete_rest() {
  fresh=true half=false
  mkdir -p "$ROOT/build"
  touch "$LOST"
  ask "delete what is left of it" delete_pod || true
}

create_again() {
  need_restart "creating the pod again"
  if ask "create it" create_pod; then
    rm -f "$LOST"
    count "the pod is requested again"
  fi
}

ask() {  # WHAT FUNCTION; a failure is not a restart, and is retried less and less often, or never
  local output code=0 permanent='PERMISSION_DENIED|INVALID_ARGUMENT|"code": [37],|[Qq]uota|QUOTA'
  local transient='no more capacity|per minute|quota project'
  local capacity='[Cc]apacity|EXHAUSTED|"code": 8,'
  say "trying to $1."
  output=$("$2" 2>&1) || code=$?
  if [[ -n $output ]]; then echo "$output" >&2; fi
  if ((code == 0)); then
    refused=0 no_capacity=0
    return
  fi
  if [[ $output =~ $permanent && ! $output =~ $transient ]]; then
    fail "could not $1, and trying again will not help: gcloud's output is above. Fix the cause" \
      "and call watch.sh again."
  fi
  refused=$((refused + 1))
  if [[ $output =~ $capacity ]]; then no_capacity=$((no_capacity + 1)); fi
  ((refused - no_capacity < 20)) || fail "could not $1, 20 times in a row; gcloud's output is" \
    "above. Fix the cause and call watch.sh again."
  say "could not $1. Trying again in $(pause) seconds."
  return 1
}

pause() {  # -> seconds until the next check
  local n=$((refused > held ? refused : held))
  echo "$((INTERVAL << (n < 4 ? n : 4)))"
}

# Each iteration checks the state and takes the next action; a failed action is repeated later.
shown=""
while true; do
  before=$shown
  shown=$(pod_state)
  if [[ $shown == READY ]]; then
    refused=0 no_capacity=0
    rm -f "$LOST"
    if $half; then shown="partly started"; else shown=$(run_state); fi
  fi
  if [[ $shown != "$before" ]]; then say "$shown"; fi
  if [[ $shown == UNKNOWN ]]; then silent=$((silent + 1)); else silent=0; fi
  ((silent < 60)) || fail "there was no answer 60 times in a row; gcloud's output is above. The" \
    "pod and the run are unchanged. Call watch.sh again when gcloud answers."
  case $shown in
    finished) say "the run is finished. fetch.sh copies its results, delete.sh deletes the pod."; exit ;;
    asked) say "stop.sh has stopped the run. run.sh resumes it."; exit ;;
    running) held=0 ;;
    none) begin_run "starting the run" ;;
    "partly started") begin_run "starting the run on all workers" ;;
    held)
      if [[ $before == held ]]; then
        held=$((held + 1)) fresh=true  # does not count as a restart
        begin_run "another process trains in $WORKDIR (see logs.sh): trying again"
      fi ;;
    # A preemption ends runs before gcloud reports it, so a state must be seen twice.
    stopped | failed*)
      case $before,$shown in
        stopped,stopped) begin_run "restarting the run, which a signal has stopped" ;;
        "failed 75,failed 75") begin_run "restarting the run, which ended with exit code 75" ;;
        "failed 2,failed 2") bad "the run ended with exit code 2 (bad input); see logs.sh." ;;
        "$shown,$shown") fail "the run $shown (its exit code) on a healthy pod; see logs.sh." \
          "run.sh resumes from the latest checkpoint." ;;
      esac ;;
    *) if is_dead "$shown"; then
         delete_rest
       elif [[ $shown == NOT_FOUND && -e $LOST ]]; then
         create_again
       elif [[ $before,$shown == NOT_FOUND,NOT_FOUND ]]; then
         fail "the pod does not exist: it was not created yet, or somebody has deleted it." \
           "create.sh creates it."
       fi ;;
  esac
  sleep "$(pause)"
done
