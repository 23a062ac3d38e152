# shellcheck shell=bash
# Sourced by entry.sh: sets JAXCREDIT_PROCESSES, JAXCREDIT_PROCESS and JAXCREDIT_COORDINATOR from
# the variables of Slurm, GKE, SkyPilot or the metadata server of a TPU VM. Values that are already
# set are kept.

_first() { local all=${1//[$'\n ']/,}; echo "${all%%,*}"; }
_count() { local all=${1//[$'\n ']/,}; awk -F, '{ print NF }' <<<"$all"; }

# An attribute from the metadata server of a Google machine. jax, too, reads the address from
# GCE_METADATA_IP.
_metadata() {
  curl --fail --silent --retry 5 --connect-timeout 5 -H 'Metadata-Flavor: Google' \
    "http://${GCE_METADATA_IP:-metadata.google.internal}/computeMetadata/v1/instance/attributes/$1"
}

_world() { JAXCREDIT_PROCESSES=$1 JAXCREDIT_PROCESS=$2 JAXCREDIT_COORDINATOR=$3; }

_find_world() {
  local hosts slices
  if [ -n "${JAXCREDIT_PROCESSES:-}" ]; then
    if [ -z "${JAXCREDIT_PROCESS:-}" ] || [ -z "${JAXCREDIT_COORDINATOR:-}" ]; then
      echo "JAXCREDIT_PROCESSES is set: set JAXCREDIT_PROCESS (0, 1, ...) and JAXCREDIT_COORDINATOR (HOST:PORT of process 0) too" >&2
      return 1
    fi
  elif [ -n "${SLURM_STEP_NODELIST:-}" ] && [ -n "${SLURM_PROCID:-}" ]; then
    # One port a job, because two jobs may share a node.
    hosts=$(scontrol show hostnames "$SLURM_STEP_NODELIST")
    _world "$SLURM_NTASKS" "$SLURM_PROCID" "$(_first "$hosts"):$((61440 + SLURM_JOB_ID % 4096))"
  elif [ -n "${TPU_WORKER_HOSTNAMES:-}" ]; then
    # GKE. With several slices the first host of the first slice is MEGASCALE_COORDINATOR_ADDRESS.
    hosts=$(_count "$TPU_WORKER_HOSTNAMES") slices=${MEGASCALE_NUM_SLICES:-1}
    _world $((hosts * slices)) $((TPU_WORKER_ID + hosts * ${MEGASCALE_SLICE_ID:-0})) \
      "$(_first "${MEGASCALE_COORDINATOR_ADDRESS:-$TPU_WORKER_HOSTNAMES}" | cut -d: -f1):8482"
  elif [ "$JAXCREDIT_DEVICE" = tpu ]; then
    # A TPU VM. An endpoint is HOST, or NAME:ID:IP on older runtimes.
    if ! hosts=$(_metadata worker-network-endpoints); then
      echo "the metadata server of this TPU VM does not answer; for one host set JAXCREDIT_PROCESSES=1 JAXCREDIT_PROCESS=0" \
        "JAXCREDIT_COORDINATOR=localhost:8482" >&2
      return 1
    fi
    _world "$(_count "$hosts")" "$(_metadata agent-worker-number)" "$(_first "$hosts" | awk -F: '{ print $NF }'):8482"
  elif [ -n "${SKYPILOT_NODE_IPS:-}" ]; then
    _world "$(_count "$SKYPILOT_NODE_IPS")" "$SKYPILOT_NODE_RANK" "$(_first "$SKYPILOT_NODE_IPS"):8482"
  else
    _world 1 0 localhost:8482
  fi
}
_find_world
