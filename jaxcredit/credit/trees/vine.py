from jaxcredit.credit.lift import per_group
from jaxcredit.kernels import gae, to_tokens
from jaxcredit.rollout import Rollout


@per_group(
    needs=("value",),
    paper="2410.01679",
    fidelity="paper",
    granularity="step",
    family="trees",
    cost="9 continuations a step",
    min_group_size=1,
    reduces_to="spo_chain without its mask; the outcome less the prompt's value with one step",
)
def vine(group: Rollout):
    """Change of the value over a step, each value a mean outcome of fresh continuations.

        A_k = r_k + V_{k+1} - V_k,   V = 0 after the last step

    The advantages of a trajectory's steps add up to R - V_0, its outcome less the prompt's value.

    Signals: value [N, G, K], the mean outcome of fresh continuations from the beginning of each
    step (9 in the paper).

    Returns:
        Advantage [N, R, T], the same for all tokens of a step.

    Source: VinePPO, arXiv 2410.01679.
    """
    return to_tokens(gae(group.reward, group["value"], lam=0.0, where=group.segment_mask), group)
