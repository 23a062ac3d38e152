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
    """Base credit amplified at planning and anchor tokens of the model's attention.

        A'_t = (1 + (amplify - 1) g_t) A_t
        L = top share of |WAAD_t - WAAD_(t+1)|,   F = top share of FAI_t

        strategy="local":    g = [t in L]
        strategy="global":   g = [t in F]
        strategy="coupled":  g = [t in F \\ D] + (1 - alpha) [t in D] + alpha [t in I]

        D = {t in F: WAAD_t is low and some u in L has t - window <= u < t}
        I = for each t in D, the u of the largest change before it

    Signals: waad [N, R, T] (windowed average attention distance, `kernels.waad`) and
    fai [N, R, T] (future attention influence, `kernels.fai`).

    Args:
        strategy: "coupled", "local" or "global".
        amplify: float, the factor at g = 1; 1.5 in the paper. 1 leaves the base as it is.
        share: float in (0, 1], the share of a row's policy tokens in L and in F; 0.4 in
            the paper.
        alpha: float in [0, 1], the part of a dominated anchor's gain that moves to its
            planning token; our choice, as the paper's value is not known to us.
        window: int >= 1, tokens between an anchor in D and its planning token; our choice.
        base: the credit A, an estimator of one prompt.

    Returns:
        Advantage [N, R, T], one number a token.

    Raises:
        ValueError: `strategy` is not one of its values, or `base` takes statistics
            over the batch.

    Our reading: WAAD is low among the row's lowest `share`. A token followed by a
    token of a tool has no change; a token with FAI 0 is no anchor.

    Source: Attention Illuminates LLM Reasoning, arXiv 2510.13554.
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
        largest, distance = jnp.full(W.shape, -1.0, W.dtype), jnp.zeros(W.shape, jnp.int32)
        for s in range(1, window + 1):  # of equal changes the nearest one
            earlier = jnp.where(_shift(preplan, s), _shift(change, s), -1)
            largest, distance = (
                jnp.maximum(largest, earlier),
                jnp.where(earlier > largest, s, distance),
            )
        dominated = anchor & (distance > 0) & top_share(-W, share, mask)
        plans = jnp.zeros(mask.shape, bool)
        for s in range(1, window + 1):
            plans |= _shift(dominated & (distance == s), -s)
        gain = gain - alpha * dominated + alpha * plans
    return advantage_of(base, group) * (1 + (amplify - 1) * gain)


def _shift(x, by):
    """Shift the last axis right by `by` tokens (left if negative), filling with 0."""
    pad = jnp.zeros((*x.shape[:-1], min(abs(by), x.shape[-1])), x.dtype)
    return jnp.concatenate([pad, x[..., :-by]] if by > 0 else [x[..., -by:], pad], -1)
