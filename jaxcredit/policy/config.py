"""Shape of a policy as data: one Config describes a Llama, Qwen, Mistral or Gemma decoder."""

import dataclasses
import math

import jax
from jaxtyping import PyTree

from jaxcredit.parallel.mesh import Layout
from jaxcredit.parallel.params import Param


@dataclasses.dataclass(frozen=True)
class Config:
    """Shape and computation of a decoder. Hashable, so that it can be a static argument of jit.

    Args:
        vocab: rows V of the embedding; token ids are 0 .. vocab - 1.
        width: model width D, the size of the residual stream.
        layers: number of layers L.
        heads: query heads H, a multiple of `kv_heads`.
        kv_heads: key and value heads K.
        head_dim: size h of a head, an even number.
        ffn: hidden units F of the MLP, or of one expert.
        rope_theta: base of the rotary embedding.
        rope_scaling: scaling of RoPE beyond the original context length, with the values of
            rope_parameters in transformers' config.json: None; ("linear", factor); ("llama3",
            factor, low_freq_factor, high_freq_factor, original_max_position_embeddings); ("yarn",
            factor, original_max_position_embeddings, attention_factor, beta_fast, beta_slow,
            truncate); ("dynamic", factor, max_position_embeddings); ("longrope",
            original_max_position_embeddings, attention_factor, short_factors, long_factors).
            "dynamic" and "longrope" depend on the length of the rows.
        norm_eps: epsilon of the layer norms.
        qk_norm: layer norm of queries and keys (Qwen3, Gemma 3).
        qkv_bias: bias of the query, key and value projections (Qwen2).
        tied: the embedding is also the unembedding.
        windows: attention window of each layer in tokens, the query's own included; 0 is full
            attention. The tuple repeats over the layers: (1024,) * 5 + (0,) in Gemma 3. (): full
            attention in all layers.
        local_theta: base of RoPE in layers with a window; 0: `rope_theta` (Gemma 3).
        score_dim: attention scores are q k / sqrt(score_dim); 0: head_dim (Gemma).
        score_cap: soft cap c * tanh(x / c) of attention scores; 0: none (Gemma 2).
        logit_cap: soft cap of logits; 0: none (Gemma 2).
        norm_offset: layer norms multiply by norm_offset + weight (Gemma: 1).
        post_norm: layer norm of the outputs of attention and MLP as well (Gemma).
        embed_scale: factor of the embeddings (Gemma: sqrt(width)).
        act: activation of the gated MLP, a function of jax.nn. "gelu" is the tanh approximation.
        experts: experts per layer, each an MLP of `ffn` units; 0: one dense MLP (Qwen3-MoE).
        experts_per_token: experts that process a token, 1 .. experts.
        dtype: of activations and matmuls. Norms, softmax and logits are always float32.
        param_dtype: of the stored parameters.
        remat: activation checkpointing. "full": the backward pass recomputes each layer from its
            input. "none": results of matmuls are saved, operations between them recomputed.
        forbidden: token ids that are never sampled.
        vocab_chunk: tokens of each prompt whose logits exist at once.
        token_chunk: tokens of each prompt that pass through the matmuls of a layer at once.
        query_chunk: tokens of each row whose attention scores exist at once.
        attention: "plain", "splash" (TPU), "cudnn" (NVIDIA GPU), or "auto": the device's kernel if
        it
            supports this config (`policy.fused_attention.choose_attention`).
        layout: mesh and sharding rules of activations (`parallel.mesh.Layout`), set by
            `train.programs.build`; None: one device.

    Raises:
        ValueError: experts_per_token, act or attention is out of range.
    """

    vocab: int
    width: int
    layers: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    rope_theta: float = 1e4
    rope_scaling: tuple | None = None
    norm_eps: float = 1e-6
    qk_norm: bool = False
    qkv_bias: bool = False
    tied: bool = True
    windows: tuple[int, ...] = ()
    local_theta: float = 0.0
    score_dim: int = 0
    score_cap: float = 0.0
    logit_cap: float = 0.0
    norm_offset: float = 0.0
    post_norm: bool = False
    embed_scale: float = 1.0
    act: str = "silu"
    experts: int = 0
    experts_per_token: int = 0
    dtype: str = "float32"
    param_dtype: str = "float32"
    remat: str = "full"
    forbidden: tuple[int, ...] = ()
    vocab_chunk: int = 256
    token_chunk: int = 4096
    query_chunk: int = 256
    attention: str = "auto"
    layout: Layout | None = None

    def __post_init__(self):
        if bool(self.experts) != (0 < self.experts_per_token <= self.experts):
            raise ValueError(
                f"experts_per_token = {self.experts_per_token} of {self.experts} experts: "
                "set experts_per_token to 1..experts, or both to 0"
            )
        if not callable(getattr(jax.nn, self.act, None)):
            raise ValueError(f"act = {self.act!r} is not in jax.nn: use 'silu' or 'gelu'")
        if self.attention not in ("auto", "plain", "splash", "cudnn"):
            raise ValueError(
                f"attention = {self.attention!r} is not known: use 'auto', 'plain', 'splash' or "
                "'cudnn'"
            )


