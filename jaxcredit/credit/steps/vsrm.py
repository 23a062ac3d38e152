import dataclasses

import jax.numpy as jnp

from jaxcredit.credit.baselines.reinforce_pp import reinforce_pp
from jaxcredit.credit.lift import per_batch
from jaxcredit.kernels import next_value, shaping
from jaxcredit.rollout import Rollout


@per_batch(
    needs=("info",),
    paper="2508.10293",
    fidelity="paper",
    granularity="step",
    family="steps",
    cost="n short answers forced before each step and at the end",
    min_group_size=1,
    reduces_to="reinforce_pp where no step changes the accuracy",
)
def vsrm(
    batch: Rollout,
    *,
    gamma: float = 0.7,
    Q: int = 3,
    threshold: float = 0.05,
    ddof: int = 0,
    eps: float = 1e-6,
):
    """A step earns what it changes of the accuracy; one that changes nothing, a share of the next change that matters.

        d_k = a_{k+1} - a_k;   r_k = d_k if |d_k| >= threshold, else gamma^q d_{k+q} for the first q <= Q whose |d_{k+q}| is, else 0

    VSRM, arXiv 2508.10293. Signal: info, the accuracy a of answers forced before each step and after the last. The step reward joins
    the reward at the step's end; then REINFORCE++ (the paper's other choice is PPO). The paper's gamma, Q and threshold are not known
    to us.
    """
    real = batch.segment_mask
    d = shaping(batch["info"], real)
    large = real & (jnp.abs(d) >= threshold)
    step = jnp.cumsum(real, -1).astype(d.dtype)
    q = next_value(step, large) - step  # negative where nothing large follows
    later = jnp.where((q > 0) & (q <= Q), next_value(d, large) * gamma ** jnp.clip(q, 1, Q), 0)
    earned = jnp.where(real, jnp.where(large, d, later), 0)
    return reinforce_pp.unlifted(
        dataclasses.replace(batch, reward=batch.reward + earned), ddof=ddof, eps=eps
    )
