"""Mixture of experts: each token passes through the k experts that its router finds likeliest.

Letters in shapes: B any batch axes, D model width, E experts, F hidden units of an expert,
M tokens of this device.
"""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxcredit.parallel.mesh import Layout, sharding

AXES = {  # logical axes of the layer's matrices inside the shard_map: the width is all-gathered
    "w_router": (None, None),
    "w_gate": ("expert", None, "ffn"),
    "w_up": ("expert", None, "ffn"),
    "w_down": ("expert", "ffn", None),
}


def mixture_of_experts(
    x: Float[Array, "*B D"], w, act, k: int, layout: Layout | None = None
) -> Float[Array, "*B D"]:
    """Sum over the k likeliest experts e of p_e / (sum of their p) * MLP_e(x).

    p = softmax(x w_router), as in Qwen3-MoE and Mixtral (2401.04088). Tokens are sorted by expert,
    so that each expert is one matmul over its tokens, and no token is dropped.

    On a mesh each device routes the tokens of its own prompts through its experts and its share of
    their hidden units, and the results are summed over devices. Tokens are never exchanged.

    Args:
        x: activations `[..., D]`.
        w: "w_router" `[D, E]`, "w_gate" and "w_up" `[E, D, F]`, "w_down" `[E, F, D]`.
        act: activation of the gated MLP.
        k: experts per token.
        layout: mesh and rules; None: one device.
    """
    if layout is None:
        return _mixture(x, w, act=act, k=k)
    rules, mesh = dict(layout.rules), layout.mesh
    matrices = {name: w[name] for name in AXES}
    specs = {name: sharding(m.shape, AXES[name], rules, mesh).spec for name, m in matrices.items()}
    tokens = ("batch", *(None,) * (x.ndim - 3), "query", None)
    tokens_spec = sharding(x.shape, tokens, rules, mesh).spec
    expert, _, ffn = specs["w_gate"]
    summed = tuple(
        name
        for axes in (expert, ffn)
        if axes
        for name in ((axes,) if isinstance(axes, str) else axes)
    )
    f = functools.partial(_mixture, act=act, k=k, expert_axis=expert, summed=summed)
    return jax.shard_map(
        f, mesh=mesh, in_specs=(tokens_spec, specs), out_specs=tokens_spec, check_vma=False
    )(x, matrices)


def _mixture(x, w, *, act, k, expert_axis=None, summed=()):
    """`mixture_of_experts` of one device's tokens and experts.

    Args:
        expert_axis: mesh axis that shards the experts.
        summed: mesh axes over which results are partial sums.
    """
    shape = x.shape
    x = x.reshape(-1, shape[-1])  # [M, D]
    p = jax.nn.softmax(jnp.matmul(x, w["w_router"], preferred_element_type=jnp.float32), -1)
    weight, chosen = jax.lax.top_k(p, k)  # [M, k]
    weight = (weight / weight.sum(-1, keepdims=True)).astype(x.dtype)
    E, local = p.shape[-1], len(w["w_gate"])
    expert = chosen.reshape(-1)  # [M k]
    if local < E:  # renumber: the experts of this device come first
        expert = (expert - jax.lax.axis_index(expert_axis) * local) % E
    order = jnp.argsort(expert)  # stable: the sums have the same order on every device
    sizes = jnp.bincount(expert, length=E)[:local]

    def mask_other_devices(x):
        """Zero the rows of other devices' experts, which a grouped matmul leaves undefined."""
        return x if local == E else jnp.where((jnp.arange(len(x)) < sizes.sum())[:, None], x, 0)

    by_expert = mask_other_devices(jnp.repeat(x, k, axis=0)[order])  # [M k, D]
    gate = jax.lax.ragged_dot(by_expert, w["w_gate"], sizes)
    h = act(gate) * jax.lax.ragged_dot(by_expert, w["w_up"], sizes)  # [M k, F]
    y = mask_other_devices(jax.lax.ragged_dot(h, w["w_down"], sizes))[jnp.argsort(order)]
    out = (y.reshape(*chosen.shape, -1) * weight[..., None]).sum(-2).reshape(shape)
    return jax.lax.psum(out, summed) if summed else out
