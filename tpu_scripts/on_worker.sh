#!/usr/bin/env bash
# Called by the other scripts on each worker of a pod, by ssh; not by users.
#
#   on_worker.sh setup | start ARGUMENT... | stop [--restart] | state
#
# ~/bigjax-run holds the state of the run on this worker:
#   lock         locked as long as any process of the run is alive
#   pid          of bigjax
#   log.txt      its output; log-before.txt is that of the previous run
#   stop         exists if somebody has called stop.sh
#   exit_code    of bigjax, after it has ended
set -euo pipefail
here=$(cd "$(dirname "$(realpath "$0")")/.." && pwd)  # the commit's folder, not the link ~/bigjax
run=$HOME/bigjax-run
mkdir -p "$run"

setup() {
  if [[ ! -e $here/.installed ]]; then
    # The VM images have an older Python than bigjax needs; uv installs one without root.
    if [[ ! -x $HOME/.local/bin/uv ]]; then
      curl -LsSf https://astral.sh/uv/0.9.0/install.sh |
        env UV_INSTALL_DIR="$HOME/.local/bin" UV_NO_MODIFY_PATH=1 sh
    fi
    "$HOME/.local/bin/uv" venv --quiet --clear --python 3.11 "$here/.venv"
    # constraints.txt has the versions that CI uses, including jax, its libtpu and gcsfs.
    "$HOME/.local/bin/uv" pip install --quiet --python "$here/.venv" -c "$here/constraints.txt" \
      -e "${here}[tpu,gcs]"
    touch "$here/.installed"
  fi
  ln -sfn "$here" "$HOME/bigjax"
  echo "$(hostname): $(basename "$here") is installed."
}

start() {  # ARGUMENTS of bigjax train
  exec 9>> "$run/lock"
  # Wait for a second, since stop and state hold it for a moment.
  flock --wait 1 9 || complain "a run is in progress. stop.sh stops it, logs.sh shows it."
  rm -f "$run/pid" "$run/stop" "$run/exit_code"
  if [[ -e $run/log.txt ]]; then mv "$run/log.txt" "$run/log-before.txt"; fi
  # A new session without ssh's streams survives the end of ssh. It inherits the lock.
  setsid nohup bash "$here/tpu_scripts/on_worker.sh" supervise "$@" \
    > "$run/log.txt" 2>&1 < /dev/null &
  echo "$(hostname): started."
}

supervise() {
  local code=0
  cd "$here"
  .venv/bin/bigjax train "$@" &
  echo $! > "$run/pid"
  wait $! || code=$?
  echo "$code" > "$run/exit_code.new"
  mv "$run/exit_code.new" "$run/exit_code"  # atomically
}

stop() {  # [--restart]: called by watch.sh, which starts the run again; not a user's stop
  exec 9>> "$run/lock"
  if flock --nonblock 9; then
    echo "$(hostname): no run is in progress."
    return
  fi
  if [[ ${1:-} != --restart ]]; then touch "$run/stop"; fi
  while [[ ! -s $run/pid ]]; do sleep 0.1; done  # it is just being started
  kill -TERM "$(cat "$run/pid")" 2> /dev/null || true  # it may have ended by itself
  flock --wait 600 9 || complain "the run has not stopped within 10 minutes. See logs.sh."
  local code
  code=$(cat "$run/exit_code" 2> /dev/null || echo unknown)
  # 143: SIGTERM came while it was loading, before it handles signals. There was nothing to save.
  [[ $code == 0 || $code == 143 ]] ||
    complain "the run has ended with exit code $code. See logs.sh."
  echo "$(hostname): stopped."
}

# Prints none, running, asked (stopped by stop.sh), stopped (by a signal), held (another process
# trains in the work folder), failed N, or finished.
state() {
  exec 9>> "$run/lock"
  if ! flock --nonblock 9; then echo running; return; fi
  if [[ ! -e $run/exit_code ]]; then echo none; return; fi  # not started, or the VM was rebooted
  local code
  code=$(cat "$run/exit_code")
  # A run that was stopped and has saved exits with 0, like a finished one. Before it handles
  # signals they end it with 128 + their number; and if one host stops before the others, these may
  # lose it, which is 75. Any other code is a failure, also after stop.sh.
  if [[ -e $run/stop && $code =~ ^(0|75|143)$ ]]; then echo asked
  elif [[ $code =~ ^(130|143)$ ]]; then echo stopped
  elif [[ $code == 75 ]] && grep -q "is held by process" "$run/log.txt"; then echo held
  elif [[ $code != 0 ]]; then echo "failed $code"
  elif grep -q "Stopped by SIG" "$run/log.txt"; then echo stopped
  else echo finished
  fi
}

complain() {
  echo "$(hostname): $*" >&2
  exit 1
}

"$@"
