"""Parallelism is a table from the logical axes of parameters and activations to the axes of the mesh.

`fsdp` cuts every matrix along the model's width and the batch along its prompts; `tensor` cuts heads, the hidden layer and the vocabulary,
and between them the tokens (`length`), so that nothing is kept twice; `expert` cuts experts. `data` is for what is slow to cross, several
slices of TPUs in a data centre: it cuts the batch alone. `context` cuts the tokens of every layer; attention gathers their keys.
Where a mesh axis does not divide a dimension (3 kv heads over 2 devices), that dimension is replicated and the rest of the rule stands.
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

Rules = dict[str, str | tuple[str, ...]]  # axes that a mesh has not are passed over

single: Rules = {}
fsdp: Rules = {"batch": ("data", "fsdp"), "width": "fsdp"}
tensor: Rules = {
    "vocab": "tensor",
    "heads": "tensor",
    "kv_heads": "tensor",
    "ffn": "tensor",
    "length": "tensor",
}
context: Rules = {"length": "context", "query": "context"}
fsdp_tensor: Rules = fsdp | tensor | {"expert": "expert"}
fsdp_context: Rules = fsdp | context
settled: Rules = {
    name: axes for name, axes in fsdp_tensor.items() if name != "width"
}  # to sample: no weight waits for another device

_planned: ContextVar[Sequence | None] = ContextVar("planned", default=None)


@contextlib.contextmanager
def planned(devices: Sequence) -> Iterator[None]:
    """Inside, meshes are made of these devices, which need not be there: enough to compile for them."""
    token = _planned.set(devices)
    try:
        yield
    finally:
        _planned.reset(token)


def available() -> Sequence:
    """The devices that a mesh is made of: those planned with, or all there are."""
    chosen = _planned.get()
    return jax.devices() if chosen is None else chosen


def make(shape: Mapping[str, int], devices: Sequence | None = None) -> Mesh:
    """The mesh of the given axes, `make({"fsdp": 4, "tensor": 2})`; one size may be -1: all devices that are left."""
    devices = list(available() if devices is None else devices)
    shape = sizes(shape, len(devices))
    need = math.prod(shape.values())
    if need > len(devices):
        raise ValueError(
            f"a mesh of {shape} needs {need} devices, here are {len(devices)}: shrink an axis"
        )
    devices = devices[:need]
    return Mesh(grid(shape, devices), tuple(shape), axis_types=(AxisType.Auto,) * len(shape))


def grid(shape: Mapping[str, int], devices: Sequence) -> np.ndarray:
    """Devices in the shape of a mesh. Several TPU slices are laid along the axis `data`, whose collectives use the slow network."""
    slices = len(set(map(_slice, devices)))
    split = devices[0].platform == "tpu"  # 64 x 4 on a torus of 16 x 16
    if slices == 1:
        return device_grid(tuple(shape.values()), devices, split=split)
    if shape.get("data", 1) % slices:
        raise ValueError(
            f"{slices} slices, and a mesh of {shape}: give it an axis `data` that is a multiple of {slices}"
        )
    within = tuple(size // slices if axis == "data" else size for axis, size in shape.items())
    each = itertools.groupby(sorted(devices, key=_slice), _slice)
    return np.concatenate(
        [device_grid(within, list(part), split=split) for _, part in each],
        axis=list(shape).index("data"),
    )


def _slice(device) -> int:
    return getattr(device, "slice_index", None) or 0


def sizes(shape: Mapping[str, int], devices: int | None = None) -> dict[str, int]:
    """The axes with -1 replaced by what is left of the devices (None: all there are)."""
    known = math.prod(s for s in shape.values() if s != -1)
    if -1 not in shape.values():
        return dict(shape)
    left = max(1, (len(available()) if devices is None else devices) // known)
    return {axis: left if size == -1 else size for axis, size in shape.items()}


def over(axis: str | None, rules: Rules) -> tuple[str, ...]:
    """The mesh axes that a logical axis is cut over."""
    found = rules.get(axis, ()) if axis else ()
    return (found,) if isinstance(found, str) else found


def ways(axis: str, rules: Rules, shape: Mapping[str, int]) -> int:
    """Into how many parts a mesh of this shape cuts a logical axis."""
    return math.prod(sizes(shape).get(name, 1) for name in over(axis, rules))


def sharding(
    shape: tuple[int, ...], axes: tuple[str | None, ...], rules: Rules, mesh: Mesh
) -> NamedSharding:
    """Where one array lies. A mesh axis is used at most once an array, and only on a dimension that it divides."""
    spec, used = [], set()
    for size, axis in zip(shape, axes, strict=True):
        chosen = tuple(name for name in over(axis, rules) if name in mesh.shape)
        fits = (
            chosen
            and used.isdisjoint(chosen)
            and size % math.prod(mesh.shape[name] for name in chosen) == 0
        )
        spec.append((chosen[0] if len(chosen) == 1 else chosen) if fits else None)
        used.update(chosen)
    return NamedSharding(mesh, PartitionSpec(*spec))


@dataclasses.dataclass(frozen=True)
class Layout:
    """Where activations lie: `Layout(mesh, rules)(x, "batch", None, "heads")` inside a program. A value, so that it may be static."""

    mesh: Mesh
    rules: tuple[tuple[str, str | tuple[str, ...]], ...]

    def __call__(self, x: Array, *axes: str | None) -> Array:
        return jax.lax.with_sharding_constraint(
            x, sharding(x.shape, axes, dict(self.rules), self.mesh)
        )


def shardings(specs: PyTree, rules: Rules, mesh: Mesh) -> PyTree:
    """Where every parameter lies."""
    return jax.tree.map(
        lambda p: sharding(p.shape, p.axes, rules, mesh),
        specs,
        is_leaf=lambda p: isinstance(p, Param),
    )


def batch(size: int, rules: Rules, mesh: Mesh) -> NamedSharding:
    """Where arrays `[N, ...]` of a batch lie: prompts are cut over the axes of `batch`, replicated if these do not divide `size`."""
    return sharding((size,), ("batch",), rules, mesh)


def assert_fed(where: NamedSharding, n: int) -> None:
    """Raise unless this process's devices hold just its own share of `n` prompts: it is asked to feed no others."""
    if _planned.get() is not None:
        return  # there is nothing to feed
    places = where.devices_indices_map((n,))
    held = {places[device][0].indices(n)[:2] for device in where.addressable_devices}
    share, process = n // jax.process_count(), jax.process_index()
    if min(held)[0] != process * share or sum(stop - start for start, stop in held) != share:
        raise ValueError(
            f"process {process} of {jax.process_count()} feeds {share} of {n} prompts from number {process * share} on, but its "
            f"devices hold {sorted(held)}: name the axis that cuts the batch first in the mesh and make it a multiple of the processes"
        )


