"""Your own estimator, in one file: GRPO with more credit for surprising tokens.

jaxcredit check configs/my_estimator.py
jaxcredit train configs/my_estimator.py"""

import dataclasses
from functools import partial

import own_data  # the config in the same folder

from jaxcredit.credit import per_group
from jaxcredit.kernels import masked_mean, standardize, to_tokens
from jaxcredit.rollout import outcome, trajectory_mask


@per_group(granularity="token")
def surprise(group, *, power: float = 1.0):
    """A_it = s_it^power / mean_t s_it^power (R_i - mean R) / std R,   s_it = -log pi(y_it)"""
    s = abs(group.logp) ** power
    weight = s / (masked_mean(s, group.action_mask, -1, keepdims=True) + 1e-6)
    return weight * to_tokens(standardize(outcome(group), where=trajectory_mask(group)), group)


def experiment(power: float = 1.0, steps: int = 60, seed: int = 0):
    """:param power: exponent of the surprise; larger: more credit for rare tokens; 0 is GRPO
    :param steps: optimizer steps after the warm-up
    :param seed: seed of the initial weights and of the sampling"""
    base = own_data.experiment(steps=steps, seed=seed)
    return dataclasses.replace(base, name="my_estimator", credit=partial(surprise, power=power))
