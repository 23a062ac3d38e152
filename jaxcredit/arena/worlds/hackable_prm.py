"""HackablePRM: steps that help, harm, fill or stop; a reward model that may overrate filler."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxcredit.arena.family import family, logits_of, static
from jaxcredit.arena.world import OVER, POLICY, World, at, grid, world

GOOD, BAD, FILLER, STOP = range(4)


@family
class HackablePRM:
    """World of steps with process rewards, to test sums of scores against the minimum score.

    An answer is right if it stops within `horizon` steps, after `need` good steps and no bad one.
    Each step is a segment. The process reward is a score of the kind of step plus noise: `hack` for
    filler, `stop_right` and `stop_wrong` for the end.

    Exact credit: the change of the success probability by each step, 0 for filler that leaves
    enough time. The sum of scores is largest for answers that never stop.
    """

    hack: Float[Array, ""] | float = 0.4
    score_good: Float[Array, ""] | float = 0.8
    score_bad: Float[Array, ""] | float = -0.6
    stop_right: Float[Array, ""] | float = 0.8
    stop_wrong: Float[Array, ""] | float = -0.8
    sd: Float[Array, ""] | float = 0.1
    good: Float[Array, ""] | float = (
        0.25  # probabilities of the initial policy; the rest is for stop
    )
    bad: Float[Array, ""] | float = 0.25
    filler: Float[Array, ""] | float = 0.25
    need: int = static(3)
    horizon: int = static(12)

    @property
    def segments(self):
        return self.horizon

    def world(self) -> World:
        # States: number of good steps, 0..need; need + 1 after a bad step; need + 2 at the end.
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
            actor=jnp.where(s == n + 2, OVER, POLICY),
            row=s,
            segment=t,
            reward=won,
        )

    def policy(self) -> Float[Array, "P A"]:
        stop = 1 - self.good - self.bad - self.filler
        return logits_of(*[(self.good, self.bad, self.filler, stop)] * (self.need + 3))

    def signals(self, inputs, *, key):
        """`process`: score of each step in [-1, 1]; `error`: 1 for a bad step, else 0."""
        a, s = inputs.trace.token, inputs.trace.state
        end = jnp.where(s == self.need, self.stop_right, self.stop_wrong)
        kinds = [self.score_good, self.score_bad, self.hack]
        score = jnp.where(
            a == STOP,
            end,
            jnp.stack([jnp.asarray(x, inputs.logits.dtype) for x in kinds])[jnp.minimum(a, FILLER)],
        )
        score = score + self.sd * jax.random.normal(key, score.shape, score.dtype)
        live = at(inputs.world.actor, s) == POLICY
        return {
            "process": jnp.where(live, jnp.clip(score, -1, 1), 0),
            "error": (live & (a == BAD)).astype(inputs.logits.dtype),
        }

    def blocks(self):
        return {}
