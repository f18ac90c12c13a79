#!/usr/bin/env bash
# Sees a run through to its end: waits for the pod, sets it up, starts the run, and when the pod is
# preempted deletes what is left, creates it again and goes on from the newest checkpoint. A run
# that exit code 75 has ended (a lost host, storage that fails: what passes) is started again. One
# that is refused because another process trains in WORKDIR is tried again, less and less often,
# until that one has ended; this is no restart.
#
#   watch.sh [--settings=FILE] [--dry-run] [-- ARGUMENT...]
#
#   ARGUMENT    of `bigjax train`: the same as were given to run.sh
#   --dry-run   shows the commands of one preemption
#
# To be called after create.sh, from a machine that stays on (in tmux, say). It may be ended and
# called again at any time. It ends with 0 when the run is finished or stop.sh has stopped it, with
# 2 if the run says that its input is bad, and with 1 if the run failed otherwise on a pod that is
# well, if somebody has deleted the pod, if gcloud may not create or delete it or fails 20 times in
# a row to (apart from a lack of room), if gcloud or the pod gave no answer 60 times in a row, or
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
need_restart() {  # FOR WHAT
  ((restarts < MAX_RESTARTS)) || fail "$1, but MAX_RESTARTS=$MAX_RESTARTS is used up. What" \
    "$WORKDIR has is as it was."
}

count() {  # WHAT
  restarts=$((restarts + 1))
  say "$1 ($restarts of at most $MAX_RESTARTS restarts)."
}

fresh=true       # no run was started on this pod, so starting one is no restart
half=false       # the run was started, but not on all workers
silent=0         # looks in a row that got no answer
refused=0        # creations and deletions in a row that failed
no_room=0        # those of them that there was no room for
held=0           # starts in a row that were refused because another process trains in WORKDIR

begin_run() {  # WHY
  if $fresh; then say "$1"; else
    need_restart "$1"
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
  ask "delete what is left of it" delete_pod || true
}

create_again() {
  need_restart "creating the pod again"
  if ask "create it" create_pod; then
    rm -f "$LOST"
    count "the pod is asked for again"
  fi
}

ask() {  # WHAT FUNCTION; what fails is no restart, and is tried less and less often or never again
  local said code=0 final='PERMISSION_DENIED|INVALID_ARGUMENT|"code": [37],|[Qq]uota|QUOTA'
  local passing='no more capacity|per minute|quota project'
  local room='[Cc]apacity|EXHAUSTED|"code": 8,'
  say "trying to $1."
  said=$("$2" 2>&1) || code=$?
  if [[ -n $said ]]; then echo "$said" >&2; fi
  if ((code == 0)); then
    refused=0 no_room=0
    return
  fi
  if [[ $said =~ $final && ! $said =~ $passing ]]; then
    fail "could not $1, for a reason that does not pass by itself: what gcloud said is above." \
      "Mend it and call watch.sh again."
  fi
  refused=$((refused + 1))
  if [[ $said =~ $room ]]; then no_room=$((no_room + 1)); fi
  ((refused - no_room < 20)) || fail "could not $1, 20 times in a row; what gcloud said is above."
  say "could not $1. Trying again in $(pause) seconds."
  return 1
}

pause() {  # -> seconds until the next look
  local n=$((refused > held ? refused : held))
  echo "$((INTERVAL << (n < 4 ? n : 4)))"
}

# Every turn looks what there is and does the next thing; whatever fails is tried again in the next.
shown=""
while true; do
  before=$shown
  shown=$(pod_state)
  if [[ $shown == READY ]]; then
    refused=0 no_room=0
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
    running) held=0 ;;
    none) begin_run "starting the run" ;;
    "partly started") begin_run "starting the run on all workers" ;;
    held)
      if [[ $before == held ]]; then
        held=$((held + 1)) fresh=true  # no restart
        begin_run "another process trains in $WORKDIR (see logs.sh): trying again"
      fi ;;
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
  sleep "$(pause)"
done
