"""What learned signals are fitted to: losses and targets of value heads, reward models and return decompositions, as pure functions.

Each loss answers with a numerator and a denominator that add up over prompts, like the aggregates of `jaxcredit.losses`.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from jaxcredit.kernels.resolution import per_segment


def progress_loss(parts: Float[Array, "G K"], R: Float[Array, "G"], where: Bool[Array, "G K"]) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """(sum_k c_ik - R_i)^2, averaged over trajectories: a return is taken apart into what its steps gave (SPA, arXiv 2505.20732)."""
    there = where.any(-1)
    gap = jnp.where(there, jnp.where(where, parts, 0).sum(-1) - R, 0)
    return (gap * gap).sum(), there.sum().astype(gap.dtype)


def implicit_rewards(prm_logp: Float[Array, "R T"], ref_logp: Float[Array, "R T"], group, *, beta: float = 0.05) -> Float[Array, "G K"]:
    """beta sum_{t in step} (log p_prm - log p_ref): the step rewards that a preference-trained model implies (arXiv 2509.19199)."""
    gap = jnp.where(group.mask, prm_logp, 0) - jnp.where(group.mask, ref_logp, 0)
    return jnp.where(group.real, beta * per_segment(gap, group), 0)


def trajectory_preference_loss(
    Q: Float[Array, "G"], R: Float[Array, "G"], where: Bool[Array, "G"]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """-log sigmoid(Q_w - Q_l) over all pairs of the group with R_w > R_l, and how many they are: DPO between whole trajectories.

    OPRL, arXiv 2509.19199. Q is a trajectory's implied reward: the sum of its steps' in the paper, their mean in the released code.
    """
    pair = (R[:, None] > R) & where[:, None] & where
    loss = jnp.where(pair, jax.nn.softplus(jnp.where(pair, Q - Q[:, None], 0)), 0)
    return loss.sum(), pair.sum().astype(Q.dtype)


def td_target(reward: Float[Array, "*s"], after: Float[Array, "*s"], done: Bool[Array, "*s"], *, gamma: float = 0.95) -> Float[Array, "*s"]:
    """r + gamma V(s'), and r alone where the episode is over (ArCHer, arXiv 2402.19446). A loss holds it fixed."""
    return reward + gamma * jnp.where(done, 0, after)


def expectile(u: Float[Array, "*s"], tau: float = 0.9) -> Float[Array, "*s"]:
    """|tau - 1[u < 0]| u^2: half the squared error at tau = 1/2, an optimistic mean above it (IQL, arXiv 2110.06169)."""
    return jnp.where(u < 0, 1 - tau, tau) * u * u


def polyak(target: PyTree, new: PyTree, *, tau: float = 0.1) -> PyTree:
    """(1 - tau) target + tau new, leaf by leaf: 1 copies, 0 freezes."""
    return jax.tree.map(lambda a, b: ((1 - tau) * a + tau * b).astype(a.dtype), target, new)
