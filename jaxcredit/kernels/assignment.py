"""Assignments between predictions and gold entries: plans [P, Q] computed from scores [P, Q] >= 0.

`rows` [P] and `cols` [Q] mark existing entries. Shapes are padded and static, so problems of any
sizes form a batch under `vmap`. A one-to-one plan holds zeros and ones and never matches a pair of
score 0. A transport plan spreads weights over all pairs.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def greedy_assignment(
    score: Float[Array, "P Q"],
    rows: Bool[Array, "P"] | None = None,
    cols: Bool[Array, "Q"] | None = None,
) -> Float[Array, "P Q"]:
    """One-to-one plan that takes the best remaining pair until none is left.

    Of equal scores the first in row-major order is taken. The total is at least half of the
    optimum.

    Args:
        score: [P, Q] scores, >= 0.
        rows: [P] predictions that exist. None: all.
        cols: [Q] gold entries that exist. None: all.

    Returns:
        [P, Q] plan of zeros and ones.

    >>> greedy_assignment(jnp.array([[0.9, 0.8], [0.8, 0.1]])).tolist()
    [[1.0, 0.0], [0.0, 1.0]]
    """
    P, Q = score.shape

    def take(_, state):
        remaining, plan = state
        best = jnp.argmax(remaining)
        i, j = best // Q, best % Q
        plan = plan.at[i, j].add(jnp.where(remaining[i, j] > 0, 1.0, 0.0).astype(score.dtype))
        return remaining.at[i, :].set(0).at[:, j].set(0), plan

    start = _real(score, rows, cols), jnp.zeros_like(score)
    return jax.lax.fori_loop(0, min(P, Q), take, start)[1] if P and Q else start[1]


def optimal_assignment(
    score: Float[Array, "P Q"],
    rows: Bool[Array, "P"] | None = None,
    cols: Bool[Array, "Q"] | None = None,
) -> Float[Array, "P Q"]:
    """One-to-one plan of the largest total score, by the Hungarian algorithm.

    Needs optax, which it imports when it is called.

    Args:
        score: [P, Q] scores, >= 0.
        rows: [P] predictions that exist. None: all.
        cols: [Q] gold entries that exist. None: all.

    Returns:
        [P, Q] plan of zeros and ones that maximizes sum_ij T_ij S_ij.

    >>> optimal_assignment(jnp.array([[0.9, 0.8], [0.8, 0.1]])).tolist()
    [[0.0, 1.0], [1.0, 0.0]]
    """
    from optax.assignment import hungarian_algorithm

    S = _real(score, rows, cols)
    i, j = hungarian_algorithm(-S)
    return jnp.zeros_like(S).at[i, j].set((S[i, j] > 0).astype(S.dtype))


def optimal_transport(
    score: Float[Array, "P Q"],
    rows: Bool[Array, "P"] | None = None,
    cols: Bool[Array, "Q"] | None = None,
    *,
    reg: float = 0.1,
    iters: int = 200,
) -> Float[Array, "P Q"]:
    """Entropic optimal transport between uniform marginals, by Sinkhorn's iterations in log space.

        max_T <T, S> + reg H(T),   sum_j T_ij = 1 / P,   sum_i T_ij = 1 / Q

    P and Q count existing rows and columns. Row sums are exact. The error of the column sums
    measures convergence.

    Args:
        score: [P, Q] scores S, >= 0.
        rows: [P] predictions that exist. None: all.
        cols: [Q] gold entries that exist. None: all.
        reg: weight of the entropy, > 0. Smaller is closer to an assignment and converges more
            slowly.
        iters: number of iterations.

    Returns:
        [P, Q] transport plan.
    """
    a, b = (_log_uniform(x, n, score.dtype) for x, n in zip((rows, cols), score.shape, strict=True))
    real = jnp.isfinite(a)[:, None] & jnp.isfinite(b)
    M = jnp.where(real, score / reg, -jnp.inf)

    def sweep(state, _):
        f, _ = state
        g = _finite(b - _lse(M + f[:, None], 0))
        return (_finite(a - _lse(M + g, 1)), g), None

    f, g = jnp.zeros_like(a), jnp.zeros_like(b)
    (f, g), _ = jax.lax.scan(sweep, (f, g), length=iters)
    return jnp.where(real, jnp.exp(jnp.where(real, M + f[:, None] + g, 0)), 0)


def match_rewards(
    plan: Float[Array, "P Q"],
    score: Float[Array, "P Q"],
    *,
    penalty: float | Float[Array, ""] = 0.0,
    rows: Bool[Array, "P"] | None = None,
) -> Float[Array, "P"]:
    """Reward of each prediction from the entries that a plan matches to it.

        r_i = sum_j T_ij S_ij,   or `penalty` if nothing is matched to i

    Args:
        plan: [P, Q] plan T.
        score: [P, Q] scores S.
        penalty: reward of an unmatched prediction.
        rows: [P] predictions that exist; the others get 0. None: all.

    Returns:
        [P] rewards.

    >>> score = jnp.array([[0.5, 0.0], [0.0, 0.0]])
    >>> match_rewards(greedy_assignment(score), score, penalty=-1.0).tolist()
    [0.5, -1.0]
    """
    earned = jnp.where(plan > 0, plan * score, 0).sum(-1)
    earned = jnp.where((plan > 0).any(-1), earned, penalty)
    return earned if rows is None else jnp.where(rows, earned, 0)


def _real(score, rows, cols):
    score = score if rows is None else jnp.where(rows[:, None], score, 0)
    return score if cols is None else jnp.where(cols, score, 0)


def _log_uniform(real, n, dtype):
    real = jnp.ones(n, bool) if real is None else real
    return jnp.where(real, -jnp.log(jnp.maximum(real.sum(), 1).astype(dtype)), -jnp.inf)


def _lse(x, axis):
    return jax.nn.logsumexp(jnp.where(jnp.isfinite(x), x, -1e30), axis=axis)


def _finite(x):
    """Potentials with 0 for rows and columns that do not exist or have no partner."""
    return jnp.where(jnp.isfinite(x) & (jnp.abs(x) < 1e29), x, 0)
