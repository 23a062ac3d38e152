"""A layer of experts: each token goes through the few that its router finds likeliest."""

import functools

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxcredit.parallel.mesh import Layout, sharding

AXES = {
    "w_router": (None, None),
    "w_gate": ("expert", None, "ffn"),
    "w_up": ("expert", None, "ffn"),
    "w_down": ("expert", "ffn", None),
}


def routed(
    y: Float[Array, "*B D"], w, act, k: int, place: Layout | None = None
) -> Float[Array, "*B D"]:
    """sum over the k likeliest experts e of p_e / (sum of those p) * expert_e(y), p = softmax(y w_router)  (Qwen3-MoE, Mixtral).

    Tokens are sorted by expert, so that each expert is one matmul over the tokens it got: k times the work of one expert, whatever their
    number, and none is ever dropped. On a mesh (`place`) no token leaves the devices that hold its prompt: each of them sorts its own,
    computes the experts and the part of the hidden layer it holds, and these are added up. Left to itself a compiler gathers all tokens.
    """
    if place is None:
        return _routed(y, w, act=act, k=k)
    rules = dict(place.rules)
    own = {name: w[name] for name in AXES}
    cut = {name: sharding(x.shape, AXES[name], rules, place.mesh).spec for name, x in own.items()}
    here = sharding(
        y.shape, ("batch", *(None,) * (y.ndim - 3), "query", None), rules, place.mesh
    ).spec
    expert, _, ffn = cut["w_gate"]
    apart = tuple(
        name
        for axes in (expert, ffn)
        if axes
        for name in ((axes,) if isinstance(axes, str) else axes)
    )
    f = functools.partial(_routed, act=act, k=k, expert=expert, apart=apart)
    return jax.shard_map(f, mesh=place.mesh, in_specs=(here, cut), out_specs=here, check_vma=False)(
        y, own
    )


def _routed(y, w, *, act, k, expert=None, apart=()):
    """`expert`: the mesh axis over which experts are cut; `apart`: all mesh axes whose devices hold a part of the sum."""
    x = y.reshape(-1, y.shape[-1])
    p = jax.nn.softmax(jnp.matmul(x, w["w_router"], preferred_element_type=jnp.float32), -1)
    share, chosen = jax.lax.top_k(p, k)
    share = (share / share.sum(-1, keepdims=True)).astype(x.dtype)
    E, mine = p.shape[-1], len(w["w_gate"])
    turn = chosen.reshape(-1)
    if mine < E:  # this device's experts come first
        turn = (turn - jax.lax.axis_index(expert) * mine) % E
    order = jnp.argsort(turn)  # stable: the same tokens, the same sums
    sizes = jnp.bincount(turn, length=E)[:mine]

    def known(
        x,
    ):  # rows of other devices' experts lie behind all groups, where a grouped matmul may write anything
        return x if mine == E else jnp.where((jnp.arange(len(x)) < sizes.sum())[:, None], x, 0)

    sent = known(jnp.repeat(x, k, axis=0)[order])
    h = act(jax.lax.ragged_dot(sent, w["w_gate"], sizes)) * jax.lax.ragged_dot(
        sent, w["w_up"], sizes
    )
    back = known(jax.lax.ragged_dot(h, w["w_down"], sizes))[jnp.argsort(order)].reshape(
        *chosen.shape, -1
    )
    out = (back * share[..., None]).sum(-2).reshape(y.shape)
    return jax.lax.psum(out, apart) if apart else out