def state_shardings(state: PyTree, params: PyTree, where: PyTree, mesh: Mesh) -> PyTree:
    """Where a training state lies: each subtree shaped like the parameters (the moments of an optimizer) as they do, the rest replicated.

    `state` and `params` are arrays or shapes (`jax.eval_shape(optimizer.init, params)`), `where` comes from `shardings`. Give the result as
    out_shardings to the function that makes the state and to the step that updates it: left to itself, XLA moves moments about.
    """
    tree, shapes = jax.tree.structure(params), [p.shape for p in jax.tree.leaves(params)]
    everywhere = NamedSharding(mesh, PartitionSpec())

    def like_params(x) -> bool:
        return (
            jax.tree.structure(x) == tree
            and [getattr(leaf, "shape", None) for leaf in jax.tree.leaves(x)] == shapes
        )

    return jax.tree.map(
        lambda x: where if like_params(x) else everywhere, state, is_leaf=like_params
    )


def assert_placed(state: PyTree, where: PyTree) -> None:
    """Raise, naming the array, when a real state does not lie where it should: in Auto mode moments silently replicate."""
    for (path, x), want in zip(
        jax.tree.leaves_with_path(state), jax.tree.leaves(where), strict=True
    ):
        if not x.sharding.is_equivalent_to(want, x.ndim):
            raise AssertionError(
                f"{jax.tree_util.keystr(path)} {np.shape(x)} lies as {x.sharding}, expected {want}: "
                "jit the function that makes it with out_shardings=mesh.state_shardings(...)"
            )
