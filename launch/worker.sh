#!/usr/bin/env bash
# Control the trainer on one machine of a job, called over ssh. The trainer continues when the
# connection ends.
#   worker.sh start train CONFIG ...   start in the background
#   worker.sh status                   idle, running, exit CODE, or lost (ended without an exit code)
#   worker.sh stop [SECONDS]           SIGTERM, and SIGKILL after SECONDS (300: time for a save)
#   worker.sh log                      follow the log
set -euo pipefail
launch=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
state=${JAXCREDIT_STATE:-$HOME/.jaxcredit}
mkdir -p "$state"

# Process ids are valid for one boot only: delete those of an earlier boot.
boot() { cat /proc/sys/kernel/random/boot_id; }
[ "$(cat "$state/boot" 2>/dev/null)" = "$(boot)" ] || rm -f "$state/pid" "$state/exit"
alive() { [ -s "$state/pid" ] && kill -0 "$(cat "$state/pid")" 2>/dev/null; }

start() {
  if alive; then
    echo "a trainer is already running (process $(cat "$state/pid")): stop it first" >&2
    exit 1
  fi
  rm -f "$state/pid" "$state/exit"
  boot >"$state/boot"
  export JAXCREDIT_DEVICE=${JAXCREDIT_DEVICE:-tpu} JAXCREDIT_VENV=${JAXCREDIT_VENV:-$HOME/jaxcredit-venv}
  # The shell in between records the exit code of the trainer. Signals go to the trainer, whose
  # process id is in `pid`.
  # shellcheck disable=SC2016  # expanded in the new session
  nohup setsid bash -c '
    state=$1 entry=$2
    shift 2
    "$entry" "$@" &
    echo $! >"$state/pid"
    code=0
    wait $! || code=$?
    echo $code >"$state/exit.part" && mv "$state/exit.part" "$state/exit"
  ' worker "$state" "$launch/entry.sh" "$@" </dev/null >>"$state/log" 2>&1 &
  for _ in {1..50}; do
    if [ -s "$state/pid" ]; then echo started; return; fi
    sleep 0.1
  done
  echo "the trainer did not start: see $state/log" >&2
  exit 1
}

status() {
  if [ -f "$state/exit" ]; then echo "exit $(cat "$state/exit")"
  elif alive; then echo running
  elif [ ! -f "$state/pid" ]; then echo idle
  else
    sleep 1 # the exit code of a trainer that has just ended may follow
    if [ -f "$state/exit" ]; then echo "exit $(cat "$state/exit")"; else echo lost; fi
  fi
}

stop() {
  if alive; then
    kill -TERM "$(cat "$state/pid")"
    for ((i = 0; i < 5 * ${1:-300}; i++)); do
      alive || break
      sleep 0.2
    done
    ! alive || kill -KILL "$(cat "$state/pid")" || true
  fi
  status
}

case ${1:-} in
  start) shift; start "$@" ;;
  status) status ;;
  stop) stop "${2:-}" ;;
  log) touch "$state/log"; exec tail -n 100 -F "$state/log" ;;
  *) sed -n '2,/^[^#]/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2; exit 2 ;;
esac
