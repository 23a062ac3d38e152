# shellcheck shell=bash
# Sourced: a run on CPUs. JAX_NUM_CPU_DEVICES=8 makes eight devices of one processor, to try a mesh at home.
# shellcheck source-path=SCRIPTDIR source=../cache.sh
source "$(dirname "${BASH_SOURCE[0]}")/../cache.sh"
export JAX_PLATFORMS=${JAX_PLATFORMS:-cpu}
