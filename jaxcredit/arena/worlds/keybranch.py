"""KeyBranch: one token of T decides the outcome; all others are decoys."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxcredit.arena.family import family, static
from jaxcredit.arena.world import World, grid, world


@family
class KeyBranch:
    """World of key tokens among decoys, to test credit by shared prefixes.

    Keys are at `at`, `at + gap`, ...; their right token is 0. Success has probability `p_hi` if
    `need` of the keys are right, else `p_lo`. The policy has probability q for the right token of a
    key, and c_pre and c_post for the most likely decoy before and after the first key.

    Exact credit, with one key and d = p_hi - p_lo: (1 - q) d or -q d at the key, 0 elsewhere.
    Prefix trees, continuations and GAE find the key; prefix trees fail if decoys branch before it
    (low c_pre).
    """

    at: Int[Array, ""] | int = 8
    p_hi: Float[Array, ""] | float = 0.9
    p_lo: Float[Array, ""] | float = 0.1
    q: Float[Array, ""] | float = 0.3
    c_pre: Float[Array, ""] | float = 1.0
    c_post: Float[Array, ""] | float = 0.6
    gap: Int[Array, ""] | int = 1
    need: Int[Array, ""] | int = 1  # number of right keys for success
    T: int = static(24)
    options: int = static(2)
    decoys: int = static(4)
    keys: int = static(1)

    segments = 1

    def world(self) -> World:
        t, s, a = grid(self.T, self.keys + 1, max(self.options, self.decoys))
        right = s + (self.is_key(t) & (a == 0))
        return world(
            self.T,
            self.keys + 1,
            a.size,
            next=right,
            chance=(t == self.T - 1) * jnp.where(right >= self.need, self.p_hi, self.p_lo),
        )

    def policy(self) -> Float[Array, "T V"]:
        """Logits: the mode, and equal probabilities for the other options or decoys."""
        a, t = jnp.arange(max(self.options, self.decoys)), jnp.arange(self.T)[:, None]
        mode = jnp.where(self.is_key(t), self.q, jnp.where(t < self.at, self.c_pre, self.c_post))
        count = jnp.where(self.is_key(t), self.options, self.decoys)
        rest = jnp.where(a < count, (1 - mode) / jnp.maximum(count - 1, 1), 0)
        return jnp.log(jnp.where(a == 0, mode, rest))

    def is_key(self, t):
        return (
            (t >= self.at)
            & ((t - self.at) % jnp.maximum(self.gap, 1) == 0)
            & ((t - self.at) // jnp.maximum(self.gap, 1) < self.keys)
        )

    def signals(self, inputs, *, key):
        return {}

    def blocks(self):
        return {"key": self.is_key(jnp.arange(self.T)), "decoys": ~self.is_key(jnp.arange(self.T))}


# Closed forms for one key.


def exact(
    logits: Float[Array, "T V"], task: KeyBranch, tokens: Int[Array, "*N T"]
) -> tuple[Float[Array, "*N T"], ...]:
    """Value before each token, action value, and advantage, of a policy in a world with one key.

    With d = p_hi - p_lo: V = p_lo + q d up to the key, and p_hi or p_lo after it; A = (1 - q) d or
    -q d at the key, 0 elsewhere.
    """
    t = jnp.arange(logits.shape[0])
    open_ = objective(logits, task)
    settled = jnp.where(jnp.take(tokens, task.at, axis=-1) == 0, task.p_hi, task.p_lo)[..., None]
    value, action_value = (
        jnp.where(t <= task.at, open_, settled),
        jnp.where(t < task.at, open_, settled),
    )
    return value, action_value, action_value - value


def objective(logits: Float[Array, "T V"], task: KeyBranch) -> Float[Array, ""]:
    """Success probability J = p_lo + q (p_hi - p_lo) of a policy in a world with one key."""
    return task.p_lo + _q(logits, task) * (task.p_hi - task.p_lo)


def exact_gradient(logits: Float[Array, "T V"], task: KeyBranch) -> Float[Array, "T V"]:
    """Gradient of `objective` in the logits.

        dJ/dlogits[t, a] = pi_t(a) A_t(a)

    At the key it is q (1 - q) d for token 0 and -q pi(a) d for the others; elsewhere it is 0.
    """
    T, V = logits.shape
    right = jnp.arange(V) == 0
    credit = (right - _q(logits, task)) * (task.p_hi - task.p_lo)
    return jnp.where(jnp.arange(T)[:, None] == task.at, jax.nn.softmax(logits) * credit, 0)


def _q(logits, task):
    return jnp.take(jax.nn.softmax(logits), task.at, axis=0)[0]
