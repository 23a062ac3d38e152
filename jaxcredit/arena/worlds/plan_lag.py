"""PlanLag: a plan token decides each subgoal; a critic shows the change of value late."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxcredit.arena.family import family, static
from jaxcredit.arena.world import World, at, grid, world


@family
class PlanLag:
    """World of subgoals of L tokens, to test hierarchical against flat GAE.

    The first token of a subgoal is the plan. The reward, at the end, is the share of right plans
    plus normal noise. The critic is V_hat = (1 - lag) V(now) + lag V(start of the subgoal) + noise.

    Exact credit: the plan's effect on that share at the plan token, 0 at all other tokens. With
    lag = 1 flat GAE gives the plan lambda^(L - 1) of its credit and hierarchical GAE all of it;
    without lag flat GAE is better.
    """

    lag: Float[Array, ""] | float = 1.0
    critic_sd: Float[Array, ""] | float = 0.02
    critic_bias: Float[Array, ""] | float = 0.0
    sd: Float[Array, ""] | float = 0.05
    plan: Float[Array, ""] | float = 0.5  # probability of the right plan
    subgoals: int = static(4)
    L: int = static(8)
    options: int = static(2)

    @property
    def segments(self):
        return self.subgoals

    def world(self) -> World:
        T, S = self.subgoals * self.L, self.subgoals + 1
        t, s, a = grid(T, S, self.options)
        right = s + ((t % self.L == 0) & (a == 0))
        last = t == T - 1
        return world(
            T,
            S,
            self.options,
            next=right,
            segment=t // self.L,
            reward=last * right / self.subgoals,
            sd=last * self.sd,
        )

    def policy(self) -> Float[Array, "P A"]:
        plan = jnp.arange(self.subgoals * self.L)[:, None] % self.L == 0
        rest = jnp.where(plan, (1 - self.plan) / (self.options - 1), 1 / self.options)
        return jnp.log(jnp.where(plan & (jnp.arange(self.options) == 0), self.plan, rest))

    def signals(self, inputs, *, key):
        V, t = at(inputs.exact.value, inputs.trace.state), jnp.arange(self.subgoals * self.L)
        began = V[..., t - t % self.L]
        V = (1 - self.lag) * V + self.lag * began + self.critic_bias
        V = V + self.critic_sd * jax.random.normal(key, V.shape, V.dtype)
        plans = inputs.at_segment_start(V)
        return {
            "token_value": V,
            "value": plans,
            "value_plan": plans,
            "value_switch": plans,
            "subgoal": jnp.broadcast_to(jnp.arange(self.subgoals), plans.shape),
            "kind": jnp.broadcast_to(jnp.where(t % self.L == 0, 1, 3), V.shape),
            "macro": jnp.broadcast_to(t // self.L, V.shape),
            "planning": jnp.broadcast_to((t % self.L == 0).astype(jnp.int32), V.shape),
        }

    def blocks(self):
        plan = jnp.arange(self.subgoals * self.L) % self.L == 0
        return {"plan": plan, "execute": ~plan}
