"""Functions of jax outside its public interface, each with a replacement for versions that lack it.

tests/project/test_private_imports.py lists every such import of the package.
"""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType


def device_grid(shape: Sequence[int], devices: Sequence[Any], *, split: bool) -> np.ndarray:
    """Devices as an array in the shape of a mesh, with neighboring devices along its last axes.

    In a jax without `jax.experimental.mesh_utils` the order is that of `jax.make_mesh`, which
    ignores `split`.

    Args:
        shape: sizes of the mesh's axes.
        devices: as many devices as the product of `shape`.
        split: one axis of a TPU torus may be split over several axes of the mesh.
    """
    try:
        from jax.experimental import mesh_utils
    except ImportError:
        names = tuple(map(str, range(len(shape))))
        return jax.make_mesh(
            tuple(shape), names, devices=tuple(devices), axis_types=(AxisType.Auto,) * len(shape)
        ).devices
    return mesh_utils.create_device_mesh(tuple(shape), devices, allow_split_physical_axes=split)


def tpu_devices(name: str, **options: Any) -> list[Any]:
    """Devices of a TPU topology, for compilation without TPU hardware.

    Raises:
        ImportError: this jax has no `jax.experimental.topologies`.
    """
    try:
        from jax.experimental import topologies
    except ImportError as error:
        raise ImportError(
            f"jax {jax.__version__} cannot compile for TPUs that are not attached: plan without "
            "--topology"
        ) from error
    return list(topologies.get_topology_desc(platform="tpu", topology_name=name, **options).devices)
