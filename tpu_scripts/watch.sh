#!/usr/bin/env bash
# Sees a run through to its end: waits for the pod, sets it up, starts the run, and when the pod is
# preempted deletes what is left, creates it again and goes on from the newest checkpoint. A run
# that exit code 75 has ended (a lost host, storage that fails: what passes) is started again.
#
#   watch.sh [--settings=FILE] [--dry-run] [-- ARGUMENT...]
#
#   ARGUMENT    of `bigjax train`: the same as were given to run.sh
#   --dry-run   shows the commands of one preemption
#
# To be called after create.sh, from a machine that stays on (in tmux, say). It may be ended and
# called again at any time. It ends with 0 when the run is finished or stop.sh has stopped it, with
# 2 if the run says that its input is bad, and with 1 if the run failed otherwise on a pod that is
# well, if somebody has deleted the pod, if gcloud or the pod gave no answer 60 times in a row, or
# after MAX_RESTARTS. The pod costs until delete.sh.
set -euo pipefail
# shellcheck source-path=SCRIPTDIR source=common.sh
source "$(dirname "$0")/common.sh"
begin "--" "$@"
need_gcloud
need_cloud_storage "what is on a pod's disk is lost with the pod"
COMMIT=$(exact_commit "$COMMIT")
# What it calls in three days gets the settings of now: by then the file may be that of another run,
# and COMMIT=HEAD another commit.
BIGJAX_POD_SETTINGS=$(settings_as_read)
export BIGJAX_POD_SETTINGS
flags=("--settings=$SETTINGS")  # which complaints name
if $DRY_RUN; then flags+=(--dry-run); fi

say() { echo "$(date '+%F %T') $NAME: $*"; }

start() {
  "$TPU_SCRIPTS/setup.sh" "${flags[@]}" &&
    "$TPU_SCRIPTS/run.sh" "${flags[@]}" -- "${REST[@]}"
}

run_state() {  # -> as on_worker.sh has it; UNKNOWN where ssh does not get through
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
count() {  # WHAT
  ((++restarts <= MAX_RESTARTS)) || fail "$1, but MAX_RESTARTS=$MAX_RESTARTS is used up. What" \
    "$WORKDIR has is as it was."
  say "$1 ($restarts of at most $MAX_RESTARTS restarts)."
}

fresh=true       # no run was started on this pod, so starting one is no restart
half=false       # the run was started, but not on all workers
silent=0         # looks in a row that got no answer
refused=0        # creations and deletions in a row that failed; up to 4

begin_run() {  # WHY
  if $fresh; then say "$1"; else
    count "$1"
    # On workers where something is left of the run before: it has lost the others, and must end.
    on_all "bash bigjax/tpu_scripts/on_worker.sh stop --restart" || true
  fi
  fresh=false half=true
  if start; then half=false; fi
  shown=started  # what is seen next is new
}

delete_rest() {
  fresh=true half=false
  mkdir -p "$ROOT/build"
  touch "$LOST"
  if delete_pod; then refused=0; else refuse "delete what is left of it"; fi
}

create_again() {
  count "creating the pod again"
  if create_pod; then
    refused=0
    rm -f "$LOST"
  else  # there is no room
    restarts=$((restarts - 1))
    refuse "create it"
  fi
}

refuse() {  # WHAT could not be done; that is no restart, and is tried less and less often
  refused=$((refused < 4 ? refused + 1 : 4))
  say "could not $1. Trying again in $((INTERVAL << refused)) seconds."
}

# Every turn looks what there is and does the next thing; whatever fails is tried again in the next.
shown=""
while true; do
  before=$shown
  shown=$(pod_state)
  if [[ $shown == READY ]]; then
    refused=0
    rm -f "$LOST"
    if $half; then shown="partly started"; else shown=$(run_state); fi
  fi
  if [[ $shown != "$before" ]]; then say "$shown"; fi
  if [[ $shown == UNKNOWN ]]; then silent=$((silent + 1)); else silent=0; fi
  ((silent < 60)) || fail "there was no answer 60 times in a row; what gcloud said is above. The" \
    "pod and the run are as they were."
  case $shown in
    finished) say "the run is finished. fetch.sh fetches it, delete.sh deletes the pod."; exit ;;
    asked) say "stop.sh has stopped the run. run.sh goes on with it."; exit ;;
    none) begin_run "starting the run" ;;
    "partly started") begin_run "starting the run on all workers" ;;
    # A preemption ends runs before gcloud tells of it: believed at the second look.
    stopped | failed*)
      case $before,$shown in
        stopped,stopped) begin_run "starting the run again, which a signal had stopped" ;;
        "failed 75,failed 75") begin_run "starting the run again, which exit code 75 had ended" ;;
        "failed 2,failed 2") bad "the run says that its input is bad; see logs.sh." ;;
        "$shown,$shown") fail "the run $shown (its exit code) though the pod is well; see" \
          "logs.sh. run.sh goes on from the newest checkpoint." ;;
      esac ;;
    *) if is_dead "$shown"; then
         delete_rest
       elif [[ $shown == NOT_FOUND && -e $LOST ]]; then
         create_again
       elif [[ $before,$shown == NOT_FOUND,NOT_FOUND ]]; then
         fail "there is no such pod: it was not created yet, or somebody has deleted it." \
           "create.sh creates it."
       fi ;;
  esac
  sleep $((INTERVAL << refused))
done
