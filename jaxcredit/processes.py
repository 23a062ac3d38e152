"""Values shared between the processes of a job. Every process must make the same calls in the same order."""

import jax
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec


def gathered(x) -> np.ndarray:
    """The numpy values of all processes, `[processes, ...]`; in each process `x` has the same shape and dtype."""
    x = np.asarray(x)[None]
    devices = Mesh(np.array(jax.devices()).reshape(jax.process_count(), -1), ("process", "local"))
    where = NamedSharding(devices, PartitionSpec("process"))
    here = [jax.device_put(x, device) for device in where.addressable_devices]
    return whole(jax.make_array_from_single_device_arrays((jax.process_count(), *x.shape[1:]), where, here))


def whole(x: jax.Array) -> np.ndarray:
    """An array that lies on several processes, in each of them."""
    sharding = x.sharding
    assert isinstance(sharding, NamedSharding)
    return np.asarray(jax.jit(lambda x: x, out_shardings=NamedSharding(sharding.mesh, PartitionSpec()))(x))


def wait() -> None:
    """Return once every process is here."""
    gathered(np.int32(0))
