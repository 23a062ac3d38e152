"""Where decisions sit, pooled over prompts and steps: a running total of evidence by place, and a weight for each token from it."""

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

# Of each token, from what is known before it is chosen; below 0 or too large: the nearest.
Place = Callable[[Rollout], Int[Array, "*N R T"]]


def depth(width: int = 1) -> Place:
    """How many tokens the policy chose before, in steps of `width`."""
    return lambda rollout: (jnp.cumsum(rollout.action_mask, -1) - rollout.action_mask) // width


def unsure(edges: Sequence[float] = (0.01, 0.03, 0.1, 0.2, 0.4, 0.7, 1, 1.4, 2, 3)) -> Place:
    """The policy's entropy there, between edges in nats. Needs the signal `entropy`, whose entry comes before this one's."""
    return lambda rollout: jnp.searchsorted(jnp.asarray(edges), rollout["entropy"]).astype(
        jnp.int32
    )


def visited(edges: Sequence[float] = (0.05, 0.2, 0.5, 1, 1.5, 2, 3, 4, 6, 8)) -> Place:
    """How unlikely the beginning was, -log P(y[:t]), between edges in nats."""

    def place(rollout):
        logp = jnp.where(rollout.action_mask, rollout.logp, 0)
        return jnp.searchsorted(jnp.asarray(edges), logp - jnp.cumsum(logp, -1)).astype(jnp.int32)

    return place


def turn(rollout: Rollout) -> Int[Array, "*N R T"]:
    """The number of its segment."""
    return rollout.segment


def same_beginning(rollout: Rollout) -> Int[Array, "*N R R"]:
    """Peers have the same beginning: what they have in common hangs on the token and on nothing before it."""
    rollout = rollout.filled()
    return jax.vmap(common_prefix)(rollout.tokens, rollout.token_mask)


def same_column(rollout: Rollout) -> Int[Array, "*N R R"]:
    """Peers are in the same column, whatever they wrote before: there are more of them, but a token may take an earlier one's due."""
    N, R, T = rollout.tokens.shape
    return jnp.full((N, R, R), T, jnp.int32)


def decision(
    place: Place | None = None,
    places: int = 64,
    *,
    peers: Sequence[Callable[[Rollout], Array]] = (same_beginning, same_column),
    decay: float = 0.98,
    least: float = 0.1,
) -> Callable:
    """`decision_weight`: of each token by its place (default: `depth()`), mean 1, from how coherent earlier gradients were there.

    `peers` says whose gradients add up, that is who shares parameters: a table by prefixes has `same_beginning` alone, a table by columns
    `same_column`; a network lies between, and by default both count. This step's rollouts are added after they were weighed, so weights
    know nothing of the rewards they weigh. Totals fade by `decay` a step.
    """
    place = depth() if place is None else place

    def make(cfg, logprob) -> Learned:
        def at(rollout):
            return jnp.clip(place(rollout), 0, places - 1)

        def init(key, params):
            return {name: jnp.zeros(places) for name in Evidence._fields}

        @jax.jit
        def annotate(aux, rollout):
            return jnp.where(
                rollout.action_mask, evidence_weights(Evidence(**aux), least)[at(rollout)], 0
            )

        @jax.jit
        def add(aux, rollout):
            x = jnp.take_along_axis(outcome(rollout), rollout.row, -1).astype(jnp.float32)
            mask = (
                rollout.action_mask
                & jnp.take_along_axis(trajectory_mask(rollout), rollout.row, -1)[..., None]
            )
            coherent = functools.reduce(
                jnp.add,
                (
                    jax.vmap(gradient_coherence)(x, rollout.tokens, mask, who(rollout))
                    for who in peers
                ),
            )
            each = jax.vmap(functools.partial(bin_evidence, places=places))(
                coherent, x, rollout.logp, mask, at(rollout)
            )
            total = accumulate_evidence(
                Evidence(**aux), jax.tree.map(lambda v: v.sum(0), each), decay
            )
            w = evidence_weights(total, least)
            return total._asdict(), {"weight": w.max(), "place": jnp.argmax(w)}

        return Learned(
            init,
            lambda aux, state, rollout, metas: rollout.with_signals(
                decision_weight=annotate(aux, rollout.filled())
            ),
            lambda aux, state, rollout, columns: add(aux, rollout.filled()),
        )

    make.provides = ("decision_weight",)
    return make
