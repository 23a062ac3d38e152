# shellcheck shell=bash
# Sourced by entry.sh: settings of a run on NVIDIA GPUs. JAX_PLATFORMS is set so that a broken
# driver is an error and not a slow run on the CPU.
# shellcheck source-path=SCRIPTDIR source=../cache.sh
source "$(dirname "${BASH_SOURCE[0]}")/../cache.sh"
export JAX_PLATFORMS=${JAX_PLATFORMS:-cuda,cpu}
export XLA_PYTHON_CLIENT_MEM_FRACTION=${XLA_PYTHON_CLIENT_MEM_FRACTION:-0.9}
# JAXCREDIT_FLAGS=overlap turns these flags on. No gain was measured, and the names of flags change
# with jaxlib.
if [ "${JAXCREDIT_FLAGS:-}" = overlap ]; then
  XLA_FLAGS="${XLA_FLAGS:-} --xla_gpu_enable_latency_hiding_scheduler=true"
  export XLA_FLAGS="${XLA_FLAGS# }"
fi
