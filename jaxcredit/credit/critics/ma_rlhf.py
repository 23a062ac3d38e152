from typing import Literal

import jax.numpy as jnp

from jaxcredit.credit.lift import per_group
from jaxcredit.kernels import (
    at_segment_end,
    gae_over_rows,
    is_run_end,
    is_run_start,
    returns_to_go,
    run_cumsum,
)
from jaxcredit.rollout import Rollout


@per_group(
    needs=("token_value", "macro"),
    paper="2410.02743",
    fidelity="code",
    granularity="segment",
    family="critics",
    min_group_size=1,
    reduces_to="ppo(whiten=False) with one token a macro action",
)
def ma_rlhf(
    group: Rollout,
    *,
    gamma: float = 1.0,
    lam: float = 0.95,
    sigma: Literal["equal", "unit", "position"] = "equal",
):
    """Generalized advantage estimation over macro actions (runs of policy tokens).

        V_m = sum_(j in m) s_j V_j,   r_m = sum_(j in m) s_j r_j
        d_m = r_m + gamma V_(m+1) - V_m,   A_m = d_m + gamma lam A_(m+1)

    Signals: token_value [N, R, T] and macro [N, R, T] (int, from the functions of
    `jaxcredit.signals.macro`). Consecutive policy tokens of a row with equal numbers
    are one macro action. `signals.macro.perplexity` begins a new action
    at each token that is less probable under the reference model than the policy
    token before it; a token of equal probability continues the action.

    Args:
        gamma: float in [0, 1], discount for each macro action, not for each token.
        lam: float in [0, 1], GAE's lambda.
        sigma: weights s of the tokens in a macro action. "equal": 1/n (released
            script); "unit": the last token alone; "position": proportional to 1/j.

    Returns:
        A dict of "advantage" = A and "target" = A + V, both [N, R, T], the same for
        all tokens of a macro action.

    Raises:
        ValueError: `sigma` is not one of its values.

    As in the code, rewards inside a macro action are averaged, not summed. Hence the
    last token of a row is a macro action of its own, so that the outcome is not
    divided. Departs from the code: KL is not part of the reward.

    Source: MA-RLHF, arXiv 2410.02743, and its released code.
    """
    mask, macro, V = group.action_mask, group["macro"], group["token_value"]
    starts, ends = is_run_start(macro, mask), is_run_end(macro, mask)
    ones = jnp.ones(V.shape, V.dtype)
    if sigma == "equal":
        s = ones
    else:
        s = ends.astype(V.dtype) if sigma == "unit" else 1 / run_cumsum(ones, starts, mask)
    weight = jnp.where(mask, s, 0)
    total = jnp.where(ends, run_cumsum(weight, starts, mask), 1)
    value, reward = (
        run_cumsum(weight * jnp.where(mask, x, 0), starts, mask) / total
        for x in (V, at_segment_end(group.reward, group))
    )
    # A token inside a macro action gets the advantage at the end of it.
    A = gae_over_rows(reward, value, group, gamma=gamma, lam=lam, where=ends)
    return {"advantage": A, "target": A + returns_to_go(value, 0.0, where=ends)}
