"""Declarations of parameters: shape, logical axes and initializer of each array.

Initial values, shardings (parallel.mesh), shapes for planning and counts are derived from one tree
of `Param`.
"""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

Init = Callable[..., Array]  # (key, shape, dtype) -> array, as in jax.nn.initializers


@dataclasses.dataclass(frozen=True)
class Param:
    """Declaration of one parameter array.

    Args:
        shape: sizes of the dimensions.
        axes: logical axis of each dimension (see parallel.mesh); None: never sharded.
        init: initializer, (key, shape, dtype) -> array.
    """

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    init: Init = jax.nn.initializers.normal(0.02)

    def __post_init__(self):
        if len(self.shape) != len(self.axes):
            raise ValueError(
                f"a Param of shape {self.shape} needs one logical axis per dimension, got "
                f"{self.axes}; None means never sharded"
            )


def init(specs: PyTree, key: Array, dtype: str = "float32") -> PyTree:
    """Initial values. The key of each array is `key` folded with the index of its leaf.

    Args:
        specs: tree of `Param`.
        key: PRNG key.
        dtype: of all arrays.
    """
    leaves, tree = jax.tree.flatten(specs)
    return tree.unflatten(
        p.init(jax.random.fold_in(key, i), p.shape, jnp.dtype(dtype)) for i, p in enumerate(leaves)
    )


def abstract(specs: PyTree, dtype: str = "float32", shardings: PyTree | None = None) -> PyTree:
    """Shapes of the parameters (`jax.ShapeDtypeStruct`), to compile or restore without weights.

    Args:
        specs: tree of `Param`.
        dtype: of all arrays.
        shardings: tree of shardings with the structure of `specs`; None: unspecified.
    """
    shardings = jax.tree.map(lambda _: None, specs) if shardings is None else shardings
    return jax.tree.map(
        lambda p, s: jax.ShapeDtypeStruct(p.shape, jnp.dtype(dtype), sharding=s), specs, shardings
    )


def count(specs: PyTree) -> int:
    """Number of elements in a tree of `Param`, shapes or arrays."""
    return sum(math.prod(p.shape) for p in jax.tree.leaves(specs))
