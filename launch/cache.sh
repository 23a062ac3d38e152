# shellcheck shell=bash
# Folder of jax's cache of compiled programs: a run that resumes on the same kind of machine does
# not compile again. The cache holds executable code: keep it where nobody else can write. A gs://
# address can be shared by the hosts of a job.
export JAX_COMPILATION_CACHE_DIR=${JAX_COMPILATION_CACHE_DIR:-${XDG_CACHE_HOME:-$HOME/.cache}/jaxcredit}
export JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS=${JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS:-1}
# Unbuffered output reaches the log before the machine is preempted.
export PYTHONUNBUFFERED=1
