"""Losses and targets of value heads, reward models and preference models.

Losses of a group return a numerator and a denominator, which add up over prompts as the aggregates
of `jaxcredit.losses` do.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, PyTree

from jaxcredit.kernels.segments import Group, segment_sum


def progress_loss(
    parts: Float[Array, "G K"], R: Float[Array, "G"], where: Bool[Array, "G K"]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """Squared error between the sum of a trajectory's step contributions and its return.

        (sum_k c_ik - R_i)^2,   averaged over trajectories

    Source: SPA, arXiv 2505.20732.

    Args:
        parts: [G, K] predicted contribution c of each step.
        R: [G] return of each trajectory.
        where: [G, K] steps that took place.

    Returns:
        Sum of the squares, number of trajectories.
    """
    took_place = where.any(-1)
    gap = jnp.where(took_place, jnp.where(where, parts, 0).sum(-1) - R, 0)
    return (gap * gap).sum(), took_place.sum().astype(gap.dtype)


def implicit_step_rewards(
    prm_logp: Float[Array, "R T"],
    ref_logp: Float[Array, "R T"],
    group: Group,
    *,
    beta: float = 0.05,
) -> Float[Array, "G K"]:
    """Step rewards implied by a model trained on preferences.

        beta sum_{t in step} (log p_prm - log p_ref)

    Source: OPRL, arXiv 2509.19199.

    Args:
        prm_logp: [R, T] log-probability under the trained model.
        ref_logp: [R, T] log-probability under its reference model.
        group: rollout of one prompt.
        beta: scale of the rewards, > 0.

    Returns:
        [G, K] rewards.
    """
    gap = jnp.where(group.action_mask, prm_logp, 0) - jnp.where(group.action_mask, ref_logp, 0)
    return jnp.where(group.segment_mask, beta * segment_sum(gap, group), 0)


def bradley_terry_loss(
    better: Float[Array, "*b"], worse: Float[Array, "*b"] | float
) -> Float[Array, "*b"]:
    """Negative log-likelihood of a preference under the Bradley-Terry model.

        -log sigmoid(better - worse)

    Args:
        better: [...] score of the preferred item.
        worse: [...] score of the other item.

    Returns:
        [...] loss, >= 0; log 2 for equal scores.

    >>> round(float(bradley_terry_loss(jnp.float32(1.0), jnp.float32(1.0))), 4)
    0.6931
    """
    return jax.nn.softplus(worse - better)


def trajectory_preference_loss(
    Q: Float[Array, "G"], R: Float[Array, "G"], where: Bool[Array, "G"]
) -> tuple[Float[Array, ""], Float[Array, ""]]:
    """DPO between whole trajectories: `bradley_terry_loss` over all pairs with R_w > R_l.

    Source: OPRL, arXiv 2509.19199. Q is the sum of the steps' implied rewards in the paper, their
    mean in the released code.

    Args:
        Q: [G] implied reward of each trajectory.
        R: [G] return of each trajectory.
        where: [G] trajectories that took place.

    Returns:
        Sum of the losses, number of pairs.
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
    """One-step TD target, the reward alone at the end of an episode.

        r + gamma V(s')

    Source: ArCHer, arXiv 2402.19446.

    Args:
        reward: [...] reward r.
        after: [...] value V(s') of the next state.
        done: [...] True where the episode is over.
        gamma: discount factor in [0, 1].

    Returns:
        [...] targets.

    >>> done = jnp.array([False, True])
    >>> td_target(jnp.array([1.0, 1.0]), jnp.array([2.0, 2.0]), done, gamma=0.5).tolist()
    [2.0, 1.0]
    """
    return reward + gamma * jnp.where(done, 0, after)


def expectile(u: Float[Array, "*s"], tau: float = 0.9) -> Float[Array, "*s"]:
    """Expectile loss of an error: asymmetric squares.

        |tau - 1[u < 0]| u^2

    tau = 1/2 gives half the squared error, larger tau an optimistic regression. Source: IQL, arXiv
    2110.06169.

    Args:
        u: [...] error, target minus prediction.
        tau: expectile in (0, 1).

    Returns:
        [...] losses.

    >>> expectile(jnp.array([2.0, -2.0]), tau=0.75).tolist()
    [3.0, 1.0]
    """
    return jnp.where(u < 0, 1 - tau, tau) * u * u


def polyak(target: PyTree, new: PyTree, *, tau: float = 0.1) -> PyTree:
    """Polyak averaging of parameters: (1 - tau) target + tau new, leaf by leaf.

    Args:
        target: parameters of the target network.
        new: parameters of the trained network.
        tau: step size in [0, 1]. 1 copies `new`, 0 keeps `target`.

    Returns:
        Parameters with the dtypes of `target`.
    """
    return jax.tree.map(lambda a, b: ((1 - tau) * a + tau * b).astype(a.dtype), target, new)


def distilled_advantage(
    advantage: Float[Array, "*b T"],
    logp: Float[Array, "*b T"],
    teacher_logp: Float[Array, "*b T"],
    where: Bool[Array, "*b T"],
    *,
    coef: float = 0.05,
) -> Float[Array, "*b T"]:
    """Advantage with an on-policy distillation term on the selected tokens.

        A_t - coef (log p_t - log p_teacher,t)

    Source: HyperEyes, arXiv 2605.07177, and its released code, where the tokens of wrong answers
    are selected.

    Args:
        advantage: [..., T] advantages A.
        logp: [..., T] log-probability under the student.
        teacher_logp: [..., T] log-probability under the teacher.
        where: [..., T] tokens with the term.
        coef: weight of the term, >= 0.

    Returns:
        [..., T] advantages.
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
    """Weights of a group's trajectories: right ones are imitated, a teacher corrects wrong ones.

        w ~ PPL^(1/temperature) over the right ones, PPL_teacher^(-1/temperature) over the wrong
        ones

    Each of the two sums to 1. Right answers that the student finds unlikely and wrong ones that the
    teacher finds likely have the largest weights. Source: SCOPE, arXiv 2604.10688. The released
    code sums each to its number of trajectories (`to_size`) and, as configured, inverts the
    student's weights (`inverted`), unlike the paper.

    Args:
        logp: [..., G] mean log-probability of the tokens under the student; PPL = exp(-logp).
        teacher_logp: [..., G] mean log-probability of the tokens under the teacher.
        correct: [..., G] trajectories that are right.
        where: [..., G] trajectories that took place; the others get 0. None: all.
        temperature: > 0; larger is more uniform.
        to_size: let the weights of each path sum to its number of trajectories.
        inverted: prefer right answers that the student finds likely.

    Returns:
        [..., G] weights.
    """
    where = jnp.ones(correct.shape, bool) if where is None else where
    right, wrong = correct & where, ~correct & where
    student = _softmax((logp if inverted else -logp) / temperature, right, to_size)
    return student + _softmax(teacher_logp / temperature, wrong, to_size)


def _softmax(x, where, to_size):
    largest = jnp.max(x, -1, keepdims=True, where=where, initial=-jnp.inf)
    exponential = jnp.where(where, jnp.exp(jnp.where(where, x - largest, 0)), 0)
    weight = exponential / jnp.maximum(exponential.sum(-1, keepdims=True), 1)
    return weight * where.sum(-1, keepdims=True) if to_size else weight
