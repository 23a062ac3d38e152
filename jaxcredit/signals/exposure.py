"""Controller of the share of a reference answer that a teacher sees, trained by REINFORCE.

ATESD, arXiv 2605.11458, is known to us by its structure: a Beta policy over the revealed share,
which is held for some updates and reinforced by the student's later progress. Every formula here is
our design.

Shapes: H decisions in a window, D statistics of the training state for each of them.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

from jaxcredit.kernels import returns_to_go

Weights = dict[str, Array]


def init(stats: int, width: int = 16, *, key: Key[Array, ""]) -> Weights:
    """Initial weights of the controller, an MLP with one hidden layer.

    The output layer is 0, so the first shares have one Beta distribution with mean 1/2 in every
    state.

    Args:
        stats: int >= 1, number D of statistics.
        width: int >= 1, width of the hidden layer.
        key: random key.

    Returns:
        Dict of arrays.
    """
    return {
        "w1": jax.random.normal(key, (stats, width)) / stats**0.5,
        "b1": jnp.zeros(width),
        "w2": jnp.zeros((width, 2)),
        "b2": jnp.zeros(2),
    }


def beta_parameters(
    weights: Weights, stats: Float[Array, "*H D"]
) -> tuple[Float[Array, "*H"], Float[Array, "*H"]]:
    """Parameters of the Beta policy: (a, b) = 1 + softplus(MLP(stats)).

    Args:
        weights: of `init`.
        stats: [..., D] statistics of the training state.

    Returns:
        a [...] and b [...], both above 1, so that the density has one mode and is 0 at 0 and 1.
    """
    hidden = jnp.tanh(stats @ weights["w1"] + weights["b1"])
    ab = 1 + jax.nn.softplus(hidden @ weights["w2"] + weights["b2"])
    return ab[..., 0], ab[..., 1]


def sample(
    weights: Weights, stats: Float[Array, "*H D"], *, key: Key[Array, ""]
) -> Float[Array, "*H"]:
    """Random share of the reference answer that the teacher sees, from its beginning.

    Args:
        weights: of `init`.
        stats: [..., D] statistics of the training state.
        key: random key.

    Returns:
        [...] shares inside (0, 1), drawn from Beta(a, b).
    """
    return jnp.clip(jax.random.beta(key, *beta_parameters(weights, stats)), 1e-4, 1 - 1e-4)


def log_prob(
    weights: Weights, stats: Float[Array, "*H D"], share: Float[Array, "*H"]
) -> Float[Array, "*H"]:
    """Log-density of shares under the Beta policy.

    Args:
        weights: of `init`.
        stats: [..., D] statistics of the training state.
        share: [...] shares inside (0, 1).

    Returns:
        [...] log Beta(share; a, b).
    """
    return jax.scipy.stats.beta.logpdf(share, *beta_parameters(weights, stats))


def progress(
    metric: Float[Array, "H+1"], *, gamma: float | Float[Array, ""] = 0.9
) -> Float[Array, "H"]:
    """Reward of each decision: discounted decrease of a loss of the student after it.

        r_k = sum_j gamma^j (L_{k+j} - L_{k+j+1})

    Args:
        metric: [H+1] loss L before each decision and after the last.
        gamma: float in [0, 1], discount per decision.

    Returns:
        [H] rewards.
    """
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
    """REINFORCE loss of the controller over a window, with an entropy bonus.

        -mean((r - bonus log Beta(e) - baseline) log Beta(e)),   the first factor without gradient

    Args:
        weights: of `init`.
        stats: [H, D] statistics at each decision.
        share: [H] shares e that were drawn.
        reward: [H] rewards of `progress`.
        baseline: scalar, see `update_baseline`.
        bonus: float >= 0, weight of the policy's entropy.

    Returns:
        The loss, a scalar.
    """
    log_density = log_prob(weights, stats, share)
    advantage = jax.lax.stop_gradient(reward - bonus * log_density - baseline)
    return -(advantage * log_density).mean()


def update_baseline(
    baseline: Float[Array, ""], reward: Float[Array, "H"], *, decay: float = 0.9
) -> Float[Array, ""]:
    """Baseline after a window: exponential moving average of the mean reward.

    Args:
        baseline: scalar, before the window.
        reward: [H] rewards of the window.
        decay: float in [0, 1], weight of the old baseline.

    Returns:
        The new baseline, a scalar.
    """
    return decay * baseline + (1 - decay) * reward.mean()
