#!/usr/bin/env bash
# Start the trainer:
#   JAXCREDIT_DEVICE=gpu launch/entry.sh train configs/quickstart.py --run a --resume auto
# Sets up the device and the process count, then runs jaxcredit with `exec`: jaxcredit keeps the
# process id of this script and receives its signals.
#   JAXCREDIT_DEVICE   tpu, gpu or cpu
#   JAXCREDIT_VENV     a virtual environment to run in (default: the jaxcredit on PATH)
set -euo pipefail
launch=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)

case ${1:-} in
  -h | --help) sed -n '2,/^[^#]/s/^# \{0,1\}//p' "${BASH_SOURCE[0]}" >&2; exit 2 ;;
esac
if [ ! -f "$launch/env/${JAXCREDIT_DEVICE:-}.sh" ]; then
  echo "JAXCREDIT_DEVICE is '${JAXCREDIT_DEVICE:-}': set it to tpu, gpu or cpu" >&2
  exit 2
fi
# shellcheck disable=SC1090  # one of three files
source "$launch/env/$JAXCREDIT_DEVICE.sh"
# shellcheck source-path=SCRIPTDIR source=world.sh
source "$launch/world.sh"
[ -z "${JAXCREDIT_VENV:-}" ] || PATH=$JAXCREDIT_VENV/bin:$PATH
if ! command -v jaxcredit >/dev/null; then
  echo "no jaxcredit on PATH: install it (launch/install.sh $JAXCREDIT_DEVICE), or set JAXCREDIT_VENV to its virtual environment" >&2
  exit 2
fi

joined=()
if [ "${1:-}" = train ] && [ "$JAXCREDIT_PROCESSES" -gt 1 ]; then
  joined=(--processes "$JAXCREDIT_PROCESSES" --process "$JAXCREDIT_PROCESS" --coordinator "$JAXCREDIT_COORDINATOR")
fi
echo "process $JAXCREDIT_PROCESS of $JAXCREDIT_PROCESSES on ${HOSTNAME:-$(hostname)}: jaxcredit $* ${joined[*]}" >&2
exec jaxcredit "$@" "${joined[@]}"
