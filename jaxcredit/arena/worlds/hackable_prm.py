"""HackablePRM: steps that help, harm, fill or stop, and a process reward model that may like filler."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxcredit.arena.family import family, logits_of, static
from jaxcredit.arena.world import OVER, POLICY, World, at, grid, world

GOOD, BAD, FILLER, STOP = range(4)


@family
class HackablePRM:
    """An answer is right if it stops within `horizon` steps, after `need` good ones and no bad one. Every step is a segment.

    The PRM gives a step its kind's score, with noise; `hack` is what it gives filler, `stop_right` and `stop_wrong` what it gives the end.
    Separates the least score from the sum of scores and from the outcome: a sum can be had by never stopping.
    """

    hack: Float[Array, ""] | float = 0.4
    score_good: Float[Array, ""] | float = 0.8
    score_bad: Float[Array, ""] | float = -0.6
    stop_right: Float[Array, ""] | float = 0.8
    stop_wrong: Float[Array, ""] | float = -0.8
    sd: Float[Array, ""] | float = 0.1
    good: Float[Array, ""] | float = 0.25  # what the first policy does; the rest stops
    bad: Float[Array, ""] | float = 0.25
    filler: Float[Array, ""] | float = 0.25
    need: int = static(3)
    horizon: int = static(12)

    @property
    def segments(self):
        return self.horizon

    def world(self) -> World:
        # States: good steps so far, 0..need; broken by a bad one; over.
        n, T = self.need, self.horizon
        t, s, a = grid(T, n + 3, 4)
        step = jnp.where(
            a == GOOD,
            jnp.where(s < n, s + 1, s),
            jnp.where(a == BAD, n + 1, jnp.where(a == STOP, n + 2, s)),
        )
        step = jnp.where(s > n, jnp.where(a == STOP, n + 2, s), step)
        won = (s == n) & (a == STOP)
        return world(
            T,
            n + 3,
            4,
            next=step,
            who=jnp.where(s == n + 2, OVER, POLICY),
            row=s,
            segment=t,
            reward=won,
        )

    def policy(self) -> Float[Array, "P A"]:
        stop = 1 - self.good - self.bad - self.filler
        return logits_of(*[(self.good, self.bad, self.filler, stop)] * (self.need + 3))

    def signals(self, seen, *, key):
        """`process`, the PRM's score of each step in [-1, 1]; `error`, 1 where a step was bad."""
        a, s = seen.trace.token, seen.trace.state
        end = jnp.where(s == self.need, self.stop_right, self.stop_wrong)
        kinds = [self.score_good, self.score_bad, self.hack]
        score = jnp.where(
            a == STOP,
            end,
            jnp.stack([jnp.asarray(x, seen.logits.dtype) for x in kinds])[jnp.minimum(a, FILLER)],
        )
        score = score + self.sd * jax.random.normal(key, score.shape, score.dtype)
        live = at(seen.world.who, s) == POLICY
        return {
            "process": jnp.where(live, jnp.clip(score, -1, 1), 0),
            "error": (live & (a == BAD)).astype(seen.logits.dtype),
        }

    def blocks(self):
        return {}
