"""Device meshes, and rules that map logical axes of arrays to mesh axes.

Every parameter and activation has one logical name per dimension. A rule table maps a logical name
to the mesh axes that shard it:

| logical axis | dimension |
|---|---|
| `batch` | prompts of a batch |
| `width` | model width D of every matrix (activations of width D are not sharded by it) |
| `heads`, `kv_heads` | query heads H, key and value heads K |
| `ffn` | hidden units F of an MLP |
| `vocab` | vocabulary V of embedding, unembedding and logits |
| `expert` | experts of a mixture-of-experts layer |
| `length` | tokens of the residual stream, between attention and MLP |
| `query` | tokens inside attention and MLP |

| mesh axis | parallelism |
|---|---|
| `data` | data parallelism over slow links, such as several TPU slices |
| `fsdp` | fully sharded data parallelism (2304.11277): prompts, and weights along `width` |
| `tensor` | tensor parallelism (1909.08053), the residual stream by tokens (2205.05198) |
| `context` | context parallelism: tokens of every layer; attention gathers keys and values |
| `expert` | expert parallelism |

A rule whose mesh axes are absent is ignored. A dimension that the mesh axes of its rule do not
divide (3 kv heads over 2 devices) is replicated.
"""

import contextlib
import dataclasses
import itertools
import math
from collections.abc import Iterator, Mapping, Sequence
from contextvars import ContextVar

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import Array, PyTree

from jaxcredit.parallel.compat import device_grid
from jaxcredit.parallel.params import Param

Rules = dict[str, str | tuple[str, ...]]  # logical axis -> mesh axis or axes

single: Rules = {}  # every array replicated
fsdp: Rules = {
    "batch": ("data", "fsdp"),  # prompts over slices, then over the devices of a slice
    "width": "fsdp",  # each layer's weights are all-gathered before use
}
tensor: Rules = {
    "vocab": "tensor",
    "heads": "tensor",
    "kv_heads": "tensor",
    "ffn": "tensor",
    "length": "tensor",  # sequence parallelism: no activation is stored twice between two matmuls
}
context: Rules = {
    "length": "context",
    "query": "context",  # not the keys: attention all-gathers them
}
fsdp_tensor: Rules = fsdp | tensor | {"expert": "expert"}
fsdp_context: Rules = fsdp | context
# For sampling: fsdp_tensor with weights replicated over fsdp, so that decoding needs no all-gather
# of weights.
sampling_rules: Rules = {name: axes for name, axes in fsdp_tensor.items() if name != "width"}

_planned: ContextVar[Sequence | None] = ContextVar("planned", default=None)


@contextlib.contextmanager
def planned(devices: Sequence) -> Iterator[None]:
    """Context in which meshes are made of the given devices, which need not be attached.

    Programs can be compiled for such devices, not run.

    Args:
        devices: devices of a topology description, for example from `compat.tpu_devices`.
    """
    token = _planned.set(devices)
    try:
        yield
    finally:
        _planned.reset(token)


def available() -> Sequence:
    """Devices that meshes are made of: inside `planned` its devices, else all of the job."""
    chosen = _planned.get()
    return jax.devices() if chosen is None else chosen


def make(shape: Mapping[str, int], devices: Sequence | None = None) -> Mesh:
    """Device mesh with axes in automatic sharding mode, e.g. `make({"fsdp": 4, "tensor": 2})`.

    Args:
        shape: size by axis name, slowest-varying axis first. One size may be -1: the devices that
            are left.
        devices: devices to take from; None: `available()`. Surplus devices stay unused.

    Raises:
        ValueError: too few devices, or several TPU slices that the axis `data` does not cover.
    """
    devices = list(available() if devices is None else devices)
    shape = axis_sizes(shape, len(devices))
    need = math.prod(shape.values())
    if need > len(devices):
        raise ValueError(
            f"a mesh of {shape} needs {need} devices, {len(devices)} are available: make an axis "
            "smaller"
        )
    devices = devices[:need]
    return Mesh(grid(shape, devices), tuple(shape), axis_types=(AxisType.Auto,) * len(shape))


