"""Floating-point operations that the model needs for a step, without padding and recomputation."""

from __future__ import annotations

import functools
from typing import TYPE_CHECKING

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from jaxcredit.policy.config import Config
from jaxcredit.rollout import Rollout

if TYPE_CHECKING:  # importing Experiment imports all estimators
    from jaxcredit.train.experiment import Experiment

# Forward passes of the policy's size for a signal, its own small head excluded.
SIGNAL_PASSES = {"ref_logp": 1, "entropy": 1, "token_value": 2}


def forward_flops(
    cfg: Config, prompt: Int[Array, " N"], rows: Int[Array, "N R"]
) -> Float[Array, ""]:
    """FLOPs of one forward pass over prompts and the rows that continue them.

    Each prompt is computed once for all its rows. Logits are computed for the tokens of the rows.

        2 (matmul weights per token) tokens + 4 H h (attending pairs) + 2 D V (tokens of rows)

    H is the number of heads, h their size, D the width and V the vocabulary.

    Args:
        cfg: shape of the policy.
        prompt: tokens of each prompt.
        rows: tokens of each row.
    """
    D, F, H, K, h = cfg.width, cfg.ffn, cfg.heads, cfg.kv_heads, cfg.head_dim
    mlp = 3 * D * F * (cfg.experts_per_token or 1) + D * cfg.experts
    weights = cfg.layers * (2 * D * h * (H + K) + mlp)
    p, n = prompt.astype(jnp.float32), rows.astype(jnp.float32)

    def causal_pairs(length, window):  # sum over q = 1..length of min(q, window)
        inside = jnp.minimum(length, window) if window else length
        return inside * (inside + 1) / 2 + (length - inside) * inside

    windows = cfg.windows or (0,)
    pairs = jnp.zeros((), jnp.float32)
    for layer in range(cfg.layers):
        w = windows[layer % len(windows)]
        pairs += (
            causal_pairs(p, w).sum()
            + (causal_pairs(p[:, None] + n, w) - causal_pairs(p, w)[:, None]).sum()
        )
    return 2.0 * weights * (p.sum() + n.sum()) + 4.0 * H * h * pairs + 2.0 * D * cfg.vocab * n.sum()


def training_passes(exp: Experiment) -> int:
    """Forward passes over a rollout in a step after sampling.

    A backward pass counts as two forward passes. Recomputation does not count.
    """
    several = exp.epochs * exp.prompts_per_step > (exp.minibatch or exp.prompts_per_step)
    return 3 * exp.epochs + several + sum(SIGNAL_PASSES.get(name, 0) for name in exp.provided())


def step_flops(exp: Experiment, rollout: Rollout, sampled: Array | int) -> Float[Array, ""]:
    """FLOPs of a training step.

    Args:
        exp: the experiment.
        rollout: rollout that the policy is trained on.
        sampled: tokens that were sampled, including those of dropped groups.
    """
    return _step_flops(exp.policy, training_passes(exp), rollout, sampled)


@functools.partial(jax.jit, static_argnums=(0, 1))
def _step_flops(cfg, passes, rollout, sampled):
    rollout = rollout.filled()
    first = jnp.argmax(rollout.action_mask.any(1), -1)  # [N]: first column of the rows
    in_row = jnp.arange(rollout.tokens.shape[-1]) >= first[:, None, None]
    prompt = (rollout.token_mask & ~in_row)[:, 0].sum(-1)
    forward = forward_flops(cfg, prompt, (rollout.token_mask & in_row).sum(-1))
    return forward * (passes + sampled / jnp.maximum(rollout.action_mask.sum(), 1))
