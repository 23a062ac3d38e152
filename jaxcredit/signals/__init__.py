"""Annotators: what is learned or measured beside the policy, and handed to credit as a named signal of the rollout.

A config says `signals={"critic": signals.critic()}`. Such an entry is a function `make(cfg, logprob) -> Learned` with the attribute
`provides`, the names of the signals it adds; `cfg` is the policy's and `logprob(params, rollout)` gives {"logp", "entropy"} of the
response columns. Its state lies in `TrainState.aux` under the entry's name and is saved with it.

Beside them lie modules of functions: `macro` (where macro actions begin) and `tree_labels`; and, of the step and the prompt, `schedules`,
`retention` (the share of tokens that learn), `budgets` (answers a prompt) and `exposure` (what a teacher sees).
"""

from jaxcredit.signals.base import Learned
from jaxcredit.signals.decision_points import decision
from jaxcredit.signals.greedy_baseline import greedy
from jaxcredit.signals.reference_policy import entropy, reference
from jaxcredit.signals.stratification import alike, by_signal, calls, strata
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
    "alike",
    "by_signal",
    "calls",
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
    "sibling_pairs",
    "strata",
    "tvm",
]
