"""AnchorHub: a hub that is visited repeatedly; wrong moves return to it through a corridor."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxcredit.arena.family import family, logits_of, static
from jaxcredit.arena.world import OVER, POLICY, World, grid, world

RIGHT, IDLE, WRONG = range(3)


@family
class AnchorHub:
    """World of recurring states, to test credit from repeated states (anchors).

    Success is `visits` right moves within `horizon` steps. All visits of the hub share one row of
    logits; each step is a segment. Signal `state` is progress and position. `timed` = 1 adds the
    step, which leaves few peers; with probability `alias` a step's state is that of another.

    Exact credit: the change of the success probability by each move in the hub, 0 in the corridor.
    GiGPO and similar methods beat GRPO here, except with such states.
    """

    right: Float[Array, ""] | float = 0.35
    idle: Float[Array, ""] | float = 0.35
    timed: Int[Array, ""] | int = 0
    alias: Float[Array, ""] | float = 0.0
    visits: int = static(3)
    corridor: int = static(2)
    horizon: int = static(12)

    @property
    def segments(self):
        return self.horizon

    def world(self) -> World:
        # State: progress * (corridor + 1) + steps left in the corridor; the last state is the end.
        n, C, T = self.visits, self.corridor + 1, self.horizon
        S = n * C + 1
        t, s, a = grid(T, S, 3)
        hub = s % C == 0
        moved = jnp.where(a == RIGHT, s + C, jnp.where(a == IDLE, s, s + C - 1))
        step = jnp.minimum(jnp.where(hub, moved, s - 1), S - 1)
        won = hub & (a == RIGHT) & (s // C == n - 1)
        return world(
            T,
            S,
            3,
            next=step,
            actor=jnp.where(s == S - 1, OVER, POLICY),
            row=jnp.where(s == S - 1, 0, s % C),
            segment=t,
            reward=won,
        )

    def policy(self) -> Float[Array, "P A"]:
        return logits_of(
            (self.right, self.idle, 1 - self.right - self.idle), *[(1 / 3,) * 3] * self.corridor
        )

    def signals(self, inputs, *, key):
        S, s = inputs.world.start.shape[0], inputs.trace.state
        other, coin = jax.random.split(key)
        aliased = jax.random.uniform(coin, s.shape) < self.alias
        s = jnp.where(aliased, jax.random.randint(other, s.shape, 0, S - 1), s)
        return {
            "state": (s + S * jnp.asarray(self.timed) * jnp.arange(s.shape[-1])).astype(jnp.int32)
        }

    def blocks(self):
        row = jnp.arange(self.corridor + 1)
        return {"hub": row == 0, "corridor": row > 0}
