"""Losses: aggregate(objective(logp, batch) + beta * kl(logp, batch), batch).

Objectives and KL estimators return one number per token. Aggregates return a numerator and a
denominator, which both add up over micro-batches, data shards and hosts. One division at the end
gives the same loss however the batch was split. Preference losses work on whole answers.
"""

from jaxcredit.losses.aggregates import constant, sequence_mean, sequence_sum, token_mean
from jaxcredit.losses.base import Aggregate, Batch, Objective, divide
from jaxcredit.losses.kl import k1, k2, k3, straight_through
from jaxcredit.losses.objectives import (
    cispo,
    distill,
    gmpo,
    gspo,
    nll,
    ppo_clip,
    reinforce,
    sapo,
    scope,
    truncated_importance,
    turn_clip,
)
from jaxcredit.losses.preferences import bradley_terry_loss, dpo, implicit_reward, mode_loss

__all__ = [
    "Aggregate",
    "Batch",
    "Objective",
    "cispo",
    "constant",
    "distill",
    "divide",
    "dpo",
    "gmpo",
    "gspo",
    "implicit_reward",
    "k1",
    "k2",
    "k3",
    "mode_loss",
    "nll",
    "ppo_clip",
    "bradley_terry_loss",
    "reinforce",
    "sapo",
    "scope",
    "sequence_mean",
    "sequence_sum",
    "straight_through",
    "token_mean",
    "truncated_importance",
    "turn_clip",
]
