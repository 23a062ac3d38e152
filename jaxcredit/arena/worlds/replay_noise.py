"""ReplayNoise: KeyBranch for methods that go back to a token and sample on, where going back does not always lead to the same state."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxcredit.arena.family import family, static
from jaxcredit.arena.worlds.keybranch import KeyBranch


@family
class ReplayNoise(KeyBranch):
    """`token_value` and `value` are means of K continuations from each token, as a vine has them; a replay lands, with probability `rho`,
    in a state drawn at random, so that its expectation is (1 - rho) V(s) + rho mean V. The outcome is 0 or 1: each is one coin."""

    rho: Float[Array, ""] | float = 0.1
    continuations: int = static(4)

    def signals(self, seen, *, key):
        s, V = seen.trace.state, seen.exact.value
        t, shape = jnp.arange(s.shape[-1]), (self.continuations, *s.shape)
        where, lost, coin = jax.random.split(key, 3)
        anywhere = jax.random.randint(where, shape, 0, V.shape[1])
        replayed = jnp.where(jax.random.uniform(lost, shape) < self.rho, anywhere, s)
        value = (jax.random.uniform(coin, shape, V.dtype) < V[t, replayed]).mean(0, dtype=V.dtype)
        return {"token_value": value, "value": seen.begin(value)}
