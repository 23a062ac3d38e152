from typing import Literal

import jax.numpy as jnp

from jaxcredit.credit.baselines.grpo import grpo
from jaxcredit.credit.compose import advantage_of
from jaxcredit.credit.lift import Credit, per_group
from jaxcredit.kernels import top_share
from jaxcredit.rollout import Rollout


@per_group(
    needs=("waad", "fai"),
    paper="2510.13554",
    fidelity="paper",
    granularity="token",
    family="tokens",
    cost="1 forward pass that keeps the attention maps of the middle layers",
    reduces_to="its base with amplify=1",
)
def attention_rhythm(
    group: Rollout,
    *,
    strategy: Literal["coupled", "local", "global"] = "coupled",
    amplify: float = 1.5,
    share: float = 0.4,
    alpha: float = 0.5,
    window: int = 5,
    base: Credit = grpo,
):
    """More credit where the model's attention plans a chunk and where the later text looks back.

        A'_t = (1 + (amplify - 1) g_t) A_t,   L = top share of |WAAD_t - WAAD_{t+1}|,   F = top share of FAI
        local:   g = [t in L]
        global:  g = [t in F]
        coupled: g = [t in F \\ D] + (1 - alpha) [t in D] + alpha [t in I],   D = {t in F : WAAD_t low, a u in L, t - window <= u < t}
                 I = the u of largest change before each t in D

    Attention illuminates LLM reasoning, arXiv 2510.13554. Signals: waad, fai (`kernels.waad`, `kernels.fai`). Shares are of a row's
    policy tokens; a token whose next column is not the policy's has no change, one that nothing later sees (FAI 0) is no anchor. Our
    design, as the paper's numbers are not known to us: alpha, window, and WAAD "low" where it is among the row's lowest `share`.
    """
    mask, W, F = group.action_mask, group["waad"], group["fai"]
    change = jnp.abs(W - _shift(W, -1))
    preplan = (
        top_share(change, share, mask & _shift(mask, -1))
        if strategy != "global"
        else jnp.zeros(mask.shape, bool)
    )
    anchor = top_share(F, share, mask & (F > 0)) if strategy != "local" else preplan
    gain = anchor.astype(W.dtype)
    if strategy == "coupled":
        best, back = jnp.full(W.shape, -1.0, W.dtype), jnp.zeros(W.shape, jnp.int32)
        for s in range(1, window + 1):  # the nearest of equals
            earlier = jnp.where(_shift(preplan, s), _shift(change, s), -1)
            best, back = jnp.maximum(best, earlier), jnp.where(earlier > best, s, back)
        dominated = anchor & (back > 0) & top_share(-W, share, mask)
        plans = jnp.zeros(mask.shape, bool)
        for s in range(1, window + 1):
            plans |= _shift(dominated & (back == s), -s)
        gain = gain - alpha * dominated + alpha * plans
    return advantage_of(base, group) * (1 + (amplify - 1) * gain)


def _shift(x, by):
    """x_{t - by}, and zeros from outside."""
    pad = jnp.zeros((*x.shape[:-1], min(abs(by), x.shape[-1])), x.dtype)
    return jnp.concatenate([pad, x[..., :-by]] if by > 0 else [x[..., -by:], pad], -1)
