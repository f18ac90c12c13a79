#!/usr/bin/env bash
# What the other scripts call on each worker of a pod, by ssh. Not for people.
#
#   on_worker.sh setup | start ARGUMENT... | stop [--restart] | state
#
# ~/bigjax-run holds what is known of the run on this worker:
#   lock         held by the run as long as any of it lives, so it needs no process ids to be true
#   pid          of bigjax
#   log.txt      what it prints; log-before.txt is that of the run before
#   stop         somebody has called stop.sh
#   exit_code    how it ended
set -euo pipefail
here=$(cd "$(dirname "$(realpath "$0")")/.." && pwd)  # the commit's folder, not the link ~/bigjax
run=$HOME/bigjax-run
mkdir -p "$run"

setup() {
  if [[ ! -e $here/.installed ]]; then
    # The VM images have an older Python than bigjax needs; uv brings one, without root.
    if [[ ! -x $HOME/.local/bin/uv ]]; then
      curl -LsSf https://astral.sh/uv/0.9.0/install.sh |
        env UV_INSTALL_DIR="$HOME/.local/bin" UV_NO_MODIFY_PATH=1 sh
    fi
    "$HOME/.local/bin/uv" venv --quiet --clear --python 3.11 "$here/.venv"
    # constraints.txt holds the versions that CI uses, of jax, its libtpu and gcsfs too.
    "$HOME/.local/bin/uv" pip install --quiet --python "$here/.venv" -c "$here/constraints.txt" \
      -e "${here}[tpu,gcs]"
    touch "$here/.installed"
  fi
  ln -sfn "$here" "$HOME/bigjax"
  echo "$(hostname): $(basename "$here") is installed."
}

start() {  # ARGUMENTS of bigjax train
  exec 9>> "$run/lock"
  # A second, since stop and state hold it for a moment.
  flock --wait 1 9 || complain "a run is going on here. stop.sh stops it, logs.sh shows it."
  rm -f "$run/pid" "$run/stop" "$run/exit_code"
  if [[ -e $run/log.txt ]]; then mv "$run/log.txt" "$run/log-before.txt"; fi
  # A session of its own with nothing of ssh's open: it lives when ssh ends. It inherits the lock.
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
  mv "$run/exit_code.new" "$run/exit_code"  # whole or not at all
}

stop() {  # [--restart]: watch.sh starts it again, so that nobody has asked that it be stopped
  exec 9>> "$run/lock"
  if flock --nonblock 9; then
    echo "$(hostname): no run is going on."
    return
  fi
  if [[ ${1:-} != --restart ]]; then touch "$run/stop"; fi
  while [[ ! -s $run/pid ]]; do sleep 0.1; done  # it has only just been started
  kill -TERM "$(cat "$run/pid")" 2> /dev/null || true  # it may have ended by itself
  flock --wait 600 9 || complain "the run was told to stop 10 minutes ago and has not. See logs.sh."
  local code
  code=$(cat "$run/exit_code" 2> /dev/null || echo unknown)
  # 143: SIGTERM came while it was loading and did not listen yet. There was nothing to save.
  [[ $code == 0 || $code == 143 ]] ||
    complain "the run has ended with exit code $code. See logs.sh."
  echo "$(hostname): stopped."
}

# none, running, asked (stopped by stop.sh), stopped (by a signal), held (another process trains in
# the work folder), failed N, finished
state() {
  exec 9>> "$run/lock"
  if ! flock --nonblock 9; then echo running; return; fi
  if [[ ! -e $run/exit_code ]]; then echo none; return; fi  # not started, or the VM came up again
  local code
  code=$(cat "$run/exit_code")
  # A run that was told to stop, and has saved, exits with 0 as one that is done does. Before it
  # listens to signals they end it with 128 + their number; and where one host stops before the
  # others, these may lose it, which is 75. Other codes would come again, whoever stopped it.
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
