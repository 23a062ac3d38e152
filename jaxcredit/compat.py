"""The parts of jax outside its public interface, each with what replaces it in a version that lacks it.

tests/test_private_imports.py lists the whole of them."""

from collections.abc import Sequence
from typing import Any

import jax
import numpy as np
from jax.sharding import AxisType


def device_grid(shape: Sequence[int], devices: Sequence[Any], *, split: bool) -> np.ndarray:
    """The devices in the shape of a mesh, near ones along its last axes. `split`: an axis of a torus may serve two axes of the mesh.

    Without `jax.experimental.mesh_utils`: `jax.make_mesh`, which splits axes where it finds that right.
    """
    try:
        from jax.experimental import mesh_utils
    except ImportError:
        names = tuple(map(str, range(len(shape))))
        return jax.make_mesh(tuple(shape), names, devices=tuple(devices), axis_types=(AxisType.Auto,) * len(shape)).devices
    return mesh_utils.create_device_mesh(tuple(shape), devices, allow_split_physical_axes=split)


def tpu_devices(name: str, **options: Any) -> list[Any]:
    """The devices of a TPU topology that need not be here. Without `jax.experimental.topologies`: an error that says so."""
    try:
        from jax.experimental import topologies
    except ImportError as error:
        raise ImportError(f"jax {jax.__version__} cannot compile for TPUs that are not here: plan without --topology") from error
    return list(topologies.get_topology_desc(platform="tpu", topology_name=name, **options).devices)
