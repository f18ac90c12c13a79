# shellcheck shell=bash disable=SC2034  # its variables are used by the scripts that source it
# Functions that the scripts of this folder share: arguments, settings, and gcloud.
#
# A script first calls `begin "NAMES OF ITS FLAGS" "$@"`. That reads the settings, checks all of
# them before gcloud is called, and sets OPTION to the flags --NAME=VALUE (--NAME is "true"), REST
# to the arguments after "--", WHERE to the flags --project and --zone, and LOST to the name of a
# file that exists after watch.sh has deleted the pod and before it has created it again.

if ((BASH_VERSINFO[0] * 100 + BASH_VERSINFO[1] < 404)); then
  echo "${0##*/}: bash 4.4 or newer is needed, not $BASH_VERSION (macOS: brew install bash)." >&2
  exit 2
fi

TPU_SCRIPTS=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
ROOT=$(dirname "$TPU_SCRIPTS")
SETTINGS=$TPU_SCRIPTS/settings.sh
DRY_RUN=false
declare -A OPTION=()
REST=()
exec 3>&1  # show prints to it, also inside $(...)

bad() {  # bad input
  echo "${0##*/}: $*" >&2
  exit 2
}

fail() {  # anything else
  echo "${0##*/}: $*" >&2
  exit 1
}

