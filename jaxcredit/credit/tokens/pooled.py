import functools

from jaxcredit.credit.compose import advantage_of
from jaxcredit.credit.lift import Credit, per_group
from jaxcredit.credit.trees.sploo import l1
from jaxcredit.rollout import Rollout

BASE = functools.partial(l1, normalize=True)


@per_group(
    needs=("decision_weight",),
    fidelity="ours",
    granularity="token",
    family="tokens",
    reduces_to="its base (sploo's l1, divided by the deviation) with equal weights",
)
def pooled(group: Rollout, *, base: Credit = BASE):
    """A base credit times a weight of each token, estimated from the groups of earlier steps (our design).

        A'_it = w(place of s_it) A_it

    Signal: decision_weight (signals.decision). Made of earlier steps alone, and of what is known before the token is chosen, it is a
    constant of the state to this batch: each state keeps the direction that the base gives it, and only states are weighed against each
    other. With base=sploo (p0) that direction is exact: E g = sum_s d_s w_s D_s. The default base begins where TEMPO is, before there
    is any evidence, and is in the same deviations. No paper.
    """
    return advantage_of(base, group) * group["decision_weight"]
