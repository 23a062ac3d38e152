"""Assertions about arrays and trees of arrays."""

import jax
import numpy as np


def assert_close(actual, expected, tol=2e-5):
    """Both are equal in float64, up to `tol` in absolute plus `tol` in relative terms."""
    actual, expected = (np.asarray(x, np.float64) for x in (actual, expected))
    np.testing.assert_allclose(actual, expected, rtol=tol, atol=tol)


def assert_trees_close(actual, expected, tol=1e-6):
    """`assert_close` for every leaf of two trees of one structure."""
    jax.tree.map(lambda a, b: assert_close(a, b, tol), actual, expected)


def assert_trees_equal(actual, expected):
    """Structure, values and dtypes of two trees are equal."""
    jax.tree.map(np.testing.assert_array_equal, actual, expected)
    assert jax.tree.map(np.result_type, actual) == jax.tree.map(np.result_type, expected)
