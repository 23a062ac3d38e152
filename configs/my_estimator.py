"""Your own estimator, in one file: GRPO with more credit for surprising tokens.

jaxcredit check configs/my_estimator.py
jaxcredit train configs/my_estimator.py"""

import dataclasses
from functools import partial

import jax.numpy as jnp
import own_data  # the config in the same folder

from jaxcredit.credit import per_group
from jaxcredit.kernels import masked_mean, standardize, to_tokens
from jaxcredit.rollout import outcome, trajectory_mask


@per_group(granularity="token")
def surprise(group, *, power: float = 1.0):
    """A_it = s_it^power / mean_t s_it^power (R_i - mean R) / std R,   s_it = -log pi(y_it)"""
    # Advantage of each answer [G], as in GRPO.
    advantage = standardize(outcome(group), where=trajectory_mask(group))
    # Surprise of each token [R, T]: 0 for a token that the policy was certain of.
    s = jnp.where(group.action_mask, jnp.abs(group.logp) ** power, 0)
    mean = masked_mean(s, group.action_mask, -1, keepdims=True)
    return s / (mean + 1e-6) * to_tokens(advantage, group)


def experiment(power: float = 1.0, steps: int = 60, seed: int = 0):
    """Config of this estimator.

    :param power: exponent of the surprise; larger: more credit for rare tokens; 0 is GRPO
    :param steps: optimizer steps after the warm-up
    :param seed: seed of the initial weights and of the sampling"""
    return dataclasses.replace(
        own_data.experiment(steps=steps, seed=seed),
        name="my_estimator",
        credit=partial(surprise, power=power),
    )
