import dataclasses
from functools import partial
from typing import Literal

import jax
import jax.numpy as jnp

from jaxcredit.credit.lift import per_batch
from jaxcredit.kernels import (
    forward_fill,
    gae,
    is_last,
    is_run_start,
    next_value,
    returns_to_go,
    rounding_bound,
    segment_lengths,
    segment_sum,
    standardize,
    to_tokens,
)
from jaxcredit.rollout import Rollout, return_rounding

NEEDS = ("value", "value_plan", "value_switch", "subgoal", "kind")


@per_batch(
    needs=NEEDS,
    paper="2602.16165",
    fidelity="code",
    granularity="turn",
    family="critics",
    cost="a critic with three heads",
    min_group_size=1,
    reduces_to=(
        "flat GAE over turns: on action tokens with one subgoal, "
        "on subgoal tokens with a new subgoal each turn and value_plan = value"
    ),
)
def hae(
    batch: Rollout,
    *,
    gamma: float = 1.0,
    lam_turn: float = 1.0,
    lam_seg: float = 0.95,
    bootstrap: bool = True,
    switch: Literal["return", "option"] = "return",
    plan_switch: bool = False,
    whiten: bool = False,
    ddof: int = 0,
    eps: float = 1e-6,
):
    """Hierarchical GAE: within subgoals, across subgoals, and for the switch decision.

        actions    A^L = GAE(r, V_low; gamma, lam_turn) in each subgoal; its last turn
                   is followed by V_high(next subgoal)
        subgoals   A^H = GAE(R_k, V_high; gamma^d_k, lam_seg) over subgoals of d_k turns,
                   R_k = sum_j gamma^j r_(b_k + j)
        switches   A^S_t = r_t + gamma r_(t+1) + .. + gamma^j V_high(next subgoal)
                           - V_switch(t)

    Signals: value [N, G, K] (V_low), value_plan [N, G, K] (V_high), value_switch
    [N, G, K], subgoal [N, G, K] (int; a change begins a subgoal) and kind [N, R, T]
    (int: 0 thought, 1 subgoal, 2 switch, 3 action).

    Args:
        gamma: float in [0, 1], discount for each turn.
        lam_turn: float in [0, 1], GAE's lambda over the turns of a subgoal.
        lam_seg: float in [0, 1], GAE's lambda over subgoals.
        bootstrap: bool. True: a trajectory that was cut off (`done` false) ends in its
            own last values. False: it ends in 0.
        switch: "return" (A^S above) or "option": the option-critic gradient
            (q - beta) (V_high - V_low), where beta is the probability of switching (from
            the log-probability of the switch tokens) and q is 1 if the turn began a
            subgoal, else 0; the first turn gets 0 (our design).
        plan_switch: bool. True: the switch tokens of a turn that begins a subgoal get
            A^H too.
        whiten: bool. True: each level is normalized over the batch's turns that have
            tokens of that level.
        ddof: int, 0 or 1. The variance divides by n - ddof.
        eps: float >= 0, added to the standard deviation.

    Returns:
        A dict of "advantage" and "target", both [N, R, T]. Action tokens get A^L,
        subgoal tokens that begin a subgoal A^H, switch tokens A^S; thoughts and
        repeated subgoals get 0. The target is advantage plus value before whitening;
        tokens that belong to no level get the target of V_low.

    Raises:
        ValueError: `switch` is not one of its values.

    The paper's penalties for keeping a subgoal belong in the reward.

    Source: HiPER, arXiv 2602.16165, as in its released code.
    """
    levels, targets, owners = jax.vmap(
        partial(_levels, gamma=gamma, lam_turn=lam_turn, lam_seg=lam_seg, bootstrap=bootstrap)
    )(batch)
    if switch == "option":
        p = jnp.exp(jax.vmap(segment_sum)(jnp.where(batch["kind"] == 2, batch.logp, 0), batch))
        gap = (1 - jnp.minimum(p, 1)) * (batch["value_plan"] - batch["value"])
        levels["switch"] = jnp.where(owners["later"], jnp.where(owners["plan"], gap, -gap), 0)
    parts = _parts(batch)
    if whiten:
        owns = jax.vmap(segment_lengths)(parts).reshape(*batch.segment_mask.shape, 4) > 0
        plans = owns[..., 1] | (owns[..., 2] & plan_switch)
        values = jnp.stack(
            [jnp.abs(batch[name]) for name in ("value", "value_plan", "value_switch")]
        )
        error = return_rounding(batch).max() + rounding_bound(
            jnp.max(values, where=batch.segment_mask, initial=0), batch.segment_mask.shape[-1]
        )
        for name, own in (("plan", plans), ("switch", owns[..., 2]), ("low", owns[..., 3])):
            levels[name] = standardize(
                levels[name], where=owners[name] & own, ddof=ddof, eps=eps, slack=error
            )
    at_switches = levels["switch"] + levels["plan"] if plan_switch else levels["switch"]
    advantage = (jnp.zeros_like(at_switches), levels["plan"], at_switches, levels["low"])
    target = (
        targets["low"],
        jnp.where(owners["plan"], targets["plan"], targets["low"]),
        targets["switch"],
        targets["low"],
    )
    return {
        name: jax.vmap(to_tokens)(_flat(x), parts)
        for name, x in (("advantage", advantage), ("target", target))
    }


def _levels(group, *, gamma, lam_turn, lam_seg, bootstrap):
    """Three advantages [G, K], their targets, and masks of the turns at which each is decided."""
    r, real, low, plan = group.reward, group.segment_mask, group["value"], group["value_plan"]
    later = real & (jnp.cumsum(real, -1) > 1)
    start = is_run_start(group["subgoal"], real)
    last = is_last(real)
    end = last | (real & (next_value(start.astype(r.dtype), real) > 0))
    cut = ~group.done[:, None] & bootstrap
    step = jnp.where(end, 0.0, gamma).astype(r.dtype)

    def closed(own):  # rewards plus the discounted value that follows a subgoal's last turn
        return r + jnp.where(
            end, gamma * jnp.where(last, jnp.where(cut, own, 0), next_value(plan, real)), 0
        )

    A_low = gae(closed(low), low, gamma=step, lam=lam_turn, where=real)
    G = returns_to_go(closed(forward_fill(plan, start)), step, where=real)
    turns = returns_to_go(jnp.ones_like(r), jnp.where(end, 0, 1).astype(r.dtype), where=real)
    jump = jnp.asarray(gamma, r.dtype) ** turns
    earned = returns_to_go(r, step, where=real) + jnp.where(is_last(start) & cut, jump * plan, 0)
    A_plan = jnp.where(start, gae(earned, plan, gamma=jump, lam=lam_seg, where=start), 0)
    A_switch = jnp.where(real, G - group["value_switch"], 0)
    levels = {"plan": A_plan, "switch": A_switch, "low": A_low}
    return (
        levels,
        {"plan": A_plan + plan, "switch": G, "low": A_low + low},
        {"plan": start, "switch": real, "low": real, "later": later},
    )


def _parts(batch):
    """The batch with four segments for each turn, one for each kind of token."""
    kind = jnp.clip(batch["kind"], 0, 3)
    segment = jnp.where(batch.segment >= 0, 4 * batch.segment + kind, -1)
    return dataclasses.replace(
        batch,
        segment=segment,
        segment_mask=jnp.repeat(batch.segment_mask, 4, -1),
        reward=jnp.repeat(batch.reward, 4, -1),
    )


def _flat(x):
    return jnp.stack(x, -1).reshape(*x[0].shape[:-1], -1)
