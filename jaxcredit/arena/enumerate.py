"""Every answer of a small autoregressive policy: its token tree as a world whose states are prefixes, so that all the arena applies to it.

Nothing is projected: values, advantages and the gradient are exact for policies that remember everything, the project's transformer
included. V^T up to about a million answers.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from jaxcredit.arena.family import Batch, describe, family, static
from jaxcredit.arena.world import OVER, POLICY, Trace, World, grid, solve, world
from jaxcredit.policy import transformer


def answers(T: int, V: int) -> Int[np.ndarray, "M T"]:
    """All V^T sequences of T tokens, in lexicographic order: the beginnings of length t are every V^(T - t)-th."""
    return (np.arange(V**T)[:, None] // V ** np.arange(T - 1, -1, -1) % V).astype(np.int32)


def table(policy: Callable, T: int, V: int, *, chunk: int = 4096) -> Float[Array, "P V"]:
    """Next-token logits after every prefix, shortest first. `policy(tokens [M, T - 1]) -> [M, T, V]`: before each of T tokens.

    One batch of the V^(T-1) longest prefixes scores them all; it runs in chunks, which are recomputed in the backward.
    """
    rows = answers(T - 1, V)
    step = next(c for c in range(min(chunk, len(rows)), 0, -1) if len(rows) % c == 0)
    parts = jax.lax.map(jax.checkpoint(policy), jnp.asarray(rows).reshape(-1, step, T - 1))
    logits = parts.reshape(len(rows), T, V)
    return jnp.concatenate([logits[:: V ** (T - 1 - t), t] for t in range(T)])


def of_transformer(
    params: PyTree, cfg: transformer.Config, prompt: Int[Array, "P"], *, temperature: float = 1.0
) -> Callable:
    """The project's transformer behind a prompt, as `table` wants it."""

    def policy(tokens):
        begun = jnp.broadcast_to(prompt, (len(tokens), len(prompt)))
        z = transformer.logits(
            params,
            jnp.concatenate([begun, tokens], 1),
            jnp.ones((len(tokens), len(prompt) + tokens.shape[1]), bool),
            cfg,
        )
        return z[:, len(prompt) - 1 :] / temperature

    return policy


@family
class TokenTree:
    """The tree as a family: `logits` of every prefix, `reward` of every answer; a token of `stop` ends it (what would follow reads 0)."""

    logits: Float[Array, "P V"]
    reward: Float[Array, "M"]
    T: int = static(4)
    V: int = static(2)
    stop: tuple = static(())

    segments = 1

    def world(self) -> World:
        # The state is the prefix as a number: at step t there are V^t of them.
        T, V, S = self.T, self.V, self.V ** (self.T - 1)
        t, s, a = grid(T, S, V)
        before = (V**t - 1) // (V - 1)
        tail = V ** (T - 1 - t)
        stops = np.isin(a, self.stop)
        over = np.zeros((T, S, 1), bool)
        for i in range(1, T):
            parent = np.arange(S) // V
            over[i, :, 0] = over[i - 1, parent, 0] | np.isin(np.arange(S) % V, self.stop)
        leaf = np.minimum((s * V + a) * tail, V**T - 1)
        ends = (stops | (t == T - 1)) & ~over
        return world(
            T,
            S,
            V,
            next=np.where(over, s * V, np.minimum(s * V + a, S - 1)),
            who=np.where(over, OVER, POLICY),
            row=before + np.minimum(s, V**t - 1),
            reward=jnp.where(ends, jnp.asarray(self.reward)[leaf], 0),
        )

    def policy(self) -> Float[Array, "P V"]:
        return self.logits

    def signals(self, seen, *, key):
        return {}

    def blocks(self):
        depth = np.repeat(np.arange(self.T), self.V ** np.arange(self.T))
        return {f"depth {t}": depth == t for t in range(self.T)}


def gradient(make: Callable, params: PyTree, task: TokenTree) -> PyTree:
    """dJ/dparams = sum over prefixes of d(s) pi(a) A(s, a) grad logits: the exact credit through `make(params) -> table`."""
    logits, back = jax.vjp(make, params)
    return back(solve(task.world(), logits).gradient.astype(logits.dtype))[0]


def score_gradient(make: Callable, params: PyTree, task: TokenTree) -> PyTree:
    """The same by the score function, without values: sum over answers of P(y) R(y) grad log P(y). For trees without stop tokens."""

    def surrogate(params):
        logp, T, V = jax.nn.log_softmax(make(params)), task.T, task.V
        total, begin = jnp.zeros(1, logp.dtype), 0
        for t in range(T):
            total = (total[:, None] + logp[begin : begin + V**t]).ravel()
            begin += V**t
        return jnp.vdot(jax.lax.stop_gradient(jnp.exp(total) * task.reward), total)

    return jax.grad(surrogate)(params)


def every_group(task: TokenTree, group: int) -> tuple[Batch, Float[Array, "N"]]:
    """All V^(T G) groups of G answers as one batch, and the probability of each: expectations without sampling. Trees without stop."""
    sequences = answers(task.T, task.V)
    which = answers(group, len(sequences))
    tokens = jnp.asarray(sequences[which])
    powers = task.V ** np.arange(task.T)[::-1]
    state = jnp.asarray(
        np.stack([sequences @ (powers // task.V ** (task.T - t)) for t in range(task.T)], -1)[which]
    )
    logits, w = task.policy(), task.world()
    t = np.arange(task.T)
    logp = jax.nn.log_softmax(logits)[w.row[t, state], tokens].sum((1, 2))
    trace = Trace(state, tokens, w.reward[t, state, tokens])
    return describe(task, w, logits, trace, key=jax.random.key(0)), jnp.exp(logp)
