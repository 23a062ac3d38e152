"""Arrays and counts of a job of several processes.

The collectives are `all_gather`, `replicated`, `barrier` and `all_process_sum`: every process must
call them in the same order.
"""

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec


def all_gather(x: np.typing.ArrayLike) -> np.ndarray:
    """All-gather over processes.

    Args:
        x: array `[...]` of this process, of the same shape and dtype in all processes.

    Returns:
        numpy array `[processes, ...]`, the same in all processes.
    """
    x = np.asarray(x)[None]
    devices = Mesh(np.array(jax.devices()).reshape(jax.process_count(), -1), ("process", "local"))
    sharding = NamedSharding(devices, PartitionSpec("process"))
    local = [jax.device_put(x, device) for device in sharding.addressable_devices]
    return replicated(
        jax.make_array_from_single_device_arrays(
            (jax.process_count(), *x.shape[1:]), sharding, local
        )
    )


def replicated(x: jax.Array) -> np.ndarray:
    """Full value, on the host of every process, of an array sharded over several processes.

    Args:
        x: array with a NamedSharding, as every jitted function on a mesh returns it.
    """
    sharding = x.sharding
    assert isinstance(sharding, NamedSharding)
    return np.asarray(
        jax.jit(lambda x: x, out_shardings=NamedSharding(sharding.mesh, PartitionSpec()))(x)
    )


def barrier() -> None:
    """Barrier: return once every process has called it."""
    all_gather(np.int32(0))


def local_slice(n: int, *, process: int | None = None, processes: int | None = None) -> slice:
    """Rows of a global batch that belong to a process: equal, contiguous shares in process order.

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
            f"{n} prompts cannot be shared equally by {processes} processes: take a batch that is "
            f"a multiple of {processes}"
        )
    return slice(process * n // processes, (process + 1) * n // processes)


def all_process_sum(count: float) -> float:
    """Sum of `count` over all processes, converted to the type of `count`. A collective.

    The sum is computed in float32. With one process `count` is returned as it is.
    """
    if jax.process_count() == 1:
        return count
    return type(count)(all_gather(np.float32(count)).sum())


def to_global_array(x: np.ndarray, sharding: jax.sharding.Sharding | None = None) -> jax.Array:
    """Global array from the rows of every process.

    Args:
        x: rows `[n, ...]` of this process.
        sharding: sharding of the global array; None: `x` on the default device of this process.

    Returns:
        Array `[processes * n, ...]` if the sharding splits the rows over all processes, `[n, ...]`
        if it replicates them.
    """
    if sharding is None:
        return jax.device_put(x)
    return jax.make_array_from_process_local_data(sharding, x)


def local_rows(x: jax.Array) -> np.ndarray:
    """Rows of a global array that are stored on devices of this process, in order, on the host."""
    if x.is_fully_addressable:
        return np.asarray(jax.device_get(x))
    shards = {shard.index[0].start or 0: shard.data for shard in x.addressable_shards}
    return np.concatenate([np.asarray(jax.device_get(shards[start])) for start in sorted(shards)])
