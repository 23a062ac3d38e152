"""Arrays and counts that the processes of a job share. Every process must call the collectives in the same order."""

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec


def gathered(x) -> np.ndarray:
    """All-gather over processes: the numpy array `[processes, ...]` of every process's `x`, which has the same shape and dtype in each."""
    x = np.asarray(x)[None]
    devices = Mesh(np.array(jax.devices()).reshape(jax.process_count(), -1), ("process", "local"))
    sharding = NamedSharding(devices, PartitionSpec("process"))
    local = [jax.device_put(x, device) for device in sharding.addressable_devices]
    return whole(
        jax.make_array_from_single_device_arrays(
            (jax.process_count(), *x.shape[1:]), sharding, local
        )
    )


def whole(x: jax.Array) -> np.ndarray:
    """Full numpy value, in every process, of an array sharded over several processes."""
    sharding = x.sharding
    assert isinstance(sharding, NamedSharding)
    return np.asarray(
        jax.jit(lambda x: x, out_shardings=NamedSharding(sharding.mesh, PartitionSpec()))(x)
    )


def wait() -> None:
    """Barrier: return once every process has called it."""
    gathered(np.int32(0))


def local_slice(n: int, *, process: int | None = None, processes: int | None = None) -> slice:
    """This process's share of a global batch of `n` rows: equal for all processes, contiguous, in the order of the processes.

    Args:
        n: rows of the global batch, a multiple of `processes`.
        process: index of the process; None: this one.
        processes: number of processes; None: those of this job.

    Raises:
        ValueError: `processes` does not divide `n`.
    """
    process = jax.process_index() if process is None else process
    processes = jax.process_count() if processes is None else processes
    if n % processes:
        raise ValueError(
            f"{n} prompts cannot be shared equally by {processes} processes: take a batch that is a multiple of {processes}"
        )
    return slice(process * n // processes, (process + 1) * n // processes)


def all_process_sum(count: float) -> float:
    """Sum of `count` over all processes, in float32, of the type of `count`. A collective."""
    if jax.process_count() == 1:
        return count
    return type(count)(gathered(np.float32(count)).sum())


def to_global_array(x: np.ndarray, sharding: jax.sharding.Sharding | None = None) -> jax.Array:
    """Global array of which `x` holds the rows of this process, in the given sharding (None: the default device)."""
    if sharding is None:
        return jax.device_put(x)
    return jax.make_array_from_process_local_data(sharding, x)


def local_rows(x: jax.Array) -> np.ndarray:
    """Rows of a global array that are stored on devices of this process, in order, on the host."""
    if x.is_fully_addressable:
        return np.asarray(jax.device_get(x))
    shards = {shard.index[0].start or 0: shard.data for shard in x.addressable_shards}
    return np.concatenate([np.asarray(jax.device_get(shards[start])) for start in sorted(shards)])
