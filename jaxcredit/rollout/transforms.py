"""The same rollouts otherwise told (renamed, padded, with other rewards, other groups of their shape): what the laws compare."""

import dataclasses

import jax.numpy as jnp
import numpy as np

from jaxcredit.rollout import SIGNALS, Rollout
from jaxcredit.rollout.synthetic import synthetic

FIELDS = {
    "tokens": "R T",
    "action_mask": "R T",
    "logp": "R T",
    "segment": "R T",
    "reward": "G K",
    "segment_mask": "G K",
    "row": "R",
    "token_mask": "R T",
    "done": "G",
}
INDEX = {
    "row": "G",
    "pair": "G",
}  # arrays whose numbers are positions on an axis: renamed when that axis is permuted


def reordered(rollout: Rollout, axis: str, order: np.ndarray) -> Rollout:
    """The same rollout with one axis reordered, and the numbers that name its positions renamed."""

    def fn(name, axes, x):
        if INDEX.get(name) == axis:
            x = np.argsort(order).astype(x.dtype)[x]
        return x[(slice(None),) * axes.index(axis) + (order,)] if axis in axes else x

    return _map(rollout, fn)


def padded(rollout: Rollout, axis: str, by: int = 3) -> Rollout:
    """More of an axis, in which nothing took place (and where what must not be read is junk)."""
    quiet = {"action_mask": False, "token_mask": False, "segment_mask": False, "segment": -1}
    G = rollout.segment_mask.shape[1]

    def fn(name, axes, x):
        axes = ["K" if a == "K+1" else a for a in axes]
        if axis not in axes:
            return x
        width = [(0, by if a == axis else 0) for a in axes]
        junk = quiet.get(name, G if name == "row" and axis == "R" else 7)
        return np.pad(x, width, constant_values=junk)

    return _map(rollout, fn)


def rewarded(rollout: Rollout, a: float, b: float) -> Rollout:
    """Outcomes a R + b: the offset is earned once, in the last real segment."""
    K = rollout.segment_mask.shape[-1]
    last = rollout.segment_mask & (
        jnp.arange(K) == jnp.where(rollout.segment_mask, jnp.arange(K), -1).max(-1, keepdims=True)
    )
    return dataclasses.replace(rollout, reward=a * rollout.reward + jnp.where(last, b, 0))


def like(rollout: Rollout, seed: int) -> Rollout:
    """Other groups of the same shapes."""
    (N, R, T), (_, G, K) = rollout.action_mask.shape, rollout.segment_mask.shape
    return synthetic(seed, rollout.signals, N=N, R=R, T=T, K=K, G=G)


def _axes(name, signal):
    return ["N", *(SIGNALS[name].axes if signal else FIELDS[name]).split()]


def _map(rollout, fn):
    """fn(name, its axes, array) over all fields and signals."""

    def one(name, signal, x):
        return jnp.asarray(fn(name, _axes(name, signal), np.asarray(x)))

    signals = {name: one(name, True, x) for name, x in rollout.signals.items()}
    return Rollout(
        **{name: one(name, False, getattr(rollout, name)) for name in FIELDS}, signals=signals
    )
