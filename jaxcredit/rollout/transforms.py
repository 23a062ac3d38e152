"""Equivalent rollouts (reordered, padded, with rescaled rewards), for the laws of estimators."""

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

from jaxcredit.rollout.rollout import Rollout
from jaxcredit.rollout.signal_table import AXES, SIGNALS
from jaxcredit.rollout.synthetic import synthetic

# Fields and signals whose values are positions on an axis.
INDEX_INTO = {"row": "G", "pair": "G"}
JUNK = 7  # fills padding that nothing may read


def reordered(rollout: Rollout, axis: str, order: np.ndarray) -> Rollout:
    """Rollout with one axis permuted, and the indices into that axis renumbered.

    Args:
        rollout: N prompts.
        axis: one of the axes of `rollout.signal_table`, such as "G".
        order: permutation of range(length of the axis).
    """

    def permute(name, axes, x):
        if INDEX_INTO.get(name) == axis:
            x = np.argsort(order).astype(x.dtype)[x]
        return x[(slice(None),) * axes.index(axis) + (order,)] if axis in axes else x

    return map_arrays(permute, rollout.filled())


def padded(rollout: Rollout, axis: str, by: int = 3) -> Rollout:
    """Rollout with one axis lengthened by entries that the masks exclude.

    What the masks exclude is filled with junk.

    Args:
        rollout: N prompts.
        axis: "R", "T", "G" or "K".
        by: number of entries to add.
    """
    masks = {"action_mask": False, "token_mask": False, "segment_mask": False, "segment": -1}
    G = rollout.segment_mask.shape[1]

    def pad(name, axes, x):
        axes = ["K" if a == "K+1" else a for a in axes]
        if axis not in axes:
            return x
        width = [(0, by if a == axis else 0) for a in axes]
        fill = masks.get(name, G if name == "row" and axis == "R" else JUNK)
        return np.pad(x, width, constant_values=fill)

    return map_arrays(pad, rollout.filled())


def rewarded(rollout: Rollout, a: float, b: float) -> Rollout:
    """Rollout whose returns are a R + b, with b added to the last segment that took place."""
    K = rollout.segment_mask.shape[-1]
    last = rollout.segment_mask & (
        jnp.arange(K) == jnp.where(rollout.segment_mask, jnp.arange(K), -1).max(-1, keepdims=True)
    )
    return dataclasses.replace(rollout, reward=a * rollout.reward + jnp.where(last, b, 0))


def like(rollout: Rollout, seed: int) -> Rollout:
    """Other random groups with the shapes and signals of a rollout."""
    (N, R, T), (_, G, K) = rollout.action_mask.shape, rollout.segment_mask.shape
    return synthetic(seed, rollout.signals, N=N, R=R, T=T, K=K, G=G)


def map_arrays(fn: Callable[[str, list[str], np.ndarray], np.ndarray], rollout: Rollout) -> Rollout:
    """Rollout with a function applied to each field and each signal.

    Fields that are None stay None.

    Args:
        fn: fn(name, axes, array) -> array. `axes` are those of the array, such as ["N", "R", "T"].
        rollout: N prompts, whose signals are all in `SIGNALS`.
    """

    def apply(name, axes, x):
        return jnp.asarray(fn(name, ["N", *axes.split()], np.asarray(x)))

    fields = {
        name: apply(name, axes, x)
        for name, axes in AXES.items()
        if (x := getattr(rollout, name)) is not None
    }
    signals = {name: apply(name, SIGNALS[name].axes, x) for name, x in rollout.signals.items()}
    return dataclasses.replace(rollout, **fields, signals=signals)
