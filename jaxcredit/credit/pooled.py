from jaxcredit.credit._base import advantage_of
from jaxcredit.credit._lift import Credit, per_group
from jaxcredit.credit.sploo import sploo
from jaxcredit.rollout import Rollout


@per_group(
    needs=("decision_weight",),
    fidelity="ours",
    granularity="token",
    family="information",
    reduces="its base (sploo, that is p0) with equal weights",
)
def pooled(group: Rollout, *, base: Credit = sploo):
    """Credit times how much was decided at such tokens in earlier steps: what one group cannot tell, many groups can.

        A'_it = w(place of s_it) A_it

    Signal: decision_weight (signals.decision). Made of earlier steps alone, and of what is known before the token is chosen, it is a
    constant of the state to this batch: with an unbiased base, E g = sum_s d_s w_s D_s, each state keeps its exact direction and only
    states are weighed against each other. No paper.
    """
    return advantage_of(base, group) * group["decision_weight"]