def specs(cfg: Config) -> PyTree:
    """Declarations of the parameters of a policy.

    Matrices are initialized from a normal distribution with standard deviation D^-1/2, so that one
    learning rate suits small models too. Projections into the residual stream ("wo", "w_down")
    start smaller by sqrt(2 L), as in GPT-2. Norms start at 1, biases at 0.

    Returns:
        Tree of `Param`: "embed" `[V, D]`, "final_norm" `[D]`, "unembed" `[D, V]` unless tied, and
        under "layers" the parameters of all layers, stacked `[L, ...]`.
    """
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
    # E and e: the axis of the experts, of a matrix that each expert has.
    E, e = ((cfg.experts,), ("expert",)) if cfg.experts else ((), ())
    normal = jax.nn.initializers.normal(1 / math.sqrt(D))
    residual = jax.nn.initializers.normal(1 / math.sqrt(2 * L * D))
    layers = {
        "attn_norm": Param((L, D), (None, None), ones),
        "wq": Param((L, D, H, h), (None, "width", "heads", None), normal),
        "wk": Param((L, D, K, h), (None, "width", "kv_heads", None), normal),
        "wv": Param((L, D, K, h), (None, "width", "kv_heads", None), normal),
        "wo": Param((L, H, h, D), (None, "heads", None, "width"), residual),
        "mlp_norm": Param((L, D), (None, None), ones),
        "w_gate": Param((L, *E, D, F), (None, *e, "width", "ffn"), normal),
        "w_up": Param((L, *E, D, F), (None, *e, "width", "ffn"), normal),
        "w_down": Param((L, *E, F, D), (None, *e, "ffn", "width"), residual),
    }
    if cfg.qk_norm:
        layers |= {
            "q_norm": Param((L, h), (None, None), ones),
            "k_norm": Param((L, h), (None, None), ones),
        }
    if cfg.post_norm:
        layers |= {
            name: Param((L, D), (None, None), ones) for name in ("attn_post_norm", "mlp_post_norm")
        }
    if cfg.experts:
        layers["w_router"] = Param((L, D, cfg.experts), (None, "width", None), normal)
    if cfg.qkv_bias:
        layers |= {
            "bq": Param((L, H, h), (None, "heads", None), zeros),
            "bk": Param((L, K, h), (None, "kv_heads", None), zeros),
            "bv": Param((L, K, h), (None, "kv_heads", None), zeros),
        }
    tree = {
        "embed": Param((V, D), ("vocab", "width"), normal),
        "final_norm": Param((D,), (None,), ones),
        "layers": layers,
    }
    return tree if cfg.tied else tree | {"unembed": Param((D, V), ("width", "vocab"), normal)}