begin() {  # ALLOWED ARGUMENTS...
  local allowed=" $1 " name
  shift
  while (($#)); do
    name=${1%%=*}
    case $1 in
      --help) usage; exit 0 ;;
      --dry-run) DRY_RUN=true ;;
      --settings=?*) SETTINGS=${1#*=} ;;
      --) if [[ $allowed != *" -- "* ]]; then bad "no arguments are accepted after --. See --help."; fi
          shift
          REST=("$@")
          break ;;
      --*=*) [[ $allowed == *" ${name#--}= "* ]] || bad "unknown flag $name=. See --help."
             [[ -n ${1#*=} ]] || bad "$name= has no value."
             OPTION[${name#--}]=${1#*=} ;;
      *) if [[ $1 != --?* || $allowed != *" ${1#--} "* ]]; then
           bad "unknown argument '$1'. See --help."
         fi
         OPTION[${1#--}]=true ;;
    esac
    shift
  done
  read_settings
  check_settings
  WHERE=("--project=$PROJECT" "--zone=$ZONE")
  LOST=$ROOT/build/lost-$PROJECT-$ZONE-$NAME
}

usage() {  # the comment at the top of the script
  sed -n '2,/^[^#]/s/^# \{0,1\}//p' "$0"
}

# --- Settings -------------------------------------------------------------------------------------

read_settings() {
  if [[ -n ${BIGJAX_POD_SETTINGS:-} ]]; then  # set by the watch.sh that calls this script
    eval "$BIGJAX_POD_SETTINGS"
    return
  fi
  [[ -f $SETTINGS ]] || bad "there is no settings file $SETTINGS. Copy" \
    "$TPU_SCRIPTS/settings.example.sh to it and fill it in, or set --settings=FILE."
  local before after new
  # Cleared, so that the environment does not set them.
  NAME='' PROJECT='' ZONE='' ACCELERATOR_TYPE='' RUNTIME_VERSION='' SLICES='' CAPACITY='' QUEUED=''
  CREATE_FLAGS=() SSH_FLAGS=() COMMIT='' CONFIG='' WORKDIR='' INTERVAL='' MAX_RESTARTS=''
  TOPOLOGY='' IMAGE='' SERVICE_ACCOUNT='' QUEUE=''
  before=$(compgen -v | sort)
  # shellcheck source=/dev/null
  source "$SETTINGS"
  after=$(compgen -v | sort)
  new=$(comm -13 <(echo "$before") <(echo "$after") | grep '^[A-Z]' |
    grep -v '^BASH_\|^PIPESTATUS' | tr '\n' ' ') || true
  [[ -z $new ]] || bad "$SETTINGS sets ${new% }, which is not a setting. settings.example.sh has" \
    "all settings; write variables of your own in lower case."
}

settings_as_read() {  # -> assignments of all settings, for eval
  local name names
  mapfile -t names < <(sed -n 's/^\([A-Z_]*\)=.*/\1/p' "$TPU_SCRIPTS/settings.example.sh")
  # Without "declare", which would make them local to the function that evaluates this.
  for name in "${names[@]}"; do declare -p "$name" | sed '1s/^declare [^ ]* //'; done
}

check_settings() {
  local name form='v2|v3|v4|v5p|v5litepod|v6e|tpu7x'
  for name in NAME PROJECT ZONE RUNTIME_VERSION COMMIT CONFIG WORKDIR; do
    [[ -n ${!name} ]] || bad "$name is empty in $SETTINGS. Set it."
  done
  [[ $NAME =~ ^[a-z]([-a-z0-9]{0,38}[a-z0-9])?$ ]] || bad "NAME is '$NAME'; it must be at most 40" \
    "lower-case letters, digits and '-', start with a letter and not end with '-'."
  for name in SLICES INTERVAL; do
    [[ ${!name} =~ ^[1-9][0-9]{0,5}$ ]] || bad "$name is '${!name}'; it must be a whole number," \
      "at least 1."
  done
  [[ $MAX_RESTARTS =~ ^[0-9]{1,6}$ ]] || bad "MAX_RESTARTS is '$MAX_RESTARTS'; it must be a whole" \
    "number; 0 for no restarts."
  [[ $CAPACITY =~ ^(spot|reserved|on-demand)$ ]] || bad "CAPACITY is '$CAPACITY'; it must be one" \
    "of spot, reserved, on-demand. Spot and reserved exclude each other."
  [[ $QUEUED =~ ^(true|false)$ ]] || bad "QUEUED is '$QUEUED'; it must be true or false."
  [[ $QUEUED == true || $SLICES == 1 ]] || bad "SLICES is $SLICES and QUEUED is false; several" \
    "slices need a queued resource: set QUEUED=true."
  [[ $ACCELERATOR_TYPE =~ ^($form)-([1-9][0-9]{0,4})$ ]] || bad "ACCELERATOR_TYPE is" \
    "'$ACCELERATOR_TYPE'; it must be GENERATION-NUMBER with a generation of ${form//|/, }, such" \
    "as v5litepod-256. List those of a zone: gcloud compute tpus accelerator-types list."
  count_hosts "${BASH_REMATCH[1]}" "${BASH_REMATCH[2]}"
  [[ $WORKDIR == gs://?*/?* || $((HOSTS * SLICES)) == 1 ]] || bad "WORKDIR is '$WORKDIR', but" \
    "this run has $((HOSTS * SLICES)) hosts, which share no disk: it must be gs://BUCKET/FOLDER."
  WORKDIR=${WORKDIR%/}
}

count_hosts() {  # GENERATION NUMBER; sets GENERATION, CHIPS (of a slice) and HOSTS (VMs of a slice)
  GENERATION=$1 CHIPS=$2
  case $1 in
    v5litepod | v6e) ;;  # are counted in chips
    *) ((CHIPS % 2 == 0)) || bad "ACCELERATOR_TYPE is '$1-$2'; for $1 the number counts cores, two" \
         "per chip, so it must be even."
       CHIPS=$((CHIPS / 2)) ;;
  esac
  HOSTS=1  # up to 8 chips of v5litepod and v6e are in one VM; larger slices have 4 per VM
  if ((CHIPS > 8)) || [[ $1 != v5litepod && $1 != v6e && $CHIPS -gt 4 ]]; then
    ((CHIPS % 4 == 0)) || bad "ACCELERATOR_TYPE is '$1-$2', which has $CHIPS chips; a slice of" \
      "several VMs has 4 in each, so the number of chips must be a multiple of 4."
    HOSTS=$((CHIPS / 4))
  fi
}

need_cloud_storage() {  # WHY
  [[ $WORKDIR == gs://* ]] || bad "WORKDIR is '$WORKDIR': $1. Use gs://BUCKET/FOLDER."
}

# --- Commands -------------------------------------------------------------------------------------

quoted() {  # ARGUMENTS... quoted for bash
  local word words=()
  for word in "$@"; do
    [[ $word =~ ^[-A-Za-z0-9_./:=,@%+^]+$ ]] || word=${word@Q}
    words+=("$word")
  done
  echo "${words[*]}"
}

show() { quoted "$@" >&3; }

call() {  # runs a command that has effects; a dry run shows it instead
  if $DRY_RUN; then show "$@"; else "$@"; fi
}

# Options of ssh and scp. A VM that disappears closes no connection, so they end after a minute
# without a response. Nothing may prompt: BatchMode for a passphrase, --quiet for the first key.
SSH_OPTIONS=(ServerAliveInterval=15 ServerAliveCountMax=4 BatchMode=yes)
LIMIT=30m  # per command; installing and creating a large pod take the longest

limited() {  # runs a command that ends within LIMIT, also if the network or a worker hangs
  if $DRY_RUN; then show "$@"; return; fi
  local code=0
  # Ctrl-C does not reach the command under timeout, so it runs in the background: Ctrl-C ends wait.
  timeout --kill-after=10 "$LIMIT" "$@" < /dev/null &
  wait "$!" || code=$?
  if ((code == 124 || code == 137)); then
    echo "${0##*/}: no answer within $LIMIT: $(quoted "$@")" >&2
  fi
  return "$code"
}

need_gcloud() {
  $DRY_RUN || command -v gcloud > /dev/null || fail "gcloud is not installed, or not on the" \
    "PATH: https://cloud.google.com/sdk/docs/install. (--dry-run works without it.)"
  $DRY_RUN || command -v timeout > /dev/null || fail "timeout is not installed, or not on the" \
    "PATH (macOS: brew install coreutils)."
}

exact_commit() {  # REVISION -> the commit's hash; it must contain the config
  local commit
  commit=$(git -C "$ROOT" rev-parse --verify --quiet "$1^{commit}") || bad "'$1' is not a commit" \
    "of the git repository $ROOT. Set COMMIT in $SETTINGS."
  git -C "$ROOT" cat-file -e "$commit:${CONFIG%%:*}" 2> /dev/null || bad "CONFIG is '$CONFIG'," \
    "but commit $commit has no such file. Commit it first; only committed files reach the pod."
  echo "$commit"
}

nodes() {  # the names of the slices' TPU VMs
  local i
  if ((SLICES == 1)); then echo "$NAME"; return; fi
  for ((i = 0; i < SLICES; i++)); do echo "$NAME-$i"; done
}

on_worker() {  # NODE WORKER COMMAND; WORKER may be "all"
  limited gcloud compute tpus tpu-vm ssh "$1" "${WHERE[@]}" "${SSH_FLAGS[@]}" \
    "${SSH_OPTIONS[@]/#/--ssh-flag=-o}" --quiet --worker="$2" --command="$3"
}

on_slices() {  # FUNCTION ARGUMENTS...: calls FUNCTION NODE ARGUMENTS... for all slices in parallel
  local node job jobs=() failed=0
  for node in $(nodes); do
    if $DRY_RUN; then "$1" "$node" "${@:2}"; continue; fi
    "$1" "$node" "${@:2}" 2>&1 | while IFS= read -r line; do echo "[$node] $line"; done &
    jobs+=($!)
  done
  for job in "${jobs[@]}"; do wait "$job" || failed=1; done
  return $failed
}

on_all() {  # COMMAND, on all workers of all slices
  on_slices on_worker all "$1"
}

# --- The pod --------------------------------------------------------------------------------------

create_pod() {
  local kind=(tpu-vm create "$NAME" "--version=$RUNTIME_VERSION") flags=()
  if $QUEUED; then
    kind=(queued-resources create "$NAME" "--runtime-version=$RUNTIME_VERSION")
    flags=("--node-id=$NAME")
    if ((SLICES > 1)); then flags=("--node-count=$SLICES" "--node-prefix=$NAME"); fi
  fi
  if [[ $CAPACITY != on-demand ]]; then flags+=("--$CAPACITY"); fi
  limited gcloud compute tpus "${kind[@]}" "${WHERE[@]}" "--accelerator-type=$ACCELERATOR_TYPE" \
    "${flags[@]}" "${CREATE_FLAGS[@]}"
}

delete_pod() {
  if $QUEUED; then  # --force: with its TPU VMs
    limited gcloud compute tpus queued-resources delete "$NAME" "${WHERE[@]}" --force --quiet
  else
    limited gcloud compute tpus tpu-vm delete "$NAME" "${WHERE[@]}" --quiet
  fi
}

pod_state() {  # -> READY, another state of gcloud, NOT_FOUND, or UNKNOWN
  local state node all=READY
  if $QUEUED; then
    state=$(describe queued-resources "$NAME" state.state)
    if [[ $state != ACTIVE ]]; then echo "$state"; return; fi
  fi
  for node in $(nodes); do
    state=$(describe tpu-vm "$node" state)
    # Its queued resource exists.
    if $QUEUED && [[ $state == NOT_FOUND ]]; then state=UNKNOWN; fi
    if is_dead "$state"; then all=$state; break; fi
    if [[ $state != READY ]]; then all=$state; fi
  done
  echo "$all"
}

is_dead() {  # STATE: one from which no TPU VM or queued resource recovers
  [[ $1 =~ ^(PREEMPTED|TERMINATED|SUSPENDED|FAILED)$ ]]
}

describe() {  # KIND NAME FIELD -> the state, NOT_FOUND, or UNKNOWN if gcloud fails
  local errors output
  local command=(gcloud compute tpus "$1" describe "$2" "${WHERE[@]}" "--format=value($3)")
  if $DRY_RUN; then
    show "${command[@]}"
    if [[ $1 == queued-resources ]]; then echo ACTIVE; else echo READY; fi
    return
  fi
  errors=$(mktemp)
  if output=$(LIMIT=2m limited "${command[@]}" 2> "$errors"); then
    echo "${output:-UNKNOWN}"
  elif grep -q NOT_FOUND "$errors"; then
    echo NOT_FOUND
  else
    cat "$errors" >&2
    echo UNKNOWN
  fi
  rm -f "$errors"
}
