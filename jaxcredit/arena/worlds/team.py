"""Team: n agents act once each without observing each other, and share one reward."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from jaxcredit.arena.family import family, static
from jaxcredit.arena.world import World, at, grid, world


@family
class Team:
    """World of agents with a shared reward, to test multi-agent credit.

    Action 1 is to take part, with probability `p`. The reward is a weighted sum of functions of the
    set of participants: their share (add), all, any, an odd number, a majority (most), and (any of
    the first half + all of the second) / 2 (halves). The last `idle` agents have no effect. Each
    agent's token is a segment.

    Exact credit: the expected change of the reward by the agent's action. Redundancy (any) is hard
    for a shared baseline. Shapley values depend on the action that counts as absence, and are
    biased if the parts of the reward are mixed.
    """

    p: Float[Array, ""] | float = 0.8
    add: Float[Array, ""] | float = 0.0
    all_: Float[Array, ""] | float = 0.0
    any_: Float[Array, ""] | float = 0.0
    odd: Float[Array, ""] | float = 0.0
    most: Float[Array, ""] | float = 0.0
    halves: Float[Array, ""] | float = 1.0
    idle: int = static(0)
    n: int = static(4)

    @property
    def segments(self):
        return self.n

    def rewards(self) -> Float[Array, "S"]:
        """Reward of every set of participants; bit a of the index: agent a takes part."""
        sets, busy = np.arange(2**self.n), self.n - self.idle
        acts = (sets[:, None] >> np.arange(busy)) & 1
        half = max(busy // 2, 1)
        parts = [acts.mean(1), acts.all(1), acts.any(1), acts.sum(1) % 2, acts.sum(1) > busy / 2]
        parts.append((acts[:, :half].any(1) * 1.0 + acts[:, half:].all(1)) / 2)
        weights = (self.add, self.all_, self.any_, self.odd, self.most, self.halves)
        return sum(
            (w * jnp.asarray(x * 1.0) for w, x in zip(weights, parts, strict=True)),
            jnp.zeros(len(sets)),
        )

    def world(self) -> World:
        # State: bit mask of the agents that have taken part so far.
        t, s, a = grid(self.n, 2**self.n, 2)
        joined = s | (a << t)
        return world(
            self.n,
            2**self.n,
            2,
            next=joined,
            segment=t,
            reward=(t == self.n - 1) * self.rewards()[joined],
        )

    def policy(self) -> Float[Array, "P A"]:
        p = jnp.asarray(self.p, float)
        return jnp.broadcast_to(jnp.log(jnp.stack([1 - p, p])), (self.n, 2))

    def signals(self, inputs, *, key):
        R, agents, sets = self.rewards(), jnp.arange(self.n), jnp.arange(2**self.n)
        act = inputs.trace.token
        team = (act << agents).sum(-1)
        without = team[..., None] & ~(1 << agents)
        shape = act.shape
        return {
            "agent": jnp.broadcast_to(agents, shape),
            "coalition": R[team[..., None] & sets],
            "counterfactual": R[without],
            "choice": act,
            "choice_value": R[jnp.stack([without, without | (1 << agents)], -1)],
            "choice_prob": jnp.broadcast_to(jnp.exp(inputs.logits), (*shape, 2)),
            "action_value": at(inputs.exact.action_value, inputs.trace.state, act),
        }

    def blocks(self):
        return {f"agent {i}": jnp.arange(self.n) == i for i in range(self.n)}
