"""Floating-point operations of a step by arithmetic: what the model needs, not what padding or recomputation make the device do."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxcredit.policy.config import Config
from jaxcredit.rollout import Rollout

if TYPE_CHECKING:  # the folder of a run is read without all estimators
    from jaxcredit.train.experiment import Experiment

# Forward passes that an annotator takes beside its own small head.
PASSES = {"ref_logp": 1, "entropy": 1, "token_value": 2}


def forward_flops(
    cfg: Config, prompt: Int[Array, " N"], rows: Int[Array, "N R"]
) -> Float[Array, ""]:
    """One pass over prompts, each once, and the rows behind them, with logits for the rows' tokens.

    2 (matmul weights a token passes) tokens + 4 H h (pairs that attend) + 2 D V (tokens of rows)
    """
    D, F, H, K, h = cfg.width, cfg.ffn, cfg.heads, cfg.kv_heads, cfg.head_dim
    mlp = 3 * D * F * (cfg.experts_per_token or 1) + D * cfg.experts
    weights = cfg.layers * (2 * D * h * (H + K) + mlp)
    p, n = prompt.astype(jnp.float32), rows.astype(jnp.float32)

    def upto(length, window):  # sum over q = 1..length of min(q, window)
        inside = jnp.minimum(length, window) if window else length
        return inside * (inside + 1) / 2 + (length - inside) * inside

    windows = cfg.windows or (0,)
    pairs = jnp.zeros((), jnp.float32)
    for layer in range(cfg.layers):
        w = windows[layer % len(windows)]
        pairs += upto(p, w).sum() + (upto(p[:, None] + n, w) - upto(p, w)[:, None]).sum()
    return 2.0 * weights * (p.sum() + n.sum()) + 4.0 * H * h * pairs + 2.0 * D * cfg.vocab * n.sum()


def training_passes(exp: Experiment) -> int:
    """Forward passes over a rollout that a step takes after sampling: a backward counts as two, recomputation as none."""
    several = exp.epochs * exp.prompts_per_step > (exp.minibatch or exp.prompts_per_step)
    return 3 * exp.epochs + several + sum(PASSES.get(name, 0) for name in exp.provided())


def step_flops(exp: Experiment, rollout: Rollout, sampled: Array | int) -> Float[Array, ""]:
    """Of a whole step: sampling `sampled` tokens (all rounds together) and learning from those that the rollout holds."""
    return _step(exp.policy, training_passes(exp), rollout, sampled)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _step(cfg, learning, rollout, sampled):
    rollout = rollout.filled()
    first = jnp.argmax(rollout.action_mask.any(1), -1)  # [N]: the column in which rows begin
    behind = jnp.arange(rollout.tokens.shape[-1]) >= first[:, None, None]
    prompt = (rollout.token_mask & ~behind)[:, 0].sum(-1)
    once = forward_flops(cfg, prompt, (rollout.token_mask & behind).sum(-1))
    return once * (learning + sampled / jnp.maximum(rollout.action_mask.sum(), 1))
