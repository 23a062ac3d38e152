from jaxcredit.credit.lift import per_group
from jaxcredit.kernels import standardize, to_tokens
from jaxcredit.rollout import Rollout


@per_group(
    needs=("turn_parent", "verdict"),
    paper="2602.23440",
    fidelity="paper",
    granularity="step",
    family="trees",
    cost="5 continuations of one step from each prefix, each marked by a judge",
    reduces_to="grpo with one step",
)
def slate(group: Rollout, *, ddof: int = 0, eps: float = 1e-6):
    """Judge's mark of a step, normalized over its siblings: other steps from the same prefix.

        A_ik = (r_ik - mean r) / (std r + eps)   over the segments with the same turn_parent

    r is the judge's mark. The rollout's own reward is not used.

    Signals: verdict [N, G, K], the judge's mark of the step: thought, query and answer, each marked
    -1, 0 or 1 and added up by `signals.judge_total`; turn_parent [N, G, K] (int), equal for steps
    that continue the same prefix.

    Args:
        ddof: int, 0 or 1. The variance divides by n - ddof.
        eps: float >= 0, added to the standard deviation.

    Returns:
        Advantage [N, R, T], the same for all tokens of a segment. It is 0 for a step without
        siblings (a prefix that is only context) and for siblings with equal marks.

    The paper leaves open how the parts of a mark are combined.

    Source: SLATE, arXiv 2602.23440.
    """
    r, siblings = group["verdict"], group["turn_parent"]
    A = standardize(r, by=siblings, where=group.segment_mask, ddof=ddof, eps=eps)
    return to_tokens(A, group)
