"""Lengths: right and wrong answers, short and long."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxcredit.arena.family import family, logits_of, static
from jaxcredit.arena.world import OVER, POLICY, World, grid, solve, world


@family
class Lengths:
    """World of answer lengths, to test hidden credit in the divisor of a loss.

    Token 0 chooses: right and short, right and long, wrong and short, wrong and long. Fillers
    follow up to the length. Success has probability p_hi or p_lo, whatever the length.

    Exact credit: at token 0 p_hi or p_lo less their mean under the policy, 0 at fillers. A loss
    that divides by each answer's length favors short right and long wrong answers; a constant
    divisor does not.
    """

    short: Int[Array, ""] | int = 4
    long: Int[Array, ""] | int = 16
    p_hi: Float[Array, ""] | float = 0.9
    p_lo: Float[Array, ""] | float = 0.1
    right: Float[Array, ""] | float = 0.4
    long_right: Float[Array, ""] | float = 0.5  # share of long answers among right ones
    long_wrong: Float[Array, ""] | float = 0.5  # share of long answers among wrong ones
    T: int = static(16)
    fillers: int = static(3)

    segments = 1

    def world(self) -> World:
        # States: 0 before the choice, 1..4 the kinds of answer, 5 at the end.
        T, (t, s, a) = self.T, grid(self.T, 6, 4)
        kind = jnp.where(s == 0, a, s - 1)
        length = jnp.where(kind % 2 == 1, self.long, self.short)
        last = (t == jnp.minimum(length, T) - 1) & (s < 5)
        chance = jnp.where(last, jnp.where(kind < 2, self.p_hi, self.p_lo), 0)
        return world(
            T,
            6,
            4,
            next=jnp.where(last, 5, kind + 1),
            actor=jnp.where(s == 5, OVER, POLICY),
            chance=chance,
        )

    def policy(self) -> Float[Array, "P A"]:
        x, y, wrong = self.long_right, self.long_wrong, 1 - self.right
        first = (self.right * (1 - x), self.right * x, wrong * (1 - y), wrong * y)
        return logits_of(first, *[(1 / self.fillers,) * self.fillers] * (self.T - 1))

    def signals(self, inputs, *, key):
        return {"stratum": inputs.trace.token[..., 0] % 2}

    def blocks(self):
        row = jnp.arange(self.T)
        return {"choice": row == 0, "fillers": row > 0}


def sequence_gradient(task: Lengths, logits: Float[Array, "P A"]) -> Float[Array, "P A"]:
    """Gradient of exact credit under a loss that averages over the tokens of each answer.

    E sum_t (A_t / length) grad log pi,   length that of the answer
    """
    world, exact = task.world(), solve(task.world(), logits)
    kind = jnp.where(jnp.arange(6)[:, None] == 0, jnp.arange(4), jnp.arange(6)[:, None] - 1)
    inverse = 1 / jnp.minimum(jnp.where(kind % 2 == 1, task.long, task.short), task.T)
    pi = jax.nn.softmax(logits)[world.row]
    return (
        jnp.zeros(logits.shape, pi.dtype)
        .at[world.row]
        .add(exact.visit[..., None] * pi * exact.advantage * inverse)
    )
