"""Structural classes of trajectories, by which `san` compares like with like: the number of calls, or whatever an int signal says."""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from jaxcredit.rollout import Rollout
from jaxcredit.signals.base import Learned


def calls(rollout: Rollout) -> Int[Array, "*N G"]:
    """How many segments a trajectory has: its number of calls, and one for the answer."""
    return rollout.segment_mask.sum(-1, dtype=jnp.int32)


def alike(x: Int[Array, "*N G K"], real: Bool[Array, "*N G K"]) -> Int[Array, "*N G"]:
    """The same number for trajectories that show the same numbers in the same segments: the index of the first of them."""
    x = jnp.where(real, x, 0)
    same = (x[..., :, None, :] == x[..., None, :, :]) & (
        real[..., :, None, :] == real[..., None, :, :]
    )
    return jnp.argmax(same.all(-1), -1).astype(jnp.int32)


def by_signal(name: str) -> Callable[[Rollout], Int[Array, "*N G"]]:
    """Strata from an int signal: one number a trajectory is taken as it is, one a segment by `alike`."""

    def of(rollout: Rollout):
        x = rollout[name]
        return (
            x.astype(jnp.int32)
            if x.ndim == rollout.segment_mask.ndim - 1
            else alike(x, rollout.segment_mask)
        )

    return of


def strata(of: Callable[[Rollout], Int[Array, "*N G"]] = calls) -> Callable:
    """`stratum`, computed from the rollout by `of`: `calls`, `by_signal(name)` or a function of your own."""

    def make(cfg, logprob) -> Learned:
        return Learned(
            init=lambda key, params: {},
            annotate=lambda aux, state, rollout, metas: rollout.with_signals(stratum=of(rollout)),
        )

    make.provides = ("stratum",)
    return make
