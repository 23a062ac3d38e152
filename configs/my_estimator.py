"""An estimator of your own is one file. This one: an answer's advantage over its group, fading with the distance to the answer's end.

jaxcredit check configs/my_estimator.py; jaxcredit train configs/my_estimator.py"""

import dataclasses
import functools

import jax.numpy as jnp
import own_data  # the config beside this file

from jaxcredit.credit import per_group
from jaxcredit.kernels import centre, spread, to_go
from jaxcredit.rollout import alive, outcome


@per_group(granularity="token")
def fading(group, *, gamma: float = 0.95):
    """A_it = gamma^(tokens still to come) (R_i - mean R)"""
    above = centre(outcome(group), where=alive(group))  # [G]: of each trajectory
    left = to_go(group.mask.astype(jnp.float32)) - 1  # [R, T]: policy tokens after this one
    return gamma**left * spread(above, group)


def experiment(gamma: float = 0.95, steps: int = 60, seed: int = 0):
    """:param gamma: how fast credit fades with the distance to the end of an answer; 1 is no fading
    :param steps: optimizer steps after the warm-up
    :param seed: seed of the first weights and of the sampling"""
    own = own_data.experiment(steps=steps, seed=seed)
    return dataclasses.replace(own, name="my_estimator", credit=functools.partial(fading, gamma=gamma))
