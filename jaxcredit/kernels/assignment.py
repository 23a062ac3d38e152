"""Who matches whom: plans T [P, Q] between P predictions and Q gold entries, from scores S >= 0. `rows` and `cols` mark the real ones.

Shapes are padded and static, so a batch of problems of any sizes is one `vmap`. A one-to-one plan holds zeros and ones and never
matches a pair of score 0; a transport plan is spread over all pairs.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float


def greedy_assignment(
    score: Float[Array, "P Q"],
    rows: Bool[Array, "P"] | None = None,
    cols: Bool[Array, "Q"] | None = None,
) -> Float[Array, "P Q"]:
    """The best pair, then the best of what is left, and so on; of equal scores the first in reading order. At least half of the optimum."""
    P, Q = score.shape

    def take(_, state):
        left, plan = state
        place = jnp.argmax(left)
        i, j = place // Q, place % Q
        plan = plan.at[i, j].add(jnp.where(left[i, j] > 0, 1.0, 0.0).astype(score.dtype))
        return left.at[i, :].set(0).at[:, j].set(0), plan

    start = _real(score, rows, cols), jnp.zeros_like(score)
    return jax.lax.fori_loop(0, min(P, Q), take, start)[1] if P and Q else start[1]


def optimal_assignment(
    score: Float[Array, "P Q"],
    rows: Bool[Array, "P"] | None = None,
    cols: Bool[Array, "Q"] | None = None,
) -> Float[Array, "P Q"]:
    """The one-to-one plan of the largest sum_ij T_ij S_ij, by the Hungarian algorithm (optax.assignment)."""
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
    """Entropic optimal transport between uniform marginals, by Sinkhorn's iterations on logarithms.

        max_T <T, S> + reg H(T)   with   sum_j T_ij = 1 / P,   sum_i T_ij = 1 / Q   over the real rows and columns

    Row sums are exact; how close the column sums are tells how far it has converged.
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
    """What each prediction earns: r_i = sum_j T_ij S_ij, or `penalty` where nothing was matched to it; 0 off `rows`."""
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
    """A potential of a row or column that is not real, or has no partner at all, moves nothing."""
    return jnp.where(jnp.isfinite(x) & (jnp.abs(x) < 1e29), x, 0)
