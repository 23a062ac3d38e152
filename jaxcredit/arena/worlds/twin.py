"""Twin: two worlds with the same distribution of logs and opposite credit."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxcredit.arena.family import family, logits_of
from jaxcredit.arena.world import World, grid, world


@family
class Twin:
    """World with a hidden state, to test that credit from the log alone is at chance.

    The hidden state z, which is in the policy's memory but not in the text, changes both the
    action, pi(1 | z) = e or 1 - e, and the reward:

        P(R = 1 | z, a) = 1/2 + sign (d (a - 1/2) - b (z - 1/2)),   b = d / (1 - 2 e)

    Then P(R = 1 | a) = 1/2 for both actions and both signs.

    Exact credit: the action's effect, sign * d. Replaying the other action from the restored z
    (signal `counterfactual`) shows it. The policy gradient is unbiased too, as its score depends on
    z.
    """

    sign: Float[Array, ""] | float = 1.0
    d: Float[Array, ""] | float = 0.4
    e: Float[Array, ""] | float = 0.1

    segments = 1

    def world(self) -> World:
        t, z, a = grid(1, 2, 2)
        return world(1, 2, 2, start=jnp.full(2, 0.5), next=z, row=z, chance=self.chance(z, a))

    def chance(self, z, a):
        return 0.5 + self.sign * (self.d * (a - 0.5) - self.d / (1 - 2 * self.e) * (z - 0.5))

    def policy(self) -> Float[Array, "P A"]:
        return logits_of((1 - self.e, self.e), (self.e, 1 - self.e))

    def signals(self, inputs, *, key):
        """Values given the text, which is constant; `counterfactual` replays the other action."""
        z, a = inputs.trace.state, inputs.trace.token
        other = jax.random.uniform(key, a.shape, inputs.logits.dtype) < self.chance(z, 1 - a)
        half = jnp.full(a.shape, 0.5, inputs.logits.dtype)
        flat = jnp.zeros(inputs.segment_start.shape, jnp.int32)
        known = {
            "entropy": half * 0 + jnp.log(2.0),
            "prob_square": half,
            "ref_logp": half * 0 + jnp.log(0.5),
        }  # of the text's next token
        return {
            "token_value": half,
            "value": half,
            "state": flat,
            "counterfactual": other.astype(half.dtype),
            **known,
        }

    def blocks(self):
        return {}
