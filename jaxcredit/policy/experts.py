"""A layer of experts: each token goes through the few that its router finds likeliest."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float


def routed(y: Float[Array, "*B D"], w, act, k: int) -> Float[Array, "*B D"]:
    """sum over the k likeliest experts e of p_e / (sum of those p) * expert_e(y), p = softmax(y w_router)  (Qwen3-MoE, Mixtral).

    Tokens are sorted by expert, so that each expert is one matmul over the tokens it got: k times the work of one expert, whatever
    their number, and none is ever dropped.
    """
    x = y.reshape(-1, y.shape[-1])
    p = jax.nn.softmax(jnp.matmul(x, w["w_router"], preferred_element_type=jnp.float32), -1)
    share, chosen = jax.lax.top_k(p, k)
    share = (share / share.sum(-1, keepdims=True)).astype(x.dtype)
    order = jnp.argsort(chosen.reshape(-1))  # stable: the same tokens, the same sums
    sizes = jnp.bincount(chosen.reshape(-1), length=p.shape[-1])
    sent = jnp.repeat(x, k, axis=0)[order]
    h = act(jax.lax.ragged_dot(sent, w["w_gate"], sizes)) * jax.lax.ragged_dot(sent, w["w_up"], sizes)
    back = jax.lax.ragged_dot(h, w["w_down"], sizes)[jnp.argsort(order)].reshape(*chosen.shape, -1)
    return (back * share[..., None]).sum(-2).reshape(y.shape)
