"""Collectives between the processes of a job. Every process must make the same calls in the same order."""

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
