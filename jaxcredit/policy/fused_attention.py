"""Attention as one kernel of the device, where it has one: splash on TPUs, cuDNN's on NVIDIA GPUs, and the plain form elsewhere.

`chosen` decides which form a config gets. Every kernel also runs on a CPU (splash by Pallas' interpreter, cuDNN's call by the other
implementation of `jax.nn.dot_product_attention`), so that tests compare it with the plain form. Decoding uses plain attention on all
devices: one token a row is bound by memory, and a fused kernel gains little. docs/status.md says what has been measured, and where.
"""

import functools
import math
from collections.abc import Callable
from typing import Literal

import jax
import jax.numpy as jnp
from jax.sharding import PartitionSpec
from jaxtyping import Array, Bool, Float, Int

from jaxcredit.parallel import mesh
from jaxcredit.policy.positions import FAR


def chosen(cfg) -> tuple[str, str]:
    """The attention of a config, and why it is not the device's own ("" where it is). One that is asked for and cannot be is an error."""
    device = _device(cfg)
    cuda = device.platform == "gpu" and "cuda" in device.client.platform_version
    best = "splash" if device.platform == "tpu" else "cudnn" if cuda else "plain"
    name = best if cfg.attention == "auto" else cfg.attention
    if why := _lacks(name, cfg, cuda):
        if cfg.attention != "auto":
            raise ValueError(f"attention = {name!r} {why}: take 'auto' or 'plain'")
        return "plain", f"{name} {why}"
    return name, ""


def _device(cfg):
    return (cfg.place.mesh.devices.flat if cfg.place else mesh.available())[0]


def _lacks(name: str, cfg, cuda: bool) -> str:
    """What a kernel cannot do of a config."""
    if (
        name != "plain"
        and cfg.place
        and mesh.shard_count("query", dict(cfg.place.rules), cfg.place.mesh.shape) > 1
    ):
        return "takes all tokens of a row, and this mesh cuts them"
    if name == "splash":
        try:
            import jaxcredit.policy.splash_attention  # noqa: F401
        except ImportError:
            return f"is not part of jax {jax.__version__}"
    if name != "cudnn":
        return ""
    if cfg.score_cap:
        return "knows no cap of scores"
    if cuda and cfg.dtype not in ("bfloat16", "float16"):
        return f"has no {cfg.dtype}"
    most = (
        256 if float(getattr(_device(cfg), "compute_capability", 0)) >= 9 else 128
    )  # from Hopper on
    return (
        f"has heads of at most {most} that are multiples of 8"
        if cuda and (cfg.head_dim > most or cfg.head_dim % 8)
        else ""
    )


def fused(cfg, valid: Bool[Array, "N T"], P: int, S: int = 0) -> Callable | None:
    """`attend(q [N, T, H, h], k and v [N, T, K, h], window) -> [N, T, H, h]` over packed groups, T = P + R S; None: the plain form."""
    name, _ = chosen(cfg)
    if name == "plain":
        return None
    platform = _device(cfg).platform
    if name == "splash":
        from jaxcredit.policy.splash_attention import splash

        one = functools.partial(splash, P=P, S=S, cfg=cfg, interpret=platform != "tpu")
        facts = valid, _together(valid, P, S)
    else:
        one = functools.partial(
            cudnn, P=P, S=S, cfg=cfg, implementation="cudnn" if platform == "gpu" else "xla"
        )
        facts = (spread(valid, P, S),)
    widths = sorted({w or FAR for w in cfg.windows} or {FAR})
    each = [_cut(functools.partial(one, window=w), cfg.place, len(facts)) for w in widths]

    def attend(q, k, v, window):
        if len(each) == 1:
            return each[0](q, k, v, *facts)
        return jax.lax.switch(jnp.searchsorted(jnp.array(widths), window), each, q, k, v, *facts)

    return attend


