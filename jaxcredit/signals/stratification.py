"""Strata: classes of trajectories for `credit.san`, such as their number of tool calls."""

from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int

from jaxcredit.rollout import Rollout
from jaxcredit.signals.base import Learned


def segment_counts(rollout: Rollout) -> Int[Array, "*N G"]:
    """Number of segments of each trajectory, [N, G]: its tool calls, plus one for the answer."""
    return rollout.segment_mask.sum(-1, dtype=jnp.int32)


def sequence_classes(
    x: Int[Array, "*N G K"], segment_mask: Bool[Array, "*N G K"]
) -> Int[Array, "*N G"]:
    """Classes of trajectories with equal sequences of numbers.

    Args:
        x: [N, G, K] a number for each segment.
        segment_mask: [N, G, K] segments that exist; the others' numbers are ignored.

    Returns:
        [N, G] for each trajectory the index of the first one in its group that has the same
        segments with the same numbers.

    >>> x = jnp.array([[3, 1], [3, 2], [3, 1]])
    >>> sequence_classes(x, jnp.ones((3, 2), bool)).tolist()
    [0, 1, 0]
    """
    x = jnp.where(segment_mask, x, 0)
    same_numbers = x[..., :, None, :] == x[..., None, :, :]
    same_segments = segment_mask[..., :, None, :] == segment_mask[..., None, :, :]
    return jnp.argmax((same_numbers & same_segments).all(-1), -1).astype(jnp.int32)


def by_signal(name: str) -> Callable[[Rollout], Int[Array, "*N G"]]:
    """Function that reads strata from an integer signal.

    Args:
        name: a signal of shape [N, G], which is taken as it is, or [N, G, K], which
            `sequence_classes` turns into one number per trajectory.

    Returns:
        A function of a rollout that returns the strata [N, G].
    """

    def signal_strata(rollout: Rollout):
        x = rollout[name]
        if x.ndim == rollout.segment_mask.ndim - 1:
            return x.astype(jnp.int32)
        return sequence_classes(x, rollout.segment_mask)

    return signal_strata


def strata(of: Callable[[Rollout], Int[Array, "*N G"]] = segment_counts) -> Callable:
    """Annotator of the signal `stratum` [N, G]: the class of each trajectory. No forward pass.

    Args:
        of: function of the rollout that returns the classes [N, G] (int): `segment_counts`,
            `by_signal(name)` or one of your own.

    Returns:
        An entry for `signals` of an experiment.
    """

    def make(cfg, logprob) -> Learned:
        return Learned(
            init=lambda key, params: {},
            annotate=lambda aux, state, rollout, metas: rollout.with_signals(stratum=of(rollout)),
        )

    make.provides = ("stratum",)
    return make
