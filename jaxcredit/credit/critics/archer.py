import jax.numpy as jnp

from jaxcredit.credit.lift import per_group
from jaxcredit.kernels import to_tokens
from jaxcredit.rollout import Rollout


@per_group(
    needs=("action_value", "value"),
    paper="2402.19446",
    fidelity="code",
    granularity="turn",
    family="critics",
    cost="two critics of whole turns",
    min_group_size=1,
)
def archer(group: Rollout, *, baseline: bool = False):
    """What a critic of whole utterances holds of this one, beyond what it expected.

        A_k = Q(s_k, a_k) - V(s_k)

    ArCHer, arXiv 2402.19446. Signals: action_value, value; of double critics take the least of two in both, else A is biased. They are
    trained off-policy with `kernels.td_target`, `polyak` (and `expectile` offline). `baseline=True` subtracts a token-level value, the
    signal token_value, whose target is A. Meant for losses.reinforce, summed over the tokens of a turn.
    """
    A = to_tokens(jnp.where(group.segment_mask, group["action_value"] - group["value"], 0), group)
    return {"advantage": A - group["token_value"], "target": A} if baseline else A
