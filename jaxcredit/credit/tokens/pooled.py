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
    """Base credit times a token weight from earlier steps' groups (our design).

        A'_it = w_it A_it

    Signals: decision_weight [N, R, T], the weight w (`signals.decision`). It does
    not depend on this batch's rewards nor on the token itself. So it scales each
    state's gradient and keeps the direction that the base gives it. With `base=credit.sploo`
    (preset p0) that direction is exact: E g = sum_s d_s w_s D_s, where d_s is the
    probability of visiting s and D_s its exact gradient.

    Args:
        base: the credit A, an estimator of one prompt. The default, sploo's l1 divided
            by the group's deviation, weights prefixes as TEMPO does while there is no
            evidence.

    Returns:
        Advantage [N, R, T], one number a token.

    Raises:
        ValueError: `base` takes statistics over the batch.

    Source: no paper.
    """
    return advantage_of(base, group) * group["decision_weight"]
