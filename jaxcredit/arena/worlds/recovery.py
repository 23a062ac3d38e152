"""Recovery: a mistake at the beginning that can be repaired later."""

import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxcredit.arena.family import family, logits_of, static
from jaxcredit.arena.world import NATURE, POLICY, World, at, grid, world

FINE, BROKEN, MENDED, TRYING = range(4)


@family
class Recovery:
    """World of a mistake and attempts to repair it, to test first-error and hindsight credit.

    Token 0 is right (0) or a mistake (1). Each later turn has two tokens: the policy tries to
    repair (0) or not, and nature writes whether the repair worked. Success has probability p_hi
    without a mistake, p_late after a repair, p_lo otherwise; each attempt costs `detour`.

    Signals: `error` and `process` mark the mistake and the turns that leave it; `verdict` is
    1 - error.

    Exact credit: the change of the success probability by the mistake and by each attempt. An
    answer that ends right still has negative credit at its mistake.
    """

    right: Float[Array, ""] | float = 0.6
    attempt: Float[Array, ""] | float = 0.5
    repair: Float[Array, ""] | float = 0.4
    detour: Float[Array, ""] | float = 0.02
    p_hi: Float[Array, ""] | float = 0.9
    p_late: Float[Array, ""] | float = 0.7
    p_lo: Float[Array, ""] | float = 0.05
    attempts: int = static(4)

    @property
    def segments(self):
        return self.attempts + 1

    def world(self) -> World:
        T = 2 * self.attempts + 1
        t, s, a = grid(T, 4, 2)
        first, reply = t == 0, (t > 0) & (t % 2 == 0)
        try_ = (s == BROKEN) & (a == 0)
        answered = jnp.where(s == TRYING, jnp.where(a == 0, MENDED, BROKEN), s)
        step = jnp.where(
            first,
            jnp.where(a == 0, FINE, BROKEN),
            jnp.where(reply, answered, jnp.where(try_, TRYING, s)),
        )
        chance = jnp.where(
            step == FINE, self.p_hi, jnp.where(step == MENDED, self.p_late, self.p_lo)
        )
        # Rows: the first token; each attempt; nature's reply, which is not trained.
        row = jnp.where(first, 0, jnp.where(reply, self.attempts + 1, (t + 1) // 2))
        return world(
            T,
            4,
            2,
            next=step,
            actor=jnp.where(reply, NATURE, POLICY),
            row=row,
            segment=(t + 1) // 2,
            reward=-self.detour * ((t % 2 == 1) & (a == 0)),
            chance=(t == T - 1) * chance,
        )

    def policy(self) -> Float[Array, "P A"]:
        return logits_of(
            (self.right, 1 - self.right),
            *[(self.attempt, 1 - self.attempt)] * self.attempts,
            (self.repair, 1 - self.repair),
        )

    def signals(self, inputs, *, key):
        a, dtype = inputs.trace.token, inputs.logits.dtype
        left = (
            at(inputs.exact.value, inputs.trace.state) * 0
            + (inputs.trace.state == BROKEN) * (a == 1)
        )[..., 1::2]
        error = jnp.concatenate([a[..., :1] == 1, left > 0], -1).astype(dtype)
        return {"error": error, "process": 1 - 2 * error, "verdict": 1 - error}

    def blocks(self):
        row = jnp.arange(self.attempts + 2)
        return {"mistake": row == 0, "repair": (row > 0) & (row <= self.attempts)}
