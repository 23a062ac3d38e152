"""Token weights by place in the answer, from evidence that is pooled over prompts and steps."""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from jaxcredit.kernels.decision_evidence import (
    Evidence,
    accumulate_evidence,
    bin_evidence,
    evidence_weights,
    gradient_coherence,
)
from jaxcredit.kernels.prefix import common_prefix
from jaxcredit.rollout import Rollout, outcome, trajectory_mask
from jaxcredit.signals.base import Learned

# The place of each token: an int that is known before the token is chosen. `decision` clips it.
Place = Callable[[Rollout], Int[Array, "*N R T"]]


def depth(width: int = 1) -> Place:
    """Place of a token by its depth: the number of policy tokens before it, in bins of `width`.

    Args:
        width: int >= 1, tokens per bin.

    Returns:
        A function of a rollout that returns the places [N, R, T].
    """
    return lambda rollout: (jnp.cumsum(rollout.action_mask, -1) - rollout.action_mask) // width


def entropy_bins(edges: Sequence[float] = (0.01, 0.03, 0.1, 0.2, 0.4, 0.7, 1, 1.4, 2, 3)) -> Place:
    """Place of a token by the entropy of the policy's distribution at it.

    It reads the signal `entropy`, whose annotator must come before `decision` in an experiment's
    `signals`.

    Args:
        edges: ascending edges of the bins, in nats.

    Returns:
        A function of a rollout that returns the places [N, R, T], the number of edges below the
        entropy.
    """
    return lambda rollout: jnp.searchsorted(jnp.asarray(edges), rollout["entropy"]).astype(
        jnp.int32
    )


def surprisal_bins(edges: Sequence[float] = (0.05, 0.2, 0.5, 1, 1.5, 2, 3, 4, 6, 8)) -> Place:
    """Place of a token by the surprisal of its prefix, -log P(y[:t]) under the sampling policy.

    Args:
        edges: ascending edges of the bins, in nats.

    Returns:
        A function of a rollout that returns the places [N, R, T], the number of edges below the
        surprisal.
    """

    def place(rollout):
        logp = jnp.where(rollout.action_mask, rollout.logp, 0)
        return jnp.searchsorted(jnp.asarray(edges), logp - jnp.cumsum(logp, -1)).astype(jnp.int32)

    return place


def turn(rollout: Rollout) -> Int[Array, "*N R T"]:
    """Place of a token by the index of its segment, [N, R, T]."""
    return rollout.segment


def same_prefix(rollout: Rollout) -> Int[Array, "*N R R"]:
    """Peers that share their prefix, so that differences between them are due to this token alone.

    Returns:
        [N, R, R] number of columns before the first one in which two rows differ.
    """
    rollout = rollout.filled()
    return jax.vmap(common_prefix)(rollout.tokens, rollout.token_mask)


def same_column(rollout: Rollout) -> Int[Array, "*N R R"]:
    """Peers in the same column, whatever precedes it.

    There are more peers than with `same_prefix`, but an earlier token's effect can be attributed to
    this one.

    Returns:
        [N, R, R] the number of columns T.
    """
    N, R, T = rollout.tokens.shape
    return jnp.full((N, R, R), T, jnp.int32)


def decision(
    place: Place | None = None,
    places: int = 64,
    *,
    peers: Sequence[Callable[[Rollout], Array]] = (same_prefix, same_column),
    decay: float = 0.98,
    least: float = 0.1,
) -> Callable:
    """Annotator of the signal `decision_weight` [N, R, T]: weights of tokens by their place.

    Tokens get a large weight at places where, in earlier steps, peers that chose the same token had
    similar returns. The mean of the weights over the evidence's tokens is 1. The formulas are in
    `gradient_coherence` and `evidence_weights` of `jaxcredit.kernels`.

    A step's returns are added to the evidence after its tokens are weighted, so no weight depends
    on the returns that it multiplies. The state is four arrays [places]; no forward pass is needed.
    Logged: `weight`, the largest weight of a place, and `place`, the place that has it.

    Args:
        place: function of a rollout that returns the place of each token [N, R, T] (int); None:
            `depth()`. Places outside 0 .. places - 1 count as the nearest one.
        places: int >= 1, number of places.
        peers: functions of a rollout that return, for each pair of rows, the number of columns
            [N, R, R] in which the two are peers; their coherences are added. Choose them by the
            parameters that peers share: `same_prefix` for a table of prefixes, `same_column` for a
            table of columns, both for a network.
        decay: float in [0, 1], factor of the old evidence at each step.
        least: float in [0, 1], least weight relative to the largest one.

    Returns:
        An entry for `signals` of an experiment.
    """
    place = depth() if place is None else place

    def make(cfg, logprob) -> Learned:
        def token_places(rollout):
            return jnp.clip(place(rollout), 0, places - 1)

        def init(key, params):
            return {name: jnp.zeros(places) for name in Evidence._fields}

        @jax.jit
        def token_weights(aux, rollout):
            place_weights = evidence_weights(Evidence(**aux), least)
            return jnp.where(rollout.action_mask, place_weights[token_places(rollout)], 0)

        @jax.jit
        def accumulate(aux, rollout):
            x = jnp.take_along_axis(outcome(rollout), rollout.row, -1).astype(jnp.float32)
            row_exists = jnp.take_along_axis(trajectory_mask(rollout), rollout.row, -1)
            mask = rollout.action_mask & row_exists[..., None]
            coherent = functools.reduce(
                jnp.add,
                (
                    jax.vmap(gradient_coherence)(x, rollout.tokens, mask, shared_columns(rollout))
                    for shared_columns in peers
                ),
            )
            group_evidence = jax.vmap(functools.partial(bin_evidence, places=places))(
                coherent, x, rollout.logp, mask, token_places(rollout)
            )
            total = accumulate_evidence(
                Evidence(**aux), jax.tree.map(lambda v: v.sum(0), group_evidence), decay
            )
            w = evidence_weights(total, least)
            return total._asdict(), {"weight": w.max(), "place": jnp.argmax(w)}

        return Learned(
            init,
            lambda aux, state, rollout, metas: rollout.with_signals(
                decision_weight=token_weights(aux, rollout.filled())
            ),
            lambda aux, state, rollout, columns: accumulate(aux, rollout.filled()),
        )

    make.provides = ("decision_weight",)
    return make
