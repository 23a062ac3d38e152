import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from jaxcredit.credit.critics.ppo import ppo
from jaxcredit.credit.lift import per_batch
from jaxcredit.kernels import center
from jaxcredit.rollout import FilledRollout, outcome, trajectory_mask


@per_batch(
    needs=("progress", "grounded", "token_value"),
    paper="2505.20732",
    fidelity="paper",
    granularity="step",
    family="critics",
    cost="a critic and a progress estimator",
    min_group_size=1,
    reduces_to="ppo where alpha progress + beta grounded is the reward",
)
def spa(
    batch: FilledRollout,
    *,
    alpha: float = 1.0,
    beta: float = 0.5,
    gamma: float = 1.0,
    lam: float = 0.95,
    whiten: bool = True,
    form: Literal["paper", "code"] = "paper",
    ddof: int = 0,
    eps: float = 1e-6,
):
    """PPO on stepwise progress: a learned part of the outcome for each step.

        r_k = alpha c_k + beta g_k,   where c is trained so that sum_k c_k = R

    form="code" is the released WebShop path, which the paper does not describe:

        r_k = (R_i - mean_(j != i) R_j + beta g_k) (K_i - k - 1)

    GAE follows, with r_k at the last policy token of step k. With form="code" the
    last step always earns 0. The outcome itself is not added to the reward.

    Signals: progress [N, G, K] (c), grounded [N, G, K] (g, 0 or 1: was the action
    executable), token_value [N, R, T]. `kernels.progress_loss` trains c.

    Args:
        alpha: float >= 0, weight of the progress; 1 is our reading of the paper.
        beta: float >= 0, weight of grounding; 0.5 in the released code.
        gamma: float in [0, 1], discount for each policy token.
        lam: float in [0, 1], GAE's lambda.
        whiten: bool. True: the advantage is normalized over the batch's policy tokens.
        form: "paper" or "code", the rewards above.
        ddof: int, 0 or 1. The variance divides by n - ddof.
        eps: float >= 0, added to the standard deviation.

    Returns:
        A dict of "advantage" and "target" = unwhitened advantage + value, both
        [N, R, T], one number a token.

    Raises:
        ValueError: `form` is not one of its values.

    Source: SPA-RL, arXiv 2505.20732.
    """
    grounded = beta * batch["grounded"]
    steps_left = jnp.cumsum(batch.segment_mask[..., ::-1], -1)[..., ::-1] - 1
    if form == "code":
        fused = (jax.vmap(_leave_one_out)(batch)[..., None] + grounded) * steps_left
    else:
        fused = alpha * batch["progress"] + grounded
    batch = dataclasses.replace(batch, reward=jnp.where(batch.segment_mask, fused, 0))
    return ppo.unlifted(batch, gamma=gamma, lam=lam, whiten=whiten, ddof=ddof, eps=eps)


def _leave_one_out(group):
    return center(outcome(group), where=trajectory_mask(group), leave_one_out=True)
