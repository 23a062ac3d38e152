"""Strided chunks against numpy's strided slices, and their shards on a mesh."""

import doctest

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxcredit.parallel import chunks, mesh


@pytest.mark.parametrize("size, n, axis", [(6, 2, 0), (7, 3, 1), (4, 4, 2), (5, 1, 1), (2, 3, 0)])
def test_chunk_i_holds_every_nth_index_from_i(size, n, axis):
    shape = [2, 3, 2]
    shape[axis] = size
    x = np.random.default_rng(0).normal(size=shape)
    out = chunks.split_strided({"x": jnp.asarray(x)}, n, axis)["x"]
    padded = np.pad(x, [(0, -size % n if a == axis else 0) for a in range(3)]).astype(np.float32)
    for i in range(n):
        np.testing.assert_array_equal(out[i], padded.take(range(i, padded.shape[axis], n), axis))
    np.testing.assert_array_equal(chunks.join_strided(out, size, axis), x.astype(np.float32))


def test_every_device_holds_a_share_of_every_chunk():
    """Of 8 sharded prompts in two chunks: no chunk moves between devices."""
    sharding = mesh.batch_sharding(8, mesh.fsdp, mesh.make({"fsdp": 4}))
    x = jax.device_put(jnp.arange(8), sharding)
    split = jax.jit(lambda x: chunks.split_strided(x, 2)).lower(x).compile()
    assert not any(word in split.as_text() for word in ("all-gather", "all-to-all", "permute("))
    assert {shard.data.shape for shard in split(x).addressable_shards} == {(2, 1)}


def test_doctests():
    assert doctest.testmod(chunks).attempted == 2 and not doctest.testmod(chunks).failed