def grid(shape: Mapping[str, int], devices: Sequence) -> np.ndarray:
    """Devices in the shape of a mesh. Several TPU slices are placed along the axis `data`.

    Collectives over `data` use the network between slices, all others the links within a slice.

    Args:
        shape: size by axis name, without -1.
        devices: as many devices as the product of the sizes.

    Raises:
        ValueError: the size of `data` is not a multiple of the number of slices.
    """
    slices = len(set(map(_slice, devices)))
    split = devices[0].platform == "tpu"  # 64 x 4 on a torus of 16 x 16
    if slices == 1:
        return device_grid(tuple(shape.values()), devices, split=split)
    if shape.get("data", 1) % slices:
        raise ValueError(
            f"a mesh of {shape} on {slices} TPU slices: add an axis `data` whose size is a "
            f"multiple of {slices}"
        )
    within = tuple(size // slices if axis == "data" else size for axis, size in shape.items())
    by_slice = itertools.groupby(sorted(devices, key=_slice), _slice)
    return np.concatenate(
        [device_grid(within, list(members), split=split) for _, members in by_slice],
        axis=list(shape).index("data"),
    )


def _slice(device) -> int:
    """Index of a device's TPU slice, 0 for other devices."""
    return getattr(device, "slice_index", None) or 0


def axis_sizes(shape: Mapping[str, int], devices: int | None = None) -> dict[str, int]:
    """Mesh shape with -1 replaced by the number of devices per position of the other axes.

    Args:
        shape: size by axis name; at most one is -1.
        devices: number of devices; None: those of `available()`.

    >>> axis_sizes({"fsdp": -1, "tensor": 2}, 8)
    {'fsdp': 4, 'tensor': 2}
    """
    known = math.prod(s for s in shape.values() if s != -1)
    if -1 not in shape.values():
        return dict(shape)
    left = max(1, (len(available()) if devices is None else devices) // known)
    return {axis: left if size == -1 else size for axis, size in shape.items()}


def mesh_axes(axis: str | None, rules: Rules) -> tuple[str, ...]:
    """Mesh axes that shard a logical axis; () if none does.

    >>> mesh_axes("batch", fsdp)
    ('data', 'fsdp')
    """
    axes = rules.get(axis, ()) if axis else ()
    return (axes,) if isinstance(axes, str) else axes


def shard_count(axis: str, rules: Rules, shape: Mapping[str, int]) -> int:
    """Number of shards of a logical axis on a mesh of the given shape, if its size is divisible.

    >>> shard_count("batch", fsdp, {"data": 2, "fsdp": 4, "tensor": 2})
    8
    """
    return math.prod(axis_sizes(shape).get(name, 1) for name in mesh_axes(axis, rules))


def sharding(
    shape: tuple[int, ...], axes: tuple[str | None, ...], rules: Rules, mesh: Mesh
) -> NamedSharding:
    """Sharding of one array by the logical axes of its dimensions.

    A dimension is replicated if its mesh axes do not divide it, or if they shard an earlier one.

    Args:
        shape: sizes of the dimensions.
        axes: logical axis of each dimension; None: replicated.
        rules: logical axis -> mesh axis or axes.
        mesh: the device mesh.
    """
    spec, used = [], set()
    for size, axis in zip(shape, axes, strict=True):
        names = tuple(name for name in mesh_axes(axis, rules) if name in mesh.shape)
        fits = (
            names
            and used.isdisjoint(names)
            and size % math.prod(mesh.shape[name] for name in names) == 0
        )
        spec.append((names[0] if len(names) == 1 else names) if fits else None)
        used.update(names)
    return NamedSharding(mesh, PartitionSpec(*spec))


@dataclasses.dataclass(frozen=True)
class Layout:
    """Mesh and rules for activations, hashable, so that it can be part of a static argument of jit.

    `Layout(mesh, rules)(x, "batch", None, "heads")` constrains the sharding of x inside a program.

    Args:
        mesh: the device mesh.
        rules: items of a rule table, sorted.
    """

    mesh: Mesh
    rules: tuple[tuple[str, str | tuple[str, ...]], ...]

    def __call__(self, x: Array, *axes: str | None) -> Array:
        """x with a sharding constraint, one logical axis (or None) per dimension."""
        return jax.lax.with_sharding_constraint(
            x, sharding(x.shape, axes, dict(self.rules), self.mesh)
        )


def shardings(specs: PyTree, rules: Rules, mesh: Mesh) -> PyTree:
    """Sharding of every parameter.

    Args:
        specs: tree of `Param`.
        rules: logical axis -> mesh axis or axes.
        mesh: the device mesh.

    Returns:
        Tree of shardings with the structure of `specs`.
    """
    return jax.tree.map(
        lambda p: sharding(p.shape, p.axes, rules, mesh),
        specs,
        is_leaf=lambda p: isinstance(p, Param),
    )


def batch_sharding(size: int, rules: Rules, mesh: Mesh) -> NamedSharding:
    """Sharding of the arrays `[N, ...]` of a batch along N, by the rule of `batch`.

    The arrays are replicated if the mesh axes of the rule do not divide N.

    Args:
        size: number of prompts N.
        rules: logical axis -> mesh axis or axes.
        mesh: the device mesh.
    """
    return sharding((size,), ("batch",), rules, mesh)


def assert_local_batch(sharding: NamedSharding, size: int) -> None:
    """Raise unless the devices of this process hold exactly the prompts that this process loads.

    Process i of n loads the i-th of n equal, contiguous shares of the batch. Nothing is checked
    inside `planned`.

    Args:
        sharding: sharding of a batch, from `batch_sharding`.
        size: number of prompts N of the batch.

    Raises:
        ValueError: the devices hold other prompts.
    """
    if _planned.get() is not None:
        return
    slices = sharding.devices_indices_map((size,))
    held = {slices[device][0].indices(size)[:2] for device in sharding.addressable_devices}
    share, process = size // jax.process_count(), jax.process_index()
    if min(held)[0] != process * share or sum(stop - start for start, stop in held) != share:
        raise ValueError(
            f"process {process} of {jax.process_count()} feeds {share} of {size} prompts from "
            f"number {process * share} on, but its devices hold {sorted(held)}: "
            "name the axis that shards the batch first in the mesh and make it a multiple of the "
            "processes"
        )


def state_shardings(state: PyTree, params: PyTree, shardings: PyTree, mesh: Mesh) -> PyTree:
    """Shardings of a training state, optimizer moments included.

    A subtree shaped like the parameters, such as the moments, is sharded like them. All other
    arrays are replicated. Use the result as out_shardings of the functions that create and update
    the state, because XLA otherwise chooses shardings of its own for the moments.

    Args:
        state: tree of arrays or shapes, e.g. `jax.eval_shape(optimizer.init, params)`.
        params: parameters, as arrays or shapes.
        shardings: shardings of the parameters, from `shardings`.
        mesh: the device mesh.

    Returns:
        Tree of shardings with the structure of `state`.
    """
    tree, shapes = jax.tree.structure(params), [p.shape for p in jax.tree.leaves(params)]
    replicated = NamedSharding(mesh, PartitionSpec())

    def like_params(x) -> bool:
        return (
            jax.tree.structure(x) == tree
            and [getattr(leaf, "shape", None) for leaf in jax.tree.leaves(x)] == shapes
        )

    return jax.tree.map(
        lambda x: shardings if like_params(x) else replicated, state, is_leaf=like_params
    )


def assert_placed(state: PyTree, shardings: PyTree) -> None:
    """Raise unless every array has the expected sharding.

    Args:
        state: tree of arrays.
        shardings: tree of expected shardings, from `state_shardings`.

    Raises:
        AssertionError: an array has another sharding; the message names it.
    """
    for (path, x), want in zip(
        jax.tree.leaves_with_path(state), jax.tree.leaves(shardings), strict=True
    ):
        if not x.sharding.is_equivalent_to(want, x.ndim):
            raise AssertionError(
                f"{jax.tree_util.keystr(path)} {np.shape(x)} is sharded as {x.sharding}, expected "
                f"{want}: "
                "jit the function that makes it with out_shardings=mesh.state_shardings(...)"
            )
