import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

from jaxcredit.credit.critics.ppo import ppo
from jaxcredit.credit.lift import per_batch
from jaxcredit.kernels import center
from jaxcredit.rollout import Rollout, outcome, trajectory_mask


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
    batch: Rollout,
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
    """PPO on stepwise progress: each step earns its part of the outcome, and something for being executable.

        r_k = alpha c_k + beta g_k,   sum_k c_k ~ R, which the estimator of c is trained for

    SPA-RL, arXiv 2505.20732. Signals: progress (c), grounded (g, 0 or 1), token_value. The outcome itself is not added. alpha=1 is our
    reading. `kernels.progress_loss` trains c. `form="code"` is the released WebShop path, which is not in the paper:
    r_k = (R_i - mean_{j != i} R_j + beta g_k) (K_i - k - 1), which leaves the last step with nothing.
    """
    grounded = beta * batch["grounded"]
    left = jnp.cumsum(batch.segment_mask[..., ::-1], -1)[..., ::-1] - 1  # real steps after this one
    if form == "code":
        fused = (jax.vmap(_others)(batch)[..., None] + grounded) * left
    else:
        fused = alpha * batch["progress"] + grounded
    batch = dataclasses.replace(batch, reward=jnp.where(batch.segment_mask, fused, 0))
    return ppo.unlifted(batch, gamma=gamma, lam=lam, whiten=whiten, ddof=ddof, eps=eps)


def _others(group):
    return center(outcome(group), where=trajectory_mask(group), leave_one_out=True)