def _together(valid: Bool[Array, "N T"], P: int, S: int) -> Int[Array, "N T"]:
    """The order in which the valid tokens of a prompt are its last ones, and those of each row its first."""
    rows = jnp.argsort(~valid[:, P:].reshape(len(valid), -1, max(S, 1)), -1)  # stable
    rows += P + max(S, 1) * jnp.arange(rows.shape[1])[:, None]
    return jnp.concatenate([jnp.argsort(valid[:, :P], -1), rows.reshape(len(valid), -1)], 1)


def _cut(f: Callable, place, facts: int) -> Callable:
    """f on each device's prompts and heads: a compiler cannot cut a kernel. Where it would get parts of a kv head, it gets a copy."""
    if place is None:
        return f
    rules = dict(place.rules)

    def cut(q, k, v, *rest):
        batch, _, heads, _ = mesh.sharding(
            q.shape, ("batch", None, "heads", None), rules, place.mesh
        ).spec
        ways = mesh.shard_count("heads", rules, place.mesh.shape) if heads else 1
        k, v = (jnp.repeat(x, math.lcm(x.shape[2], ways) // x.shape[2], axis=2) for x in (k, v))
        here = PartitionSpec(batch, None, heads, None)
        specs = (here,) * 3 + (PartitionSpec(batch),) * facts
        return jax.shard_map(f, mesh=place.mesh, in_specs=specs, out_specs=here, check_vma=False)(
            q, k, v, *rest
        )

    return cut


def spread(x: Array, P: int, S: int) -> Array:
    """`[N, P + R S, ...]` to `[N, R, P + S, ...]`, every row behind a copy of its prompt; without rows the prompt alone."""
    rows = x[:, P:].reshape(len(x), -1 if S else 1, S, *x.shape[2:])
    return jnp.concatenate(
        [jnp.broadcast_to(x[:, None, :P], (*rows.shape[:2], P, *x.shape[2:])), rows], 2
    )


def cudnn(
    q: Float[Array, "N T H h"],
    k: Float[Array, "N T K h"],
    v: Float[Array, "N T K h"],
    valid: Bool[Array, "N R C"],
    *,
    P: int,
    S: int,
    window: int,
    cfg,
    implementation: Literal["cudnn", "xla"],
) -> Float[Array, "N T H h"]:
    """Attention of every row behind a copy of its prompt, by cuDNN. The valid tokens of a row are moved to its front, since cuDNN's fast
    masks are causal ones with a length a row.

    cuDNN promises nothing about outputs and gradients behind a row's length, where even NaNs may stand. They are set to 0. JAX refuses an
    odd number of tokens in training: such rows get one more, which is not valid.
    """
    N, R, C = valid.shape
    order = jnp.argsort(~valid.reshape(N * R, C), -1)  # stable
    lengths = jnp.maximum(
        valid.reshape(N * R, C).sum(-1, dtype=jnp.int32), 1
    )  # of nothing there is no mean
    inside = (jnp.arange(C) < lengths[:, None])[..., None, None]

    def taken(x, order):  # no index twice: the gradient is a scatter without atomic sums
        return x.at[jnp.arange(N * R)[:, None], order].get(
            unique_indices=True, mode="promise_in_bounds"
        )

    def rows(x):
        x = jnp.where(inside, taken(spread(x, P, S).reshape(N * R, C, *x.shape[2:]), order), 0)
        return jnp.pad(x, ((0, 0), (0, C % 2), (0, 0), (0, 0)))

    q, k, v = map(rows, (q, k, v))
    out = jax.nn.dot_product_attention(
        q, k, v,
        scale=(cfg.score_dim or cfg.head_dim) ** -0.5,
        is_causal=True,
        query_seq_lengths=lengths,
        key_value_seq_lengths=lengths,
        local_window_size=None if window >= C else (window - 1, 0),
        implementation=implementation,
    )[:, :C]  # fmt: skip
    out = taken(jnp.where(inside, out, 0), jnp.argsort(order, -1)).reshape(N, R, C, *out.shape[2:])
    return jnp.concatenate([out[:, 0, :P], out[:, :, P:].reshape(N, -1, *out.shape[3:])], 1)
