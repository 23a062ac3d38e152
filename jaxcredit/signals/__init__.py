"""Annotators: functions that measure or learn signals of a rollout, such as a critic's values.

A config lists them by name: `signals={"critic": signals.critic()}`. Each entry is a function
`make(cfg, logprob) -> Learned`. Its attribute `provides` names the signals that it adds.

- cfg: the policy's configuration (`jaxcredit.policy.Config`).
- logprob: `logprob(params, rollout) -> {"logp": [N, R, S], "entropy": [N, R, S]}`, a forward
  pass of the policy over the S response columns; `rollout` must be filled (`Rollout.filled`).

`Learned` documents the three functions that the trainer calls. The entry's state is stored as
`TrainState.aux[name]` and saved with every checkpoint.

Other modules hold plain functions: `macro` (boundaries of macro actions), `tree_labels` (labels
from trees of answers), `schedules` (numbers that depend on the step), `budgets` (answers per
prompt) and `exposure` (share of a reference answer that a teacher sees).
"""

from jaxcredit.signals.base import Learned
from jaxcredit.signals.decision_points import decision
from jaxcredit.signals.greedy_baseline import greedy
from jaxcredit.signals.reference_policy import entropy, reference
from jaxcredit.signals.stratification import by_signal, segment_counts, sequence_classes, strata
from jaxcredit.signals.tree_labels import (
    grounded_prm,
    grounded_prm_values,
    judge_total,
    malt_labels,
    ovm,
    sibling_pairs,
    tvm,
)
from jaxcredit.signals.value_model import critic

__all__ = [
    "Learned",
    "by_signal",
    "critic",
    "decision",
    "entropy",
    "greedy",
    "grounded_prm",
    "grounded_prm_values",
    "judge_total",
    "malt_labels",
    "ovm",
    "reference",
    "segment_counts",
    "sequence_classes",
    "sibling_pairs",
    "strata",
    "tvm",
]
