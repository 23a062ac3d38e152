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
    """Turn-level advantage of a critic: action value less state value.

        A_k = Q(s_k, a_k) - V(s_k)

    Signals: action_value [N, G, K] (Q) and value [N, G, K] (V); with `baseline` also
    token_value [N, R, T]. With two critics, use the smaller value in both
    signals; otherwise A is biased. `kernels.td_target`, `kernels.polyak` and (offline)
    `kernels.expectile` train the critics. The rollout's own reward is not used.

    Args:
        baseline: bool. True: a token-level value is subtracted, and its regression
            target A is returned.

    Returns:
        Advantage [N, R, T], the same for all tokens of a turn. With `baseline` a dict
        of "advantage" = A - token_value and "target" = A, both [N, R, T].

    The paper's loss is `losses.reinforce`, summed over the tokens of a turn.

    Source: ArCHer, arXiv 2402.19446, and its released code.
    """
    A = to_tokens(jnp.where(group.segment_mask, group["action_value"] - group["value"], 0), group)
    return {"advantage": A - group["token_value"], "target": A} if baseline else A
