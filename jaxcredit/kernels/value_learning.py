"""What learned signals are fitted to: losses and targets of value heads, reward models and return decompositions, as pure functions.

Each loss answers with a numerator and a denominator that add up over prompts, like the aggregates of `jaxcredit.losses`.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from jaxcredit.kernels.segments import segment_sum


def progress_loss(
    parts: Float[Array, "G K"], R: Float[Array, "G"], where: Bool[Array, "G K"]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """(sum_k c_ik - R_i)^2, averaged over trajectories: a return is taken apart into what its steps gave (SPA, arXiv 2505.20732)."""
    there = where.any(-1)
    gap = jnp.where(there, jnp.where(where, parts, 0).sum(-1) - R, 0)
    return (gap * gap).sum(), there.sum().astype(gap.dtype)


def implicit_step_rewards(
    prm_logp: Float[Array, "R T"], ref_logp: Float[Array, "R T"], group, *, beta: float = 0.05
) -> Float[Array, "G K"]:
    """beta sum_{t in step} (log p_prm - log p_ref): the step rewards that a preference-trained model implies (arXiv 2509.19199)."""
    gap = jnp.where(group.action_mask, prm_logp, 0) - jnp.where(group.action_mask, ref_logp, 0)
    return jnp.where(group.segment_mask, beta * segment_sum(gap, group), 0)


def bradley_terry_loss(
    better: Float[Array, "*b"], worse: Float[Array, "*b"] | float
) -> Float[Array, "*b"]:
    """Negative log-likelihood of a preference under the Bradley-Terry model: -log sigmoid(better - worse).

    Args:
        better: [...] score of the preferred item.
        worse: [...] score of the other item.

    Returns:
        [...] loss, >= 0; log 2 for equal scores.

    >>> float(bradley_terry_loss(jnp.float32(1.0), jnp.float32(1.0))).__round__(4)
    0.6931
    """
    return jax.nn.softplus(worse - better)


def trajectory_preference_loss(
    Q: Float[Array, "G"], R: Float[Array, "G"], where: Bool[Array, "G"]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """-log sigmoid(Q_w - Q_l) over all pairs of the group with R_w > R_l, and how many they are: DPO between whole trajectories.

    OPRL, arXiv 2509.19199. Q is a trajectory's implied reward: the sum of its steps' in the paper, their mean in the released code.
    """
    pair = (R[:, None] > R) & where[:, None] & where
    loss = jnp.where(pair, bradley_terry_loss(jnp.where(pair, Q[:, None] - Q, 0), 0.0), 0)
    return loss.sum(), pair.sum().astype(Q.dtype)


def td_target(
    reward: Float[Array, "*s"],
    after: Float[Array, "*s"],
    done: Bool[Array, "*s"],
    *,
    gamma: float = 0.95,
) -> Float[Array, "*s"]:
    """r + gamma V(s'), and r alone where the episode is over (ArCHer, arXiv 2402.19446). A loss holds it fixed."""
    return reward + gamma * jnp.where(done, 0, after)


def expectile(u: Float[Array, "*s"], tau: float = 0.9) -> Float[Array, "*s"]:
    """|tau - 1[u < 0]| u^2: half the squared error at tau = 1/2, an optimistic mean above it (IQL, arXiv 2110.06169)."""
    return jnp.where(u < 0, 1 - tau, tau) * u * u


def polyak(target: PyTree, new: PyTree, *, tau: float = 0.1) -> PyTree:
    """(1 - tau) target + tau new, leaf by leaf: 1 copies, 0 freezes."""
    return jax.tree.map(lambda a, b: ((1 - tau) * a + tau * b).astype(a.dtype), target, new)


def distilled_advantage(
    advantage: Float[Array, "*b T"],
    logp: Float[Array, "*b T"],
    teacher_logp: Float[Array, "*b T"],
    where: Bool[Array, "*b T"],
    *,
    coef: float = 0.05,
) -> Float[Array, "*b T"]:
    """A_t - coef (log p_t - log p_teacher,t) where `where` holds, A_t elsewhere.

    On-policy distillation of failures (HyperEyes, arXiv 2605.07177, and its released code): `where` marks the tokens of wrong answers.
    """
    gap = jnp.where(where, logp, 0) - jnp.where(where, teacher_logp, 0)
    return advantage - coef * gap


def two_path_weights(
    logp: Float[Array, "*b G"],
    teacher_logp: Float[Array, "*b G"],
    correct: Bool[Array, "*b G"],
    where: Bool[Array, "*b G"] | None = None,
    *,
    temperature: float = 1.0,
    to_size: bool = False,
    inverted: bool = False,
) -> Float[Array, "*b G"]:
    """How much each trajectory of a group counts on its path: right ones are imitated, wrong ones corrected by the teacher.

        w ~ PPL^(1/temperature) over the right ones,   w ~ PPL_teacher^(-1/temperature) over the wrong ones;   each path sums to 1

    SCOPE, arXiv 2604.10688; logp are mean log-probabilities of the tokens, so PPL = exp(-logp). Right answers the student finds unlikely
    and wrong ones the teacher understands count most. Released code sums each path to its size (`to_size`), and as configured turns the
    student's weights round, against its comment and the paper (`inverted`). 0 off `where`.
    """
    where = jnp.ones(correct.shape, bool) if where is None else where
    right, wrong = correct & where, ~correct & where
    student = _softmax((logp if inverted else -logp) / temperature, right, to_size)
    return student + _softmax(teacher_logp / temperature, wrong, to_size)


def _softmax(x, where, to_size):
    top = jnp.max(x, -1, keepdims=True, where=where, initial=-jnp.inf)
    e = jnp.where(where, jnp.exp(jnp.where(where, x - top, 0)), 0)
    w = e / jnp.maximum(e.sum(-1, keepdims=True), 1)
    return w * where.sum(-1, keepdims=True) if to_size else w
