"""Names and layouts of the parameters in Hugging Face checkpoints.

A checkpoint stores a matrix as [out, in], with the heads folded into one axis, and has one tensor
per layer and expert. This package stores [in, out] with an axis of heads, stacked over layers and
experts.
"""

import math
import re
from collections.abc import Iterator, Mapping
from typing import Any

import jax
import numpy as np

from jaxcredit.parallel.params import abstract
from jaxcredit.policy.config import Config, specs
from jaxcredit.policy.transformer import input_axes

# Parameter -> name in a checkpoint. `{}` is the number of the layer, a second one that of the
# expert.
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
    """Name in a checkpoint of each parameter of a config, with `{}` for layer and expert."""
    return NAMES | (EXPERTS if cfg.experts else {}) | (POST_NORM if cfg.post_norm else {})


def expected(cfg: Config) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of every tensor in a checkpoint of a config."""
    table = names(cfg)
    for path, x in jax.tree_util.tree_leaves_with_path(abstract(specs(cfg))):
        key = key_of(path)
        stack = table[key].count("{}")
        shape = _stored_shape(key, x.shape[stack:])
        for i in np.ndindex(x.shape[:stack]):
            yield table[key].format(*i), shape


def _stored_shape(key: str, shape: tuple[int, ...]) -> tuple[int, ...]:
    """Shape in a checkpoint of one layer's parameter."""
    n = _inputs(key)
    if n is None:
        return shape if key == "embed" else (math.prod(shape),)
    return math.prod(shape[n:]), math.prod(shape[:n])


def sizes(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, str]]:
    """Sizes of a model by the shapes of its tensors: key of config.json -> (number, source).

    config.json is compared with them before anything is allocated by its numbers.

    Args:
        shapes: shape of each tensor by its name in the checkpoint.
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
    """Name of a parameter, e.g. "layers/wq", from its path in the tree."""
    return "/".join(p.key for p in path)


def _inputs(key: str) -> int | None:
    """Number of leading input axes of a matrix. None: a vector, or the embedding."""
    return input_axes(key.removeprefix("layers/")) if "/w" in key or key == "unembed" else None


def from_stored(key: str, x: Any, index: list[slice], shape: tuple[int, ...]) -> np.ndarray:
    """Part of one layer's parameter, read from the tensor of a checkpoint.

    Args:
        key: name of the parameter.
        x: tensor in the checkpoint, a matrix as [out, in], an array or lazily sliced.
        index: the part, one slice per axis of the parameter.
        shape: shape of the whole parameter, a matrix as [in, out] with the heads as an axis.

    Returns:
        The part, in the axes of the parameter.

    Raises:
        ValueError: the part ends within a head.
    """
    sizes, n = [s.stop - s.start for s in index], _inputs(key)
    if key == "embed":
        return x[index[0], index[1]]
    if n is None:
        return x[_fold(index, shape)].reshape(sizes)
    return x[_fold(index[n:], shape[n:]), _fold(index[:n], shape[:n])].T.reshape(sizes)


def _fold(index: list[slice], shape: tuple[int, ...]) -> slice:
    """Slice of several axes folded into one. Only the first axis may be sliced."""
    rest = math.prod(shape[1:])
    if any(s != slice(0, n) for s, n in zip(index[1:], shape[1:], strict=True)):
        raise ValueError(
            f"heads of shape {shape} are sharded within a head ({index}): shard the axis of the "
            "heads"
        )
    return slice(index[0].start * rest, index[0].stop * rest)


def to_stored(key: str, x: np.ndarray) -> np.ndarray:
    """Tensor of a checkpoint from one layer's parameter: the inverse of `from_stored`."""
    n = _inputs(key)
    if n is None:
        return x if key == "embed" else x.reshape(-1)
    return x.reshape(math.prod(x.shape[:n]), -1).T
