"""The shape of a policy, what makes it a Llama, Qwen, Mistral or Gemma being data, and the parameters that follow from it."""

import dataclasses
import math
from collections.abc import Callable

import jax
from jaxtyping import PyTree

from jaxcredit.parallel.params import Param


@dataclasses.dataclass(frozen=True)
class Config:
    """The shape of a policy. Hashable, so that it can be a static argument of jit."""

    vocab: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    rope_theta: float = 1e4
    # How positions beyond the original length are turned, by the values of transformers' rope_parameters: ("linear", factor),
    # ("llama3", factor, low_freq_factor, high_freq_factor, original_max_position_embeddings), ("yarn", factor,
    # original_max_position_embeddings, attention_factor, beta_fast, beta_slow, truncate), ("dynamic", factor, max_position_embeddings),
    # ("longrope", original_max_position_embeddings, attention_factor, short_factors, long_factors). The last two go by the rows' length.
    rope_scaling: tuple | None = None
    norm_eps: float = 1e-6
    qk_norm: bool = False  # Qwen3
    qkv_bias: bool = False  # Qwen2
    tied: bool = True  # the embedding is also the unembedding
    # How many tokens each layer sees, its own the last, 0: all; repeated over the layers: Gemma 3 has (1024,) * 5 + (0,).
    windows: tuple[int, ...] = ()
    local_theta: float = (
        0.0  # rope_theta of the layers with a window; 0: that of the others (Gemma 3)
    )
    score_dim: int = 0  # attention scores are q k / sqrt(score_dim); 0: head_dim (Gemma)
    score_cap: float = 0.0  # c tanh(x / c) of attention scores; 0: none (Gemma 2)
    logit_cap: float = 0.0  # the same of logits
    norm_offset: float = 0.0  # norms multiply by norm_offset + w (Gemma: 1)
    post_norm: bool = False  # what attention and MLP add is normalised too (Gemma)
    embed_scale: float = 1.0  # embeddings enter the first layer times this (Gemma: sqrt(width))
    act: str = "silu"  # of the MLP's gate, a function of jax.nn (Gemma: "gelu", which there is the tanh form)
    experts: int = (
        0  # MLPs a layer, each `ffn` wide, of which a token takes `experts_per_token` (Qwen3-MoE)
    )
    experts_per_token: int = 0
    dtype: str = (
        "float32"  # of activations and matmuls; norms, softmax and logits are float32 always
    )
    param_dtype: str = "float32"
    # "full": the backward recomputes each layer from its input; "none": every matmul is kept, what lies between is recomputed
    remat: str = "full"
    forbidden: tuple[int, ...] = ()  # ids the policy can never choose
    vocab_chunk: int = 256  # tokens of each prompt whose logits exist at once
    # Tokens of each prompt that go through a layer's matrices at once. 8B, 256 rows of 4096 on v5e:16x16: 2.85 GiB a chip, else 3.77.
    token_chunk: int = 4096
    query_chunk: int = 256  # tokens of each row whose attention scores exist at once
    attention: str = "auto"  # "plain", "splash" or "cudnn"; "auto": as policy.fused.chosen says of the device that is compiled for
    place: Callable | None = None  # mesh.Layout: where activations lie; programs.build fills it in

    def __post_init__(self):
        if bool(self.experts) != (0 < self.experts_per_token <= self.experts):
            raise ValueError(
                f"{self.experts_per_token} of {self.experts} experts a token: set experts_per_token to 1..experts, or both to 0"
            )
        if not callable(getattr(jax.nn, self.act, None)):
            raise ValueError(f"act = {self.act!r} is no function of jax.nn: take 'silu' or 'gelu'")
        if self.attention not in ("auto", "plain", "splash", "cudnn"):
            raise ValueError(
                f"attention = {self.attention!r} is not known: take 'auto', 'plain', 'splash' or 'cudnn'"
            )


def specs(cfg: Config) -> PyTree:
    """The parameters. They begin normal with standard deviation D^-1/2, so that one learning rate suits small models too; projections into
    the residual stream are smaller by sqrt(2 L), as in GPT-2."""
    L, D, H, K, h, F, V = (
        cfg.layers,
        cfg.width,
        cfg.heads,
        cfg.kv_heads,
        cfg.head_dim,
        cfg.ffn,
        cfg.vocab,
    )
    zeros = jax.nn.initializers.zeros
    ones = (
        jax.nn.initializers.constant(1 - cfg.norm_offset)
        if cfg.norm_offset
        else jax.nn.initializers.ones
    )
    E, e = ((cfg.experts,), ("expert",)) if cfg.experts else ((), ())
    plain = jax.nn.initializers.normal(1 / math.sqrt(D))
    small = jax.nn.initializers.normal(1 / math.sqrt(2 * L * D))
    stack = {
        "attn_norm": Param((L, D), (None, None), ones),
        "wq": Param((L, D, H, h), (None, "width", "heads", None), plain),
        "wk": Param((L, D, K, h), (None, "width", "kv_heads", None), plain),
        "wv": Param((L, D, K, h), (None, "width", "kv_heads", None), plain),
        "wo": Param((L, H, h, D), (None, "heads", None, "width"), small),
        "mlp_norm": Param((L, D), (None, None), ones),
        "w_gate": Param((L, *E, D, F), (None, *e, "width", "ffn"), plain),
        "w_up": Param((L, *E, D, F), (None, *e, "width", "ffn"), plain),
        "w_down": Param((L, *E, F, D), (None, *e, "ffn", "width"), small),
    }
    if cfg.qk_norm:
        stack |= {
            "q_norm": Param((L, h), (None, None), ones),
            "k_norm": Param((L, h), (None, None), ones),
        }
    if cfg.post_norm:
        stack |= {
            name: Param((L, D), (None, None), ones) for name in ("attn_post_norm", "mlp_post_norm")
        }
    if cfg.experts:
        stack["w_router"] = Param((L, D, cfg.experts), (None, "width", None), plain)
    if cfg.qkv_bias:
        stack |= {
            "bq": Param((L, H, h), (None, "heads", None), zeros),
            "bk": Param((L, K, h), (None, "kv_heads", None), zeros),
            "bv": Param((L, K, h), (None, "kv_heads", None), zeros),
        }
    tree = {
        "embed": Param((V, D), ("vocab", "width"), plain),
        "final_norm": Param((D,), (None,), ones),
        "layers": stack,
    }
    return tree if cfg.tied else tree | {"unembed": Param((D, V), ("width", "vocab"), plain)}
