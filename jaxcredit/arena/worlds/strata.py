"""Strata: the policy chooses a stratum, then an act; rewards differ between strata."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxcredit.arena.family import family, logits_of
from jaxcredit.arena.world import World, grid, world


@family
class Strata:
    """World of strata (such as numbers of searches), to test normalization within strata.

    R = base + offset * stratum + effect if the act is 0, plus normal noise; with coin = 1 a 0/1
    reward with that probability.

    Exact credit: offset * (stratum - its mean) at the stratum's token, effect * (1[act is 0] - its
    probability) at the act's. Normalization within strata (SAN) is better for the act. It gives the
    choice of the stratum no credit, and is worse if the offset is small against the noise.
    """

    offset: Float[Array, ""] | float = 0.3
    effect: Float[Array, ""] | float = 0.1
    sd: Float[Array, ""] | float = 0.05
    base: Float[Array, ""] | float = 0.2
    coin: Float[Array, ""] | float = 0.0
    act: Float[Array, ""] | float = 0.5
    mass: tuple = (0.4, 0.3, 0.2, 0.1)  # probability of each stratum

    segments = 1

    def world(self) -> World:
        # States: 0 before the choice, then 1 + stratum. Rows: the choice, the act in each stratum.
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

    def signals(self, inputs, *, key):
        return {"stratum": inputs.trace.token[..., 0]}

    def blocks(self):
        row = jnp.arange(len(self.mass) + 1)
        return {"stratum": row == 0, "act": row > 0}
