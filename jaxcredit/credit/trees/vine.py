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
    """The change of value over a step, each value the mean outcome of fresh continuations.

        A_k = r_k + V_{k+1} - V_k,   V = 0 after the last step (where the whole outcome is earned last, it is R - V_K)

    VinePPO, arXiv 2410.01679. Signal: value, the mean of some 9 continuations from the beginning of the step. Telescopes to R - V_0.
    """
    return to_tokens(gae(group.reward, group["value"], lam=0.0, where=group.segment_mask), group)
