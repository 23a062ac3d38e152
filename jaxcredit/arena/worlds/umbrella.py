"""Umbrella: KeyBranch with noisy rewards in each turn and observations without information."""

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxcredit.arena.family import family, static
from jaxcredit.arena.world import NATURE, POLICY, World, grid, world


@family
class Umbrella:
    """World of a delayed key among distractions, to test the variance of credit.

    Each turn is a token of the policy and an observation of nature. The token of turn `at` decides
    the outcome; every turn earns normal noise (`distraction`). `vary` is the variation of
    observations: 0 is always the same token, so answers share prefixes; 1 is uniform.

    Exact credit: that of KeyBranch at turn `at`, 0 elsewhere.
    """

    at: Int[Array, ""] | int = 2
    p_hi: Float[Array, ""] | float = 0.9
    p_lo: Float[Array, ""] | float = 0.1
    q: Float[Array, ""] | float = 0.3
    distraction: Float[Array, ""] | float = 0.1
    vary: Float[Array, ""] | float = 0.5
    turns: int = static(10)
    decoys: int = static(3)

    @property
    def segments(self):
        return self.turns

    def world(self) -> World:
        T, A = 2 * self.turns, self.decoys
        t, s, a = grid(T, 2, A)
        ours = t % 2 == 0
        right = jnp.where(ours & (t // 2 == self.at), a == 0, s)
        last = t == T - 1
        row = jnp.where(ours, t // 2, self.turns)
        return world(
            T,
            2,
            A,
            next=right,
            actor=jnp.where(ours, POLICY, NATURE),
            row=row,
            segment=t // 2,
            chance=last * jnp.where(right == 1, self.p_hi, self.p_lo),
            sd=~ours * self.distraction,
        )

    def policy(self) -> Float[Array, "P A"]:
        A, turn = self.decoys, jnp.arange(self.turns + 1)[:, None]
        a = jnp.arange(A)
        key = jnp.where(a == 0, self.q, (1 - self.q) / (A - 1))
        nature = jnp.where(a == 0, 1 - self.vary * (A - 1) / A, self.vary / A)
        return jnp.log(
            jnp.where(turn == self.turns, nature, jnp.where(turn == self.at, key, 1 / A))
        )

    def signals(self, inputs, *, key):
        return {}

    def blocks(self):
        row = jnp.arange(self.turns + 1)
        return {"key": row == self.at, "decoys": (row != self.at) & (row < self.turns)}
