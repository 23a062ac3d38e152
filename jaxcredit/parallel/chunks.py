"""Strided chunks of an axis: each shard of the axis holds an equal share of every chunk."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree, Shaped


def split_strided(tree: PyTree[Array], n: int, axis: int = 0) -> PyTree[Array]:
    """Split an axis into n strided chunks: chunk i holds the indices i, i + n, i + 2n, ...

    A contiguous chunk of a sharded axis lies on a few of its devices, a strided chunk on all.

    Args:
        tree: an array `[..., S, ...]`, or a tree of arrays with the same axis.
        n: number of chunks. The axis is zero-padded to a multiple of it.
        axis: position of the axis of size S, counted from the front.

    Returns:
        Chunks `[n, ..., ceil(S / n), ...]`.

    >>> split_strided(jnp.arange(6), 2).tolist()
    [[0, 2, 4], [1, 3, 5]]
    """

    def split(x):
        if padding := -x.shape[axis] % n:
            x = jnp.pad(x, [(0, padding if a == axis else 0) for a in range(x.ndim)])
        x = x.reshape(*x.shape[:axis], -1, n, *x.shape[axis + 1 :])
        return jnp.moveaxis(x, axis + 1, 0)

    return jax.tree.map(split, tree)


def join_strided(x: Shaped[Array, "n ..."], size: int, axis: int = 0) -> Shaped[Array, "..."]:
    """Join the strided chunks of one array: the inverse of `split_strided`.

    Args:
        x: chunks `[n, ..., C, ...]`.
        size: size of the joined axis. Padding beyond it is dropped.
        axis: position of the joined axis in the result.

    Returns:
        Array `[..., size, ...]`.

    >>> join_strided(split_strided(jnp.arange(5), 2), 5).tolist()
    [0, 1, 2, 3, 4]
    """
    x = jnp.moveaxis(x, 0, axis + 1)
    x = x.reshape(*x.shape[:axis], -1, *x.shape[axis + 2 :])
    return x if x.shape[axis] == size else jax.lax.slice_in_dim(x, 0, size, axis=axis)
