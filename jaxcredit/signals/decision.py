"""Where decisions sit, pooled over prompts and steps: a running total of evidence by place, and a weight for each token from it."""

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int

from jaxcredit.kernels.evidence import Evidence, evidence, relative_weight, remember
from jaxcredit.kernels.prefix import common_prefix
from jaxcredit.rollout import Rollout, outcome
from jaxcredit.signals import Learned

Place = Callable[
    [Rollout], Int[Array, "*N R T"]
]  # of each token, from what is known before it is chosen; below 0 or too large: the nearest


def depth(width: int = 1) -> Place:
    """How many tokens the policy chose before, in steps of `width`."""
    return lambda rollout: (jnp.cumsum(rollout.mask, -1) - rollout.mask) // width


def unsure(edges: Sequence[float] = (0.01, 0.03, 0.1, 0.2, 0.4, 0.7, 1, 1.4, 2, 3)) -> Place:
    """The policy's entropy there, between edges in nats. Needs the signal `entropy`, whose entry comes before this one's."""
    return lambda rollout: jnp.searchsorted(jnp.asarray(edges), rollout["entropy"]).astype(jnp.int32)


def visited(edges: Sequence[float] = (0.05, 0.2, 0.5, 1, 1.5, 2, 3, 4, 6, 8)) -> Place:
    """How unlikely the beginning was, -log P(y[:t]), between edges in nats."""

    def place(rollout):
        logp = jnp.where(rollout.mask, rollout.logp, 0)
        return jnp.searchsorted(jnp.asarray(edges), logp - jnp.cumsum(logp, -1)).astype(jnp.int32)

    return place


def turn(rollout: Rollout) -> Int[Array, "*N R T"]:
    """The number of its segment."""
    return rollout.segment


def same_beginning(rollout: Rollout) -> Int[Array, "*N R R"]:
    """Answers are compared where they have the same beginning: what is found hangs on the token and on nothing before it."""
    rollout = rollout.filled()
    assert rollout.valid is not None
    return jax.vmap(common_prefix)(rollout.tokens, rollout.valid)


def same_column(rollout: Rollout) -> Int[Array, "*N R R"]:
    """All answers of a group are compared in each column, whatever came before: there is more to compare, but tokens inherit."""
    N, R, T = rollout.tokens.shape
    return jnp.full((N, R, R), T, jnp.int32)


def decision(
    place: Place | None = None,
    places: int = 64,
    *,
    peers: Callable[[Rollout], Array] = same_beginning,
    decay: float = 0.98,
    least: float = 0.1,
) -> Callable:
    """`decision_weight`: of each token by its place (default: `depth()`), mean 1, from how much of the rewards' variance was decided there.

    This step's rollouts are added after they were weighed, so weights know nothing of the rewards they weigh. `decay` is for one step.
    """
    place = depth() if place is None else place

    def make(cfg, logprob) -> Learned:
        def at(rollout):
            return jnp.clip(place(rollout), 0, places - 1)

        def init(key, params):
            return {name: jnp.zeros(places) for name in Evidence._fields}

        @jax.jit
        def annotate(aux, rollout):
            return jnp.where(rollout.mask, relative_weight(Evidence(**aux), least)[at(rollout)], 0)

        @jax.jit
        def add(aux, rollout):
            row = rollout.row
            x = jnp.take_along_axis(outcome(rollout), row, -1).astype(jnp.float32)
            mask = rollout.mask & jnp.take_along_axis(rollout.real.any(-1), row, -1)[..., None]
            group = functools.partial(evidence, places=places)
            each = jax.vmap(group)(x, rollout.tokens, mask, peers(rollout), at(rollout))
            total = remember(Evidence(**aux), jax.tree.map(lambda v: v.sum(0), each), decay)
            w = relative_weight(total, least)
            share = total.found.sum() / jnp.maximum(total.most.sum(), jnp.finfo(w.dtype).tiny)
            return total._asdict(), {"share": share, "weight": w.max(), "place": jnp.argmax(w)}

        return Learned(
            init,
            lambda aux, state, rollout, metas: rollout.with_signals(decision_weight=annotate(aux, rollout.filled())),
            lambda aux, state, rollout, columns: add(aux, rollout.filled()),
        )

    make.provides = ("decision_weight",)
    return make
