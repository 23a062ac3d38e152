"""What each parameter is called in a Hugging Face file, and how it is turned and folded there."""

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from jaxcredit.parallel.params import abstract
from jaxcredit.policy.config import Config, specs
from jaxcredit.policy.transformer import input_axes

# Where each parameter lies in a Hugging Face file, `{}` the number of its layer, then of its expert. There a matrix is [out, in], heads
# folded into one axis, and each layer and expert has a tensor of its own.
NAMES = {
    "embed": "model.embed_tokens.weight",
    "final_norm": "model.norm.weight",
    "unembed": "lm_head.weight",
    "layers/attn_norm": "model.layers.{}.input_layernorm.weight",
    "layers/wq": "model.layers.{}.self_attn.q_proj.weight",
    "layers/wk": "model.layers.{}.self_attn.k_proj.weight",
    "layers/wv": "model.layers.{}.self_attn.v_proj.weight",
    "layers/wo": "model.layers.{}.self_attn.o_proj.weight",
    "layers/bq": "model.layers.{}.self_attn.q_proj.bias",
    "layers/bk": "model.layers.{}.self_attn.k_proj.bias",
    "layers/bv": "model.layers.{}.self_attn.v_proj.bias",
    "layers/q_norm": "model.layers.{}.self_attn.q_norm.weight",
    "layers/k_norm": "model.layers.{}.self_attn.k_norm.weight",
    "layers/mlp_norm": "model.layers.{}.post_attention_layernorm.weight",
    "layers/w_gate": "model.layers.{}.mlp.gate_proj.weight",
    "layers/w_up": "model.layers.{}.mlp.up_proj.weight",
    "layers/w_down": "model.layers.{}.mlp.down_proj.weight",
}
EXPERTS = {
    name: template.replace("mlp.", "mlp.experts.{}.")
    for name, template in NAMES.items()
    if ".mlp." in template
} | {"layers/w_router": "model.layers.{}.mlp.gate.weight"}
POST_NORM = {
    "layers/attn_post_norm": "model.layers.{}.post_attention_layernorm.weight",
    "layers/mlp_norm": "model.layers.{}.pre_feedforward_layernorm.weight",
    "layers/mlp_post_norm": "model.layers.{}.post_feedforward_layernorm.weight",
}


def names(cfg: Config) -> dict[str, str]:
    """Where the parameters of this config lie in a Hugging Face file."""
    return NAMES | (EXPERTS if cfg.experts else {}) | (POST_NORM if cfg.post_norm else {})


def expected(cfg: Config) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of every tensor in a Hugging Face file of this config."""
    table = names(cfg)
    for path, x in jax.tree_util.tree_leaves_with_path(abstract(specs(cfg))):
        key = key_of(path)
        stack = table[key].count("{}")
        shape = _their_shape(key, x.shape[stack:])
        for i in np.ndindex(x.shape[:stack]):
            yield table[key].format(*i), shape


def _their_shape(key: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """The shape of `theirs`."""
    n = _inputs(key)
    if n is None:
        return shape if key == "embed" else (math.prod(shape),)
    return math.prod(shape[n:]), math.prod(shape[:n])


def sizes(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, str]]:
    """The sizes that the tensors of a Hugging Face file have: key of config.json -> (number, its source).

    config.json is held against them before anything as large as it says is built.
    """
    layers = {int(m[1]) for name in shapes if (m := re.match(r"model\.layers\.(\d{1,9})\.", name))}
    out = (
        {"num_hidden_layers": (len(layers), "layers by the names of the tensors")} if layers else {}
    )
    first = f"model.layers.{min(layers, default=0)}."
    axes = {
        "vocab_size": ("model.embed_tokens.weight", 0),
        "hidden_size": ("model.embed_tokens.weight", 1),
        "intermediate_size": (first + "mlp.gate_proj.weight", 0),
        "moe_intermediate_size": (first + "mlp.experts.0.gate_proj.weight", 0),
        "num_experts": (first + "mlp.gate.weight", 0),
        "num_local_experts": (first + "mlp.gate.weight", 0),
        "head_dim": (first + "self_attn.q_norm.weight", 0),
        "rows of num_attention_heads": (first + "self_attn.q_proj.weight", 0),
        "rows of num_key_value_heads": (first + "self_attn.k_proj.weight", 0),
    }
    for key, (name, axis) in axes.items():
        if len(shape := shapes.get(name, ())) > axis:
            out[key] = shape[axis], f"axis {axis} of {name}"
    return out


def key_of(path) -> str:
    return "/".join(p.key for p in path)


def _inputs(key: str) -> int | None:
    """How many leading axes of a matrix are its input. None: a vector, or the embedding."""
    return input_axes(key.removeprefix("layers/")) if "/w" in key or key == "unembed" else None


def ours(key: str, x: Any, cut: list[slice], shape: tuple[int, ...]) -> np.ndarray:
    """The part `cut` of one of our arrays of `shape` out of theirs: [out, in] to [in, out], with the heads as an axis of their own."""
    sizes, n = [s.stop - s.start for s in cut], _inputs(key)
    if key == "embed":
        return x[cut[0], cut[1]]
    if n is None:
        return x[_fold(cut, shape)].reshape(sizes)
    return x[_fold(cut[n:], shape[n:]), _fold(cut[:n], shape[:n])].T.reshape(sizes)


def _fold(cut: list[slice], shape: tuple[int, ...]) -> slice:
    """The slice of several axes folded into one, of which only the first may be cut."""
    rest = math.prod(shape[1:])
    if any(s != slice(0, n) for s, n in zip(cut[1:], shape[1:], strict=True)):
        raise ValueError(
            f"heads of shape {shape} are cut within a head ({cut}): cut the axis of the heads"
        )
    return slice(cut[0].start * rest, cut[0].stop * rest)


def theirs(key: str, x: np.ndarray) -> np.ndarray:
    """The way back, of a whole tensor."""
    n = _inputs(key)
    if n is None:
        return x if key == "embed" else x.reshape(-1)
    return x.reshape(math.prod(x.shape[:n]), -1).T
