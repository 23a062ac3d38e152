"""Fused attention kernels: splash on TPUs, cuDNN on NVIDIA GPUs, plain attention elsewhere.

`choose_attention` selects the kernel of a config. Every kernel also runs on CPUs, where tests
compare it with plain attention: splash in the Pallas interpreter, cuDNN's call by the XLA
implementation of `jax.nn.dot_product_attention`. Decoding always uses plain attention: it is
memory-bound, so a fused kernel gains little. Measurements are in docs/status.md.
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
from jaxcredit.policy.positions import NO_WINDOW


def choose_attention(cfg) -> tuple[str, str]:
    """Attention kernel of a config on the devices that it is compiled for.

    Args:
        cfg: the policy's Config.

    Returns:
        "plain", "splash" or "cudnn", and the reason if it is not the device's own kernel (""
        otherwise).

    Raises:
        ValueError: the kernel named in `cfg.attention` does not support the config.
    """
    device = _device(cfg)
    cuda = device.platform == "gpu" and "cuda" in device.client.platform_version
    best = "splash" if device.platform == "tpu" else "cudnn" if cuda else "plain"
    name = best if cfg.attention == "auto" else cfg.attention
    if reason := _unsupported(name, cfg, cuda):
        if cfg.attention != "auto":
            raise ValueError(f"attention = {name!r} {reason}: use 'auto' or 'plain'")
        return "plain", f"{name} {reason}"
    return name, ""


def _device(cfg):
    """First device that a config is compiled for."""
    return (cfg.layout.mesh.devices.flat if cfg.layout else mesh.available())[0]


def _unsupported(name: str, cfg, cuda: bool) -> str:
    """Reason why a kernel does not support a config, "" if it does."""
    if (
        name != "plain"
        and cfg.layout
        and mesh.shard_count("query", dict(cfg.layout.rules), cfg.layout.mesh.shape) > 1
    ):
        return "needs all tokens of a row on one device, and this mesh shards them"
    if name == "splash":
        try:
            import jaxcredit.policy.splash_attention  # noqa: F401
        except ImportError:
            return f"is not part of jax {jax.__version__}"
    if name != "cudnn":
        return ""
    if cfg.score_cap:
        return "has no soft cap of scores"
    if cuda and cfg.dtype not in ("bfloat16", "float16"):
        return f"does not support {cfg.dtype}"
    # Wider heads from Hopper (compute capability 9) on.
    most = 256 if float(getattr(_device(cfg), "compute_capability", 0)) >= 9 else 128
    return (
        f"supports heads of at most {most} that are multiples of 8"
        if cuda and (cfg.head_dim > most or cfg.head_dim % 8)
        else ""
    )


def fused_kernel(cfg, valid: Bool[Array, "N T"], P: int, S: int = 0) -> Callable | None:
    """Fused attention of packed groups, T = P + R S tokens; None: use plain attention.

    Args:
        cfg: the policy's Config.
        valid: False at padding `[N, T]`.
        P: prompt tokens.
        S: tokens of a row; 0: the prompt alone.

    Returns:
        Function (q `[N, T, H, h]`, k and v `[N, T, K, h]`, window) -> attention output `[N, T, H,
        h]`.
    """
    name, _ = choose_attention(cfg)
    if name == "plain":
        return None
    platform = _device(cfg).platform
    if name == "splash":
        from jaxcredit.policy.splash_attention import splash_attention

        kernel = functools.partial(splash_attention, P=P, S=S, cfg=cfg, interpret=platform != "tpu")
        masks = valid, _valid_together(valid, P, S)
    else:
        kernel = functools.partial(
            cudnn_attention,
            P=P,
            S=S,
            cfg=cfg,
            implementation="cudnn" if platform == "gpu" else "xla",
        )
        masks = (rows_with_prompt(valid, P, S),)
    windows = sorted({w or NO_WINDOW for w in cfg.windows} or {NO_WINDOW})
    by_window = [
        _shard_kernel(functools.partial(kernel, window=w), cfg.layout, len(masks)) for w in windows
    ]

    def attention(q, k, v, window):
        if len(by_window) == 1:
            return by_window[0](q, k, v, *masks)
        index = jnp.searchsorted(jnp.array(windows), window)
        return jax.lax.switch(index, by_window, q, k, v, *masks)

    return attention


def _valid_together(valid: Bool[Array, "N T"], P: int, S: int) -> Int[Array, "N T"]:
    """Order of tokens that moves a prompt's valid tokens to its end, a row's to its start."""
    rows = jnp.argsort(~valid[:, P:].reshape(len(valid), -1, max(S, 1)), -1)  # stable
    rows += P + max(S, 1) * jnp.arange(rows.shape[1])[:, None]
    return jnp.concatenate([jnp.argsort(valid[:, :P], -1), rows.reshape(len(valid), -1)], 1)


def _shard_kernel(kernel: Callable, layout: mesh.Layout | None, masks: int) -> Callable:
    """Kernel on each device's prompts and heads by shard_map: XLA cannot partition a kernel.

    If the mesh would split a kv head over devices, each of them gets a copy of it.

    Args:
        kernel: (q, k, v, *masks) -> attention output.
        layout: mesh and rules; None: one device.
        masks: number of masks.
    """
    if layout is None:
        return kernel
    rules = dict(layout.rules)

    def sharded(q, k, v, *rest):
        batch, _, heads, _ = mesh.sharding(
            q.shape, ("batch", None, "heads", None), rules, layout.mesh
        ).spec
        shards = mesh.shard_count("heads", rules, layout.mesh.shape) if heads else 1
        k, v = (jnp.repeat(x, math.lcm(x.shape[2], shards) // x.shape[2], axis=2) for x in (k, v))
        spec = PartitionSpec(batch, None, heads, None)
        specs = (spec,) * 3 + (PartitionSpec(batch),) * masks
        return jax.shard_map(
            kernel, mesh=layout.mesh, in_specs=specs, out_specs=spec, check_vma=False
        )(q, k, v, *rest)

    return sharded


def rows_with_prompt(x: Array, P: int, S: int) -> Array:
    """Unpack groups: every row after a copy of its prompt.

    Args:
        x: packed tokens `[N, P + R S, ...]`.
        P: prompt tokens.
        S: tokens of a row; 0: the prompt alone.

    Returns:
        Rows `[N, R, P + S, ...]`; for S = 0 the prompts `[N, 1, P, ...]`.
    """
    rows = x[:, P:].reshape(len(x), -1 if S else 1, S, *x.shape[2:])
    return jnp.concatenate(
        [jnp.broadcast_to(x[:, None, :P], (*rows.shape[:2], P, *x.shape[2:])), rows], 2
    )


def cudnn_attention(
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
    """Attention of every row after a copy of its prompt, by cuDNN.

    The valid tokens of a row are moved to its start, because cuDNN's fast masks are causal with one
    length per row. Outputs and gradients beyond the length are undefined in cuDNN and set to 0. JAX
    refuses an odd number of tokens in training: such rows are padded by one token.

    Args:
        q: queries of packed groups `[N, T, H, h]`, T = P + R S.
        k, v: keys and values `[N, T, K, h]`.
        valid: False at padding, of rows with their prompts `[N, R, C]`, C = P + S.
        P: prompt tokens.
        S: tokens of a row; 0: the prompt alone.
        window: attention window in tokens.
        cfg: the policy's Config.
        implementation: of `jax.nn.dot_product_attention`.

    Returns:
        Attention output `[N, T, H, h]`.
    """
    N, R, C = valid.shape
    order = jnp.argsort(~valid.reshape(N * R, C), -1)  # stable
    # At least 1: a softmax over no key would be NaN.
    lengths = jnp.maximum(valid.reshape(N * R, C).sum(-1, dtype=jnp.int32), 1)
    inside = (jnp.arange(C) < lengths[:, None])[..., None, None]

    def take_tokens(x, order):  # with unique indices, the gradient is a scatter without atomic adds
        return x.at[jnp.arange(N * R)[:, None], order].get(
            unique_indices=True, mode="promise_in_bounds"
        )

    def rows(x):
        x = rows_with_prompt(x, P, S).reshape(N * R, C, *x.shape[2:])
        x = jnp.where(inside, take_tokens(x, order), 0)
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
    out = take_tokens(jnp.where(inside, out, 0), jnp.argsort(order, -1))
    out = out.reshape(N, R, C, *out.shape[2:])
    return jnp.concatenate([out[:, 0, :P], out[:, :, P:].reshape(N, -1, *out.shape[3:])], 1)
