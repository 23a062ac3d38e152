#!/usr/bin/env bash
# Keep one run alive on TPU VMs that are taken away: create, set up, run, and after a preemption do it again under the same run name.
#   launch/babysit.sh NAME --zone Z --type v5litepod-16 --spot -- train configs/x.py --run a --runs gs://BUCKET/runs
# Options are those of tpu_vm.sh. --runs must outlive the machines and be seen by every worker: a bucket, or a disk that --before mounts.
# Ends with the slice deleted: 0 when the run is done; 1 when the trainer failed JAXCREDIT_RETRIES + 1 times (default 3 + 1).
# JAXCREDIT_KEEP=1 leaves the slice. May be stopped and started again at any time: what runs goes on, and is found.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
retries=${JAXCREDIT_RETRIES:-3} poll=${JAXCREDIT_POLL:-30} grace=${JAXCREDIT_GRACE:-300}
say() { echo "$(date -u +%H:%M:%S) $*"; }

name=${1:-}
[ -n "$name" ] || { sed -n '2,6s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2; exit 2; }
shift
options=()
while [ $# -gt 0 ] && [ "$1" != -- ]; do options+=("$1"); shift; done
[ $# -eq 0 ] || shift
for needed in --run --runs; do
  case " $* " in
    *" $needed "*) ;;
    *) echo "give the run $needed: every machine that goes on with it must find it under the same name, in a folder that outlives them" >&2; exit 2 ;;
  esac
done
case " $* " in *" --resume auto "*) ;; *) set -- "$@" --resume auto ;; esac

# Each verb takes the options that concern it.
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
  [ -n "${JAXCREDIT_KEEP:-}" ] || vm delete || say "could not delete $name: it goes on costing money until you do"
  exit "$1"
}

begin() { say "starting: ${trainer[*]}"; vm run -- "${trainer[@]}" || say "start failed; trying again"; }

# Some worker left, and the others cannot go on without it: they are stopped, and all begin again from the last checkpoint.
restart() {
  workers=$(vm stop | grep -E "$answer" | sort -u) || workers='no answer'
  say "the workers say: ${workers//$'\n'/, }"
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

trainer=("$@") failed=0 deaf=0 leaving=0 answer='^(new|idle|running|lost|exit [0-9]+)$'
while :; do
  state=$(vm state) || state='no answer'
  case $state in
    ABSENT) say "asking for $name"; vm create "${creation[@]}" || say "was not accepted; trying again" ;;
    SUSPENDING | SUSPENDED | FAILED) say "$name was taken away ($state): deleting what is left"; vm delete || true ;;
    ACTIVE)
      # A line for each worker; whatever else ssh says goes to stderr.
      if ! workers=$(vm status | grep -E "$answer" | sort -u); then
        # Workers that cannot be reached while the request still counts as ACTIVE: often the first sign of a preemption.
        deaf=$((deaf + 1))
        say "no worker answers ($deaf of 10)"
        if [ $deaf -ge 10 ]; then vm delete || true; deaf=0; fi
      else
        deaf=0
        [[ $workers == *exit*running* ]] || leaving=$SECONDS
        case $workers in
          'exit 0') say "done"; finish 0 ;;
          running) ;;
          *new*) say "setting up"; vm setup "${preparation[@]}" || say "setup failed; trying again" ;;
          idle) begin ;;
          *)
            if [ $((SECONDS - leaving)) -lt "$grace" ] && [[ $workers == *exit*running* ]]; then
              : # Some have left: the others may be saving, and a second SIGTERM would end them in the middle of it.
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
