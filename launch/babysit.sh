#!/usr/bin/env bash
# Keep one run going on preemptible TPU VMs: create, set up and start, and repeat after each
# preemption.
#   launch/babysit.sh NAME --zone Z --type v5litepod-16 --spot -- train configs/x.py --run a --runs gs://BUCKET/runs
# Options are those of tpu_vm.sh. --runs is a bucket, or a disk that --before mounts on every
# worker. Deletes the slice at the end. Exit code 0: the run is done; 1: the trainer failed more
# than JAXCREDIT_RETRIES times (3). JAXCREDIT_KEEP=1 keeps the slice. Stopping and restarting this
# script is safe: it finds the running trainer.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
retries=${JAXCREDIT_RETRIES:-3} poll=${JAXCREDIT_POLL:-30} grace=${JAXCREDIT_GRACE:-300}
say() { echo "$(date -u +%H:%M:%S) $*"; }

name=${1:-}
case $name in
  '' | -*) sed -n '2,/^[^#]/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2; exit 2 ;;
esac
shift
options=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do options+=("$1"); shift; done
[ $# -eq 0 ] || shift
for needed in --run --runs; do
  case " $* " in
    *" $needed "*) ;;
    *) echo "give the run $needed: every new machine resumes the run from the same name in the same folder" >&2; exit 2 ;;
  esac
done
case " $* " in *" --resume auto "*) ;; *) set -- "$@" --resume auto ;; esac

# Each command of tpu_vm.sh gets its own options.
common=() creation=() preparation=()
for ((i = 0; i < ${#options[@]}; i++)); do
  case ${options[i]} in
    --zone | --project) common+=("${options[i]}" "${options[++i]}") ;;
    --type | --runtime) creation+=("${options[i]}" "${options[++i]}") ;;
    --before) preparation+=("${options[i]}" "${options[++i]}") ;;
    --spot) creation+=(--spot) ;;
    *) echo "unknown option ${options[i]}; see the first lines of ${BASH_SOURCE[0]}" >&2; exit 2 ;;
  esac
done
vm() { local verb=$1; shift; "$here/tpu_vm.sh" "$verb" "$name" "${common[@]}" "$@"; }

finish() {
  [ -n "${JAXCREDIT_KEEP:-}" ] || vm delete || say "could not delete $name: delete it yourself, it costs money until then"
  exit "$1"
}

begin() { say "starting: ${trainer[*]}"; vm run -- "${trainer[@]}" || say "start failed; trying again"; }

# After one worker has ended, stop the others and restart all from the last checkpoint.
restart() {
  workers=$(vm stop | grep -E "$answer" | sort -u) || workers='no answer'
  say "state of the workers: ${workers//$'\n'/, }"
  [ "$workers" != 'exit 0' ] || finish 0
  if grep -qvE '^(idle|exit 0|exit 143)$' <<<"$workers"; then
    failed=$((failed + 1))
    if [ $failed -gt "$retries" ]; then
      say "the trainer failed $failed times: giving up"
      finish 1
    fi
  fi
  begin
}

trainer=("$@") failed=0 silent=0 exiting=0 answer='^(new|idle|running|lost|exit [0-9]+)$'
while :; do
  state=$(vm state) || state='no answer'
  case $state in
    ABSENT) say "requesting $name"; vm create "${creation[@]}" || say "the request was not accepted; trying again" ;;
    SUSPENDING | SUSPENDED | FAILED) say "$name was taken away ($state): deleting the rest"; vm delete || true ;;
    ACTIVE)
      # One line a worker; other output of ssh goes to stderr.
      if ! workers=$(vm status | grep -E "$answer" | sort -u); then
        # Unreachable workers of an ACTIVE request are often the first sign of a preemption.
        silent=$((silent + 1))
        say "no worker answers ($silent of 10)"
        if [ $silent -ge 10 ]; then vm delete || true; silent=0; fi
      else
        silent=0
        [[ $workers == *exit*running* ]] || exiting=$SECONDS
        case $workers in
          'exit 0') say "done"; finish 0 ;;
          running) ;;
          *new*) say "setting up"; vm setup "${preparation[@]}" || say "setup failed; trying again" ;;
          idle) begin ;;
          *)
            if [ $((SECONDS - exiting)) -lt "$grace" ] && [[ $workers == *exit*running* ]]; then
              : # Some workers have ended. The others may be saving, and a second SIGTERM would interrupt the save.
            else
              restart
            fi
            ;;
        esac
      fi
      ;;
    *) say "$state" ;;
  esac
  sleep "$poll"
done
