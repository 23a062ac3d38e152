# shellcheck shell=bash
# Compiled programs outlive the process: a run that is resumed on the same kind of machine compiles nothing twice.
# A cache is code that will be run: keep it where nobody else can write. A gs:// address works too, and can be shared by the hosts of a job.
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/jaxcredit}
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=${JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS:-1}
# What a trainer says must reach the log of its host before the host is gone.
export PYTHONUNBUFFERED=1
