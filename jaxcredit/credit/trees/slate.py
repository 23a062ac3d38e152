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
    """A step's mark against those of its siblings, the continuations of one prefix by one step.

        A_ik = (r_ik - mean) / (std + eps)   over segments with the same turn_parent

    SLATE, arXiv 2602.23440. Signals: verdict, a judge's marks of thought, query and answer in {-1, 0, 1}, together
    (signals.judge_total); turn_parent. A prefix that is only context gets 0, as do siblings that are marked alike.
    """
    return to_tokens(
        standardize(
            group["verdict"], by=group["turn_parent"], where=group.segment_mask, ddof=ddof, eps=eps
        ),
        group,
    )
