"""ReplayNoise: KeyBranch with values from replays that may start in another state."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxcredit.arena.family import family, static
from jaxcredit.arena.worlds.keybranch import KeyBranch


@family
class ReplayNoise(KeyBranch):
    """KeyBranch with Monte Carlo values, to test credit by continuations from each token.

    `token_value` and `value` are means of K = `continuations` outcomes, each 0 or 1. A replay
    starts in a random state with probability `rho`, so its expectation is (1 - rho) V(s) + rho mean
    V.

    Exact credit: that of KeyBranch.
    """

    rho: Float[Array, ""] | float = 0.1
    continuations: int = static(4)

    def signals(self, inputs, *, key):
        s, V = inputs.trace.state, inputs.exact.value
        t, shape = jnp.arange(s.shape[-1]), (self.continuations, *s.shape)
        where, lost, coin = jax.random.split(key, 3)
        anywhere = jax.random.randint(where, shape, 0, V.shape[1])
        replayed = jnp.where(jax.random.uniform(lost, shape) < self.rho, anywhere, s)
        value = (jax.random.uniform(coin, shape, V.dtype) < V[t, replayed]).mean(0, dtype=V.dtype)
        return {"token_value": value, "value": inputs.at_segment_start(value)}
