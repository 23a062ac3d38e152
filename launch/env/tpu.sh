# shellcheck shell=bash
# Sourced by entry.sh: settings of a run on TPUs. JAX_PLATFORMS is set so that chips held by another
# process are an error and not a slow run on the CPU.
# shellcheck source-path=SCRIPTDIR source=../cache.sh
source "$(dirname "${BASH_SOURCE[0]}")/../cache.sh"
export JAX_PLATFORMS=${JAX_PLATFORMS:-tpu,cpu}
# JAXCREDIT_FLAGS=overlap turns these flags on. No gain was measured, and the names of flags change
# with libtpu.
if [ "${JAXCREDIT_FLAGS:-}" = overlap ]; then
  LIBTPU_INIT_ARGS="${LIBTPU_INIT_ARGS:-} --xla_tpu_enable_async_collective_fusion=true\
 --xla_tpu_enable_async_collective_fusion_fuse_all_gather=true --xla_tpu_enable_async_collective_fusion_multiple_steps=true\
 --xla_tpu_overlap_compute_collective_tc=true --xla_enable_async_all_gather=true"
  export LIBTPU_INIT_ARGS="${LIBTPU_INIT_ARGS# }"
fi
