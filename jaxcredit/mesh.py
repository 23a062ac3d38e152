"""Parallelism is a table from the logical axes of the parameters to the axes of the mesh.

`fsdp` cuts every matrix along the model's width and the batch along its prompts; `tensor` cuts heads, the hidden layer and the vocabulary.
Where a mesh axis does not divide a dimension (3 kv heads over 2 devices), that dimension is replicated and the rest of the rule stands.
"""

import math
from collections.abc import Mapping

import jax
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec
from jaxtyping import PyTree

from jaxcredit.params import Param

Rules = dict[str, str]

single: Rules = {}
fsdp: Rules = {"batch": "fsdp", "width": "fsdp"}
tensor: Rules = {"vocab": "tensor", "heads": "tensor", "kv_heads": "tensor", "ffn": "tensor"}
fsdp_tensor: Rules = fsdp | tensor


def make(shape: Mapping[str, int], devices=None) -> Mesh:
    """The mesh of the given axes, `make({"fsdp": 4, "tensor": 2})`; one size may be -1: all devices that are left."""
    devices = jax.devices() if devices is None else list(devices)
    shape = sizes(shape, len(devices))
    need = math.prod(shape.values())
    if need > len(devices):
        raise ValueError(f"a mesh of {shape} needs {need} devices, here are {len(devices)}: shrink an axis")
    return jax.make_mesh(tuple(shape.values()), tuple(shape), axis_types=(AxisType.Auto,) * len(shape), devices=devices[:need])


def sizes(shape: Mapping[str, int], devices: int | None = None) -> dict[str, int]:
    """The axes with -1 replaced by what is left of the devices (None: all there are)."""
    known = math.prod(s for s in shape.values() if s != -1)
    if -1 not in shape.values():
        return dict(shape)
    left = max(1, (jax.device_count() if devices is None else devices) // known)
    return {axis: left if size == -1 else size for axis, size in shape.items()}


def sharding(shape: tuple[int, ...], axes: tuple[str | None, ...], rules: Rules, mesh: Mesh) -> NamedSharding:
    """Where one array lies. A mesh axis is used at most once an array, and only on a dimension that it divides."""
    spec, used = [], set()
    for size, axis in zip(shape, axes, strict=True):
        name = rules.get(axis)
        fits = name in mesh.shape and name not in used and size % mesh.shape[name] == 0
        spec.append(name if fits else None)
        used.add(name)
    return NamedSharding(mesh, PartitionSpec(*spec))


def shardings(specs: PyTree, rules: Rules, mesh: Mesh) -> PyTree:
    """Where every parameter lies."""
    return jax.tree.map(lambda p: sharding(p.shape, p.axes, rules, mesh), specs, is_leaf=lambda p: isinstance(p, Param))


def batch(size: int, rules: Rules, mesh: Mesh) -> NamedSharding:
    """Where arrays `[N, ...]` of a batch lie: prompts are cut over the axis of `batch`, replicated if it does not divide `size`."""
    return sharding((size,), ("batch",), rules, mesh)


def assert_fed(where: NamedSharding, n: int) -> None:
    """Raise unless this process's devices hold just its own share of `n` prompts: it is asked to feed no others."""
    held = {s.indices(n)[:2] for (s,) in where.addressable_devices_indices_map((n,)).values()}
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
        return jax.tree.structure(x) == tree and [getattr(leaf, "shape", None) for leaf in jax.tree.leaves(x)] == shapes

    return jax.tree.map(lambda x: where if like_params(x) else everywhere, state, is_leaf=like_params)


def assert_placed(state: PyTree, where: PyTree) -> None:
    """Raise, naming the array, when a real state does not lie where it should: in Auto mode moments silently replicate."""
    for (path, x), want in zip(jax.tree.leaves_with_path(state), jax.tree.leaves(where), strict=True):
        if not x.sharding.is_equivalent_to(want, x.ndim):
            raise AssertionError(
                f"{jax.tree_util.keystr(path)} {np.shape(x)} lies as {x.sharding}, expected {want}: "
                "jit the function that makes it with out_shardings=mesh.state_shardings(...)"
            )
