import jax
import jax.numpy as jnp

from jaxcredit.credit.lift import per_group
from jaxcredit.kernels import binade, standardize, to_tokens
from jaxcredit.rollout import Rollout


@per_group(
    paper="2605.22074",
    fidelity="paper",
    granularity="segment",
    family="steps",
    reduces_to="grpo with one block, whose reward is 0 or 1",
)
def scrl(group: Rollout, *, ddof: int = 0, eps: float = 1e-6):
    """Each block of an answer to a list of sub-problems against the same block of the others, solved only if all before it are.

        A_ij = (s_ij - mean_i s_ij) / (std_i s_ij + eps),   s_ij = prod_{l <= j} r_il

    SCRL, arXiv 2605.22074. The reward of segment j, 0 or 1, says whether sub-problem j was solved; the last is the original problem.
    A block that was asked for and not written is real, with reward 0. An answer whose format failed has reward 0 everywhere and
    segment -1 on its tokens: it counts among its peers and is credited nothing.
    """
    unit = jnp.maximum(
        binade(jnp.abs(group.reward).max()), 1
    )  # 1 for rewards of 0 and 1; products of others cannot overflow
    solved = jnp.cumprod(jnp.where(group.segment_mask, group.reward / unit, 1), -1)
    A = jax.vmap(lambda x, real: standardize(x, where=real, ddof=ddof, eps=eps), 1, 1)(
        solved, group.segment_mask
    )
    return to_tokens(A, group)
