"""Token trees: worlds whose states are all prefixes of a small autoregressive policy.

Values, advantages and the policy gradient are exact, also for policies that condition on the whole
prefix, such as `jaxcredit.policy.transformer`. Feasible for up to about a million answers, V^T.
"""

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int, PyTree

from jaxcredit.arena.family import LabeledBatch, family, label, static
from jaxcredit.arena.world import OVER, POLICY, Trace, World, grid, solve, world
from jaxcredit.policy import transformer


def answers(T: int, V: int) -> Int[np.ndarray, "M T"]:
    """All V^T sequences of T tokens, in lexicographic order."""
    return (np.arange(V**T)[:, None] // V ** np.arange(T - 1, -1, -1) % V).astype(np.int32)


def table(policy: Callable, T: int, V: int, *, chunk: int = 4096) -> Float[Array, "P V"]:
    """Next-token logits after every prefix, shortest prefixes first.

    The policy is applied to the V^(T - 1) longest prefixes, in chunks that are recomputed in the
    backward pass.

    Args:
        policy: function from tokens [M, T - 1] to logits [M, T, V] before each of T tokens.
        T: number of tokens of an answer.
        V: number of tokens in the vocabulary.
        chunk: largest number of prefixes computed at once.
    """
    rows = answers(T - 1, V)
    step = next(c for c in range(min(chunk, len(rows)), 0, -1) if len(rows) % c == 0)
    parts = jax.lax.map(jax.checkpoint(policy), jnp.asarray(rows).reshape(-1, step, T - 1))
    logits = parts.reshape(len(rows), T, V)
    return jnp.concatenate([logits[:: V ** (T - 1 - t), t] for t in range(T)])


def of_transformer(
    params: PyTree, cfg: transformer.Config, prompt: Int[Array, "P"], *, temperature: float = 1.0
) -> Callable:
    """`jaxcredit.policy.transformer` after a prompt, as a policy for `table`.

    Args:
        params: parameters of the transformer.
        cfg: its configuration.
        prompt: tokens of the prompt.
        temperature: divides the logits.
    """

    def policy(tokens):
        prompts = jnp.broadcast_to(prompt, (len(tokens), len(prompt)))
        z = transformer.logits(
            params,
            jnp.concatenate([prompts, tokens], 1),
            jnp.ones((len(tokens), len(prompt) + tokens.shape[1]), bool),
            cfg,
        )
        return z[:, len(prompt) - 1 :] / temperature

    return policy


@family
class TokenTree:
    """Family of all answers of T tokens, each prefix with logits of its own.

    Knobs: `logits` of every prefix (see `table`), `reward` of every answer. Sizes: T, V, and
    `stop`, tokens that end an answer; its reward is that of the answer continued with token 0.
    """

    logits: Float[Array, "P V"]
    reward: Float[Array, "M"]
    T: int = static(4)
    V: int = static(2)
    stop: tuple = static(())

    segments = 1

    def world(self) -> World:
        # The state is the prefix as a number in base V: V^t states at step t.
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
            actor=np.where(over, OVER, POLICY),
            row=before + np.minimum(s, V**t - 1),
            reward=jnp.where(ends, jnp.asarray(self.reward)[leaf], 0),
        )

    def policy(self) -> Float[Array, "P V"]:
        return self.logits

    def signals(self, inputs, *, key):
        return {}

    def blocks(self):
        depth = np.repeat(np.arange(self.T), self.V ** np.arange(self.T))
        return {f"depth {t}": depth == t for t in range(self.T)}


def gradient(make: Callable, params: PyTree, task: TokenTree) -> PyTree:
    """Exact policy gradient from exact advantages.

        dJ/dparams = sum over prefixes s and tokens a of d(s) pi(a) A(s, a) grad logits(s, a)

    Args:
        make: function from params to the `table` of logits.
        params: parameters of the policy.
        task: the tree; its logits are those of `make(params)`.
    """
    logits, back = jax.vjp(make, params)
    return back(solve(task.world(), logits).gradient.astype(logits.dtype))[0]


def score_gradient(make: Callable, params: PyTree, task: TokenTree) -> PyTree:
    """Exact policy gradient by the score function, for trees without stop tokens.

    dJ/dparams = sum over answers y of P(y) R(y) grad log P(y)
    """

    def surrogate(params):
        logp, T, V = jax.nn.log_softmax(make(params)), task.T, task.V
        total, begin = jnp.zeros(1, logp.dtype), 0
        for t in range(T):
            total = (total[:, None] + logp[begin : begin + V**t]).ravel()
            begin += V**t
        return jnp.vdot(jax.lax.stop_gradient(jnp.exp(total) * task.reward), total)

    return jax.grad(surrogate)(params)


def every_group(task: TokenTree, group: int) -> tuple[LabeledBatch, Float[Array, "N"]]:
    """All V^(T G) groups of G answers, and their probabilities: exact expectations over groups.

    For trees without stop tokens.
    """
    sequences = answers(task.T, task.V)
    members = answers(group, len(sequences))
    tokens = jnp.asarray(sequences[members])
    powers = task.V ** np.arange(task.T)[::-1]
    state = jnp.asarray(
        np.stack([sequences @ (powers // task.V ** (task.T - t)) for t in range(task.T)], -1)[
            members
        ]
    )
    logits, w = task.policy(), task.world()
    t = np.arange(task.T)
    logp = jax.nn.log_softmax(logits)[w.row[t, state], tokens].sum((1, 2))
    trace = Trace(state, tokens, w.reward[t, state, tokens])
    return label(task, w, logits, trace, key=jax.random.key(0)), jnp.exp(logp)
