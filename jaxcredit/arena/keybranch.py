"""KeyBranch: one token of T decides, all others are decoys. Values, credit and the policy gradient are known in closed form."""

from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, PRNGKeyArray

from jaxcredit.rollout import Rollout


class KeyBranch(NamedTuple):
    """The task: the token at `at` is the key. Success has probability `p_hi` if it is token 0, else `p_lo`. All may be traced."""

    at: Int[Array, ""] | int = 8
    p_hi: Float[Array, ""] | float = 0.9
    p_lo: Float[Array, ""] | float = 0.1


def policy(
    task: KeyBranch,
    T: int = 24,
    *,
    options: int = 2,
    decoys: int = 4,
    q: Float[Array, ""] | float = 0.3,
    c_pre: Float[Array, ""] | float = 1.0,
    c_post: Float[Array, ""] | float = 0.6,
) -> Float[Array, "T V"]:
    """Logits of the policy the arena starts from: mass q on the right key of `options`, modal mass c_pre and c_post on decoy 0.

    The rest of the mass is spread evenly; what lies beyond `options` or `decoys` has none. Any other logits [T, V] do as well below.
    """
    a, t = jnp.arange(max(options, decoys)), jnp.arange(T)[:, None]
    mode = jnp.where(t == task.at, q, jnp.where(t < task.at, c_pre, c_post))
    count = jnp.where(t == task.at, options, decoys)
    rest = jnp.where(a < count, (1 - mode) / jnp.maximum(count - 1, 1), 0)
    return jnp.log(jnp.where(a == 0, mode, rest))


def sample(logits: Float[Array, "T V"], task: KeyBranch, *, prompts: int, group: int, key: PRNGKeyArray) -> Rollout:
    """N prompts with G trajectories of T chosen tokens each, the outcome drawn: K = 1, every token in segment 0. Jit-able."""
    T, (tokens_key, outcome_key) = logits.shape[0], jax.random.split(key)
    tokens = jax.random.categorical(tokens_key, logits, shape=(prompts, group, T)).astype(jnp.int32)
    logp = jnp.take_along_axis(jax.nn.log_softmax(logits), tokens.reshape(-1, T).T, axis=1).T.reshape(tokens.shape)
    win = jax.random.uniform(outcome_key, tokens.shape[:2], logits.dtype) < _chance(task, tokens)
    return Rollout(
        tokens=tokens,
        mask=jnp.ones(tokens.shape, bool),
        logp=logp,
        segment=jnp.zeros_like(tokens),
        reward=win[..., None].astype(logits.dtype),
        real=jnp.ones((*win.shape, 1), bool),
    )


def exact(logits: Float[Array, "T V"], task: KeyBranch, tokens: Int[Array, "*N T"]) -> tuple[Float[Array, "*N T"], ...]:
    """V before each token, Q of it, and A = Q - V, for the policy `logits`.

    With d = p_hi - p_lo: V = p_lo + q d up to the key, and p_hi or p_lo after it; A = (1 - q) d or -q d at the key, 0 elsewhere.
    """
    T, V = logits.shape
    t = jnp.arange(T)
    open_ = task.p_lo + _q(logits, task) * (task.p_hi - task.p_lo)
    settled = _chance(task, tokens)[..., None]
    value, action_value = jnp.where(t <= task.at, open_, settled), jnp.where(t < task.at, open_, settled)
    return value, action_value, action_value - value


def objective(logits: Float[Array, "T V"], task: KeyBranch) -> Float[Array, ""]:
    """J = p_lo + q (p_hi - p_lo), the chance of success; its gradient in the logits is `exact_gradient`."""
    return task.p_lo + _q(logits, task) * (task.p_hi - task.p_lo)


def exact_gradient(logits: Float[Array, "T V"], task: KeyBranch) -> Float[Array, "T V"]:
    """dJ/dlogits[t, a] = pi_t(a) A_t(a): at the key q (1 - q) d for token 0 and -q pi(a) d for the others, 0 elsewhere."""
    T, V = logits.shape
    pi = jax.nn.softmax(logits)
    right = jnp.arange(V) == 0
    credit = (right - _q(logits, task)) * (task.p_hi - task.p_lo)
    return jnp.where(jnp.arange(T)[:, None] == task.at, pi * credit, 0)


def gradient(advantage: Float[Array, "N R T"], rollout: Rollout, logits: Float[Array, "T V"]) -> Float[Array, "N T V"]:
    """Each group's estimate of the gradient: 1/G sum_i sum_t A_it grad log pi(token_it), where grad log pi_t(a) = e_a - pi_t."""
    V = logits.shape[1]
    taken = jax.nn.one_hot(rollout.tokens, V, dtype=advantage.dtype)
    by_token = jnp.einsum("ngt,ngtv->ntv", advantage, taken, precision="highest")
    return (by_token - advantage.sum(1)[..., None] * jax.nn.softmax(logits)) / advantage.shape[1]


def gsnr(gradients: Float[Array, "N T V"]) -> Float[Array, ""]:
    """|E g|^2 / tr Cov g over the groups: its inverse is the number of groups whose mean is as much signal as noise.

    |mean g|^2 overshoots by tr Cov / N, which is taken off.
    """
    N = gradients.shape[0]
    mean = gradients.mean(0)
    noise = jnp.sum((gradients - mean) ** 2) / (N - 1)
    return jnp.sum(mean**2) / noise - 1 / N


def cosine(a: Float[Array, "..."], b: Float[Array, "..."]) -> Float[Array, ""]:
    """The cosine of two gradients; 0 where one of them vanishes."""
    norm = jnp.linalg.norm(a.ravel()) * jnp.linalg.norm(b.ravel())
    return jnp.where(norm > 0, jnp.vdot(a, b) / jnp.where(norm > 0, norm, 1), 0)


def _q(logits, task):
    return jnp.take(jax.nn.softmax(logits), task.at, axis=0)[0]


def _chance(task, tokens):
    return jnp.where(jnp.take(tokens, task.at, axis=-1) == 0, task.p_hi, task.p_lo)
