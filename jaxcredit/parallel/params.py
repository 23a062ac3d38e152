"""A parameter is declared once. Its initial value, its sharding, its place in a checkpoint and the count follow by `tree.map`."""

import dataclasses
import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

Init = Callable[..., Array]  # (key, shape, dtype) -> array, as in jax.nn.initializers


@dataclasses.dataclass(frozen=True)
class Param:
    """The shape of one array, the logical name of each of its axes (None: never sharded) and how it begins."""

    shape: tuple[int, ...]
    axes: tuple[str | None, ...]
    init: Init = jax.nn.initializers.normal(0.02)

    def __post_init__(self):
        if len(self.shape) != len(self.axes):
            raise ValueError(
                f"a Param of shape {self.shape} needs an axis name a dimension, got {self.axes}; None is 'never cut'"
            )


def init(specs: PyTree, key: Array, dtype: str = "float32") -> PyTree:
    """The tree of arrays. Each one draws from a key of its own, folded from its place in the tree."""
    leaves, tree = jax.tree.flatten(specs)
    return tree.unflatten(
        p.init(jax.random.fold_in(key, i), p.shape, jnp.dtype(dtype)) for i, p in enumerate(leaves)
    )


def abstract(specs: PyTree, dtype: str = "float32", shardings: PyTree | None = None) -> PyTree:
    """The same tree as shapes only: enough to lower and compile a program, or to restore into, without any weights."""
    shardings = jax.tree.map(lambda _: None, specs) if shardings is None else shardings
    return jax.tree.map(
        lambda p, s: jax.ShapeDtypeStruct(p.shape, jnp.dtype(dtype), sharding=s), specs, shardings
    )


def count(specs: PyTree) -> int:
    """How many numbers the parameters hold; works on a tree of Param, of shapes or of arrays."""
    return sum(math.prod(p.shape) for p in jax.tree.leaves(specs))
