"""Strata: the policy first picks a stratum (how often to search), then acts in it; strata differ in what everybody earns there."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxcredit.arena.family import family, logits_of
from jaxcredit.arena.world import World, grid, world


@family
class Strata:
    """R = base + offset * stratum + effect if the act is 0, with normal noise; or, with coin = 1, a 0/1 reward of that probability.

    Separates normalising within strata (SAN) from GRPO. It reverses where the offset is small beside the noise, and wherever the
    stratum is itself a decision: within a stratum its choice has no credit.
    """

    offset: Float[Array, ""] | float = 0.3
    effect: Float[Array, ""] | float = 0.1
    sd: Float[Array, ""] | float = 0.05
    base: Float[Array, ""] | float = 0.2
    coin: Float[Array, ""] | float = 0.0
    act: Float[Array, ""] | float = 0.5
    mass: tuple = (0.4, 0.3, 0.2, 0.1)  # of each stratum; its length is their number

    segments = 1

    def world(self) -> World:
        # States: the choice; having chosen stratum s - 1. Rows: one for the choice, one for each stratum.
        Z = len(self.mass)
        t, s, a = grid(2, Z + 1, max(Z, 2))
        acts = t == 1
        mean = acts * (self.base + self.offset * (s - 1) + self.effect * (a == 0))
        sd = acts * self.sd * (1 - self.coin)
        return world(
            2,
            Z + 1,
            a.size,
            next=a + 1,
            row=s,
            reward=(1 - self.coin) * mean,
            chance=self.coin * mean,
            sd=sd,
        )

    def policy(self) -> Float[Array, "P A"]:
        return logits_of(self.mass, *[(self.act, 1 - self.act)] * len(self.mass))

    def signals(self, seen, *, key):
        return {"stratum": seen.trace.token[..., 0]}

    def blocks(self):
        row = jnp.arange(len(self.mass) + 1)
        return {"stratum": row == 0, "act": row > 0}
