"""Assertions about arrays and trees of arrays."""

import jax
import numpy as np


def assert_close(actual, expected, tol=2e-5):
    """Arrays are equal in float64, up to an absolute and a relative difference of `tol`."""
    actual, expected = (np.asarray(x, np.float64) for x in (actual, expected))
    np.testing.assert_allclose(actual, expected, rtol=tol, atol=tol)


def leaf_pairs(actual, expected):
    """Pairs of leaves of two trees of one structure."""
    (a, structure), (b, other) = (jax.tree.flatten(tree) for tree in (actual, expected))
    assert structure == other, f"{structure} is not {other}"
    return zip(a, b, strict=True)


def assert_trees_close(actual, expected, tol=1e-6):
    """`assert_close` for every leaf of two trees of one structure."""
    for a, b in leaf_pairs(actual, expected):
        assert_close(a, b, tol)


def assert_trees_equal(actual, expected):
    """Two trees have the same structure, values and dtypes."""
    for a, b in leaf_pairs(actual, expected):
        np.testing.assert_array_equal(a, b)
        assert getattr(a, "dtype", type(a)) == getattr(b, "dtype", type(b))
