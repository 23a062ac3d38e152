# shellcheck shell=bash
# Sourced by entry.sh: settings of a run on CPUs. JAX_NUM_CPU_DEVICES=8 simulates eight devices, for
# example to try a mesh.
# shellcheck source-path=SCRIPTDIR source=../cache.sh
source "$(dirname "${BASH_SOURCE[0]}")/../cache.sh"
export JAX_PLATFORMS=${JAX_PLATFORMS:-cpu}
