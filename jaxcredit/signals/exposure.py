"""How much of a reference answer a teacher is shown: a small controller that is itself trained, by what the student then gains.

Our design. ATESD, arXiv 2605.11458, is known to us by its structure: a Beta policy over the revealed share, held for some updates and
reinforced by the student's later progress. Every formula here is ours.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jaxcredit.kernels import returns_to_go

Weights = dict[str, Array]


def init(stats: int, width: int = 16, *, key: Key[Array, ""]) -> Weights:
    """A layer of `width`, and an output that begins at 0: the first shares are drawn from one hump around a half, whatever the state."""
    return {
        "w1": jax.random.normal(key, (stats, width)) / stats**0.5,
        "b1": jnp.zeros(width),
        "w2": jnp.zeros((width, 2)),
        "b2": jnp.zeros(2),
    }


def shape(
    weights: Weights, stats: Float[Array, "*H D"]
) -> tuple[Float[Array, "*H"], Float[Array, "*H"]]:
    """(a, b) = 1 + softplus(MLP(stats)): both above 1, so that the density has one hump and is 0 at both ends."""
    hidden = jnp.tanh(stats @ weights["w1"] + weights["b1"])
    ab = 1 + jax.nn.softplus(hidden @ weights["w2"] + weights["b2"])
    return ab[..., 0], ab[..., 1]


def sample(
    weights: Weights, stats: Float[Array, "*H D"], *, key: Key[Array, ""]
) -> Float[Array, "*H"]:
    """A share e ~ Beta(a, b), inside (0, 1): the teacher sees the first e of the reference."""
    return jnp.clip(jax.random.beta(key, *shape(weights, stats)), 1e-4, 1 - 1e-4)


def log_prob(
    weights: Weights, stats: Float[Array, "*H D"], share: Float[Array, "*H"]
) -> Float[Array, "*H"]:
    """log Beta(share; a, b)"""
    return jax.scipy.stats.beta.logpdf(share, *shape(weights, stats))


def progress(
    metric: Float[Array, "H+1"], *, gamma: float | Float[Array, ""] = 0.9
) -> Float[Array, "H"]:
    """r_k = sum_j gamma^j (L_k+j - L_k+j+1): by how much a loss of the student falls after decision k."""
    return returns_to_go(metric[:-1] - metric[1:], gamma)


def controller_loss(
    weights: Weights,
    stats: Float[Array, "H D"],
    share: Float[Array, "H"],
    reward: Float[Array, "H"],
    baseline: float | Float[Array, ""] = 0.0,
    *,
    bonus: float = 0.01,
) -> Float[Array, ""]:
    """-mean((r - bonus log Beta(e) - baseline) log Beta(e)): REINFORCE on the decisions of a window, which also earn their surprise.

    That makes `bonus` the price of the policy's entropy.
    """
    log = log_prob(weights, stats, share)
    return -(jax.lax.stop_gradient(reward - bonus * log - baseline) * log).mean()


def moved(
    baseline: Float[Array, ""], reward: Float[Array, "H"], *, decay: float = 0.9
) -> Float[Array, ""]:
    """The baseline after a window: a running mean of rewards."""
    return decay * baseline + (1 - decay) * reward.mean()
