#!/usr/bin/env bash
# Manage TPU VMs by queued resources: tpu_vm.sh COMMAND NAME OPTIONS [-- ARGUMENTS OF jaxcredit]
#   launch/tpu_vm.sh create NAME --zone Z --type v5litepod-16 [--spot] [--runtime R]   request a slice
#   launch/tpu_vm.sh state  NAME --zone Z           ABSENT, WAITING_FOR_RESOURCES, ..., ACTIVE, SUSPENDED, FAILED
#   launch/tpu_vm.sh wait   NAME --zone Z           wait until the slice is ACTIVE
#   launch/tpu_vm.sh setup  NAME --zone Z [--before SCRIPT]   copy the last commit to every worker and install it there
#   launch/tpu_vm.sh run    NAME --zone Z -- train configs/x.py --run a --runs gs://BUCKET/runs --resume auto
#   launch/tpu_vm.sh status NAME --zone Z           one line a worker: new, idle, running, exit CODE or lost
#   launch/tpu_vm.sh logs   NAME --zone Z [--worker 0]
#   launch/tpu_vm.sh stop   NAME --zone Z           send SIGTERM on every worker: the run saves and ends
#   launch/tpu_vm.sh delete NAME --zone Z           delete the slice and its request
# --project P replaces gcloud's default project; --dry-run prints the commands and runs none.
# --before SCRIPT runs a script of yours first on every worker, for example to mount the disk of
# --runs.
set -euo pipefail
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
usage() { sed -n '2,/^[^#]/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2; exit 2; }
die() { echo "$*" >&2; exit 2; }

[ $# -ge 2 ] || usage
verb=$1 name=$2
shift 2
zone='' type='' runtime='' before='' worker=0 dry='' where=() tier=()
while [ $# -gt 0 ]; do
  case $1 in
    --zone | --type | --runtime | --project | --before | --worker)
      [ $# -ge 2 ] || die "$1 needs a value"
      case $1 in
        --project) where+=("--project=$2") ;;
        *) printf -v "${1#--}" %s "$2" ;;
      esac
      shift 2
      ;;
    --spot) tier=(--spot); shift ;;
    --dry-run) dry=1; shift ;;
    --) shift; break ;;
    *) die "unknown option $1; see the first lines of ${BASH_SOURCE[0]}" ;;
  esac
done
[ -n "$zone" ] || die "give the zone, for example --zone us-central1-a"
where+=("--zone=$zone")

cloud() {
  if [ -n "$dry" ]; then printf '%q ' gcloud compute tpus "$@" && echo; else gcloud compute tpus "$@"; fi
}
on() { local workers=$1; shift; cloud tpu-vm ssh "$name" "${where[@]}" "--worker=$workers" --command="$*"; }

state() {
  local output
  if output=$(cloud queued-resources describe "$name" "${where[@]}" '--format=value(state.state)' 2>&1); then
    tail -n 1 <<<"$output"
  elif [[ $output == *NOT_FOUND* ]]; then
    echo ABSENT
  else
    echo "$output" >&2 # the state is unknown: the caller must neither create nor delete
    return 1
  fi
}

image() {
  case $type in
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v6e-*) echo v2-alpha-tpuv6e ;;
    v2-* | v3-* | v4-*) echo tpu-ubuntu2204-base ;;
    *) die "unknown type '$type': give --type v5litepod-16, v5p-8, v6e-8, ... or name the runtime with --runtime" ;;
  esac
}

case $verb in
  create)
    [ -n "$type" ] || die "give the type of the slice, for example --type v5litepod-16"
    runtime=${runtime:-$(image)}
    cloud queued-resources create "$name" "--node-id=$name" "${where[@]}" "--accelerator-type=$type" "--runtime-version=$runtime" "${tier[@]}"
    ;;
  state) state ;;
  wait)
    until [ -n "$dry" ] || [ "$(state)" = ACTIVE ]; do
      case $(state) in
        FAILED | SUSPENDING | SUSPENDED | DELETING | ABSENT) die "$name will not become ACTIVE ($(state)): delete it and create it again" ;;
      esac
      sleep "${JAXCREDIT_POLL:-30}"
    done
    ;;
  setup)
    root=$(cd "$here/.." && pwd)
    pack=$(mktemp -d)
    trap 'rm -rf "$pack"' EXIT
    git -C "$root" archive --format=tar.gz --output="$pack/jaxcredit.tar.gz" HEAD
    git -C "$root" diff --quiet HEAD || echo "note: uncommitted changes are not copied" >&2
    cp "${before:-/dev/null}" "$pack/before.sh"
    cloud tpu-vm scp "$pack/jaxcredit.tar.gz" "$pack/before.sh" "$name:" "${where[@]}" --worker=all
    on all 'set -e; bash before.sh; mkdir -p jaxcredit; tar -xzf jaxcredit.tar.gz -C jaxcredit; bash jaxcredit/launch/install.sh tpu'
    ;;
  run)
    [ $# -gt 0 ] || die "give the command of jaxcredit: -- train configs/x.py --run NAME ..."
    on all "cd jaxcredit && launch/worker.sh start $(printf '%q ' "$@")"
    ;;
  status) on all 'if [ -x jaxcredit-venv/bin/jaxcredit ]; then jaxcredit/launch/worker.sh status; else echo new; fi' ;;
  logs) on "$worker" jaxcredit/launch/worker.sh log ;;
  stop) on all jaxcredit/launch/worker.sh stop "${JAXCREDIT_GRACE:-300}" ;;
  delete) cloud queued-resources delete "$name" "${where[@]}" --force --quiet ;;
  *) usage ;;
esac
