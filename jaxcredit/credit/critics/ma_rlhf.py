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
    """Generalised advantage estimation whose actions are runs of tokens; the critic's target beside it.

        A_m = d_m + gamma lam A_{m+1},   d_m = r_m + gamma V_{m+1} - V_m,   V_m = sum_{j in m} s_j V_j,   r_m = sum_{j in m} s_j r_j

    MA-RLHF, arXiv 2410.02743, and its released code. Signals: token_value, macro (`jaxcredit.signals.macro` makes it); policy tokens of
    a row that follow each other with equal numbers are one macro action. sigma is "equal" (s = 1/n), "unit" (the last token alone) or
    "position" (s ~ 1/j). Every token gets its macro's A and the target A + V. As in the code, rewards inside a macro are averaged too,
    which is why its boundaries keep the last token alone; gamma acts once a macro. Departs from the code: KL is not in the reward.
    """
    mask, macro, V = group.action_mask, group["macro"], group["token_value"]
    begins, ends = is_run_start(macro, mask), is_run_end(macro, mask)
    one = jnp.ones(V.shape, V.dtype)
    if sigma == "equal":
        s = one
    else:
        s = ends.astype(V.dtype) if sigma == "unit" else 1 / run_cumsum(one, begins, mask)
    share = jnp.where(mask, s, 0)
    total = jnp.where(ends, run_cumsum(share, begins, mask), 1)
    value, reward = (
        run_cumsum(share * jnp.where(mask, x, 0), begins, mask) / total
        for x in (V, at_segment_end(group.reward, group))
    )
    A = gae_over_rows(
        reward, value, group, gamma=gamma, lam=lam, where=ends
    )  # a hole shows the macro that ends next: its own
    return {"advantage": A, "target": A + returns_to_go(value, 0.0, where=ends)}
