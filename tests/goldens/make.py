"""Writes the golden checkpoints: tiny seeded checkpoints of each family by transformers, with
torch's logits.

python -m venv V
V/bin/python -m pip install torch==2.13.0 transformers safetensors numpy
V/bin/python tests/goldens/make.py

rewrites all folders beside this file and rope.npz, below 1 MB in all. `make.py ropes` writes
rope.npz only. The tests need only the written files.
"""

import json
import shutil
import sys
from pathlib import Path

import numpy as np
import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
)

HERE = Path(__file__).parent
SHAPE = dict(
    vocab_size=96,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=2,
    num_attention_heads=4,
    max_position_embeddings=256,
    attn_implementation="eager",
)
# With this original length, the wavelengths of an 8-wide head lie in all three ranges of llama3's
# smoothing.
LLAMA3 = dict(
    rope_type="llama3",
    rope_theta=1e4,
    factor=8.0,
    low_freq_factor=1.0,
    high_freq_factor=4.0,
    original_max_position_embeddings=64,
)
LINEAR = dict(rope_type="linear", rope_theta=1e6, factor=2.0)
PLAIN = dict(rope_type="default", rope_theta=1e6)
FAMILIES = {
    "llama": lambda: LlamaForCausalLM(
        LlamaConfig(
            **SHAPE,
            num_key_value_heads=2,
            rope_parameters=LLAMA3,
            tie_word_embeddings=False,
            rms_norm_eps=1e-5,
        )
    ),
    "qwen2": lambda: Qwen2ForCausalLM(
        Qwen2Config(
            **SHAPE,
            num_key_value_heads=1,
            rope_parameters=LINEAR,
            tie_word_embeddings=False,
        )
    ),
    "qwen3": lambda: Qwen3ForCausalLM(
        Qwen3Config(
            **SHAPE,
            num_key_value_heads=2,
            head_dim=16,
            rope_parameters=PLAIN,
            tie_word_embeddings=True,
        )
    ),
    # The window is shorter than the prompts and the answers.
    "mistral": lambda: MistralForCausalLM(
        MistralConfig(
            **SHAPE,
            num_key_value_heads=2,
            sliding_window=7,
            rope_parameters=PLAIN,
            tie_word_embeddings=True,
        )
    ),
    "gemma2": lambda: Gemma2ForCausalLM(
        Gemma2Config(
            **SHAPE,
            num_key_value_heads=2,
            head_dim=8,
            query_pre_attn_scalar=5,
            sliding_window=9,
            attn_logit_softcapping=1.5,
            final_logit_softcapping=2.0,
        )
    ),
    "gemma3": lambda: Gemma3ForCausalLM(
        Gemma3TextConfig(
            **SHAPE | dict(num_hidden_layers=3),
            num_key_value_heads=1,
            head_dim=16,
            query_pre_attn_scalar=20,
            sliding_window=6,
            layer_types=["sliding_attention", "sliding_attention", "full_attention"],
            rope_parameters={
                "full_attention": LINEAR,
                "sliding_attention": dict(rope_type="default", rope_theta=1e4),
            },
        )
    ),
    "qwen3_moe": lambda: Qwen3MoeForCausalLM(
        Qwen3MoeConfig(
            **SHAPE,
            moe_intermediate_size=16,
            num_experts=6,
            num_experts_per_tok=2,
            norm_topk_prob=True,
            num_key_value_heads=2,
            head_dim=8,
            rope_parameters=PLAIN,
            tie_word_embeddings=False,
        )
    ),
}
# rope.json: changes of the config in qwen3/ to other rotary positions, with the keys of
# transformers 5 or 4.
THETA = dict(rope_theta=1e4, max_position_embeddings=256)
YARN4 = dict(
    type="yarn", factor=4.0, original_max_position_embeddings=64
)  # as in the model cards of Qwen2.5 and Qwen3
LONGROPE = dict(
    rope_type="longrope",
    rope_theta=1e4,
    short_factor=[1.0, 1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6],
    long_factor=[1.0, 1.2, 1.5, 2.0, 3.0, 4.0, 6.0, 8.0],
)
ROPES = {
    "yarn of a card": dict(rope_scaling=YARN4, **THETA),
    "yarn": dict(
        rope_parameters=dict(
            rope_type="yarn", rope_theta=1e4, factor=4.0, original_max_position_embeddings=64
        )
    ),
    "yarn with every key": dict(
        rope_parameters=dict(
            rope_type="yarn",
            rope_theta=1e4,
            factor=3.0,
            original_max_position_embeddings=96,
            beta_fast=8.0,
            beta_slow=2.0,
            attention_factor=1.3,
            truncate=False,
        )
    ),
    "yarn with mscale": dict(
        rope_parameters=dict(
            rope_type="yarn",
            rope_theta=1e4,
            factor=8.0,
            original_max_position_embeddings=64,
            mscale=1.5,
            mscale_all_dim=0.7,
            beta_fast=4,
        )
    ),
    "dynamic below": dict(
        rope_parameters=dict(rope_type="dynamic", rope_theta=1e4, factor=4.0),
        max_position_embeddings=160,
    ),
    "dynamic beyond": dict(
        rope_scaling=dict(type="dynamic", factor=4.0), **THETA | dict(max_position_embeddings=64)
    ),
    "longrope below": dict(rope_parameters=dict(LONGROPE, original_max_position_embeddings=160)),
    "longrope beyond": dict(
        rope_parameters=dict(LONGROPE, original_max_position_embeddings=64, factor=4.0)
    ),
}
NEW = 24  # tokens of greedy decoding
SHARDED = "qwen2"  # the family that is written in several files with an index


def main() -> None:
    torch.set_num_threads(1)
    for seed, (name, build) in enumerate(FAMILIES.items()):
        torch.manual_seed(seed)
        model = build().float().eval()
        with torch.no_grad():
            # Move norms and biases from 1 and 0, so that their place in the file is tested.
            for key, p in model.named_parameters():
                p.add_(torch.randn_like(p) * (0.3 if "norm" in key or "bias" in key else 0.08))
        folder = HERE / name
        shutil.rmtree(folder, ignore_errors=True)
        model.save_pretrained(folder, max_shard_size="40KB" if name == SHARDED else "1GB")
        ids = torch.randint(3, SHAPE["vocab_size"], (3, 80))
        valid = torch.arange(80) >= torch.tensor([0, 5, 33])[:, None]  # left padding, ragged
        ids = torch.where(valid, ids, 0)
        positions = (valid.cumsum(-1) - 1).clamp(min=0)
        with torch.no_grad():
            logits = model(ids, attention_mask=valid.long(), position_ids=positions).logits
            model.generation_config.eos_token_id = (
                None  # no answer ends early; the saved config keeps its stop token
            )
            greedy = model.generate(
                ids,
                attention_mask=valid.long(),
                max_new_tokens=NEW,
                do_sample=False,
                pad_token_id=0,
            )
        assert torch.isfinite(logits[valid]).all() and greedy.shape == (3, 80 + NEW)
        keep = np.r_[0:80:4, 79]  # a part of the columns, to keep the file small
        np.savez_compressed(
            folder / "golden.npz",
            ids=ids.numpy().astype(np.int32),
            valid=valid.numpy(),
            columns=keep.astype(np.int32),
            logits=logits.numpy()[:, keep],
            greedy=greedy[:, 80:].numpy().astype(np.int32),
        )
        print(name, sorted((p.name, p.stat().st_size) for p in folder.iterdir()))
    ropes()


def ropes() -> None:
    """Write logits of qwen3/ with each of ROPES for two rows of 160 tokens, at columns below and
    beyond the original length.
    """
    torch.manual_seed(100)
    ids = torch.randint(3, SHAPE["vocab_size"], (2, 160))
    valid = torch.arange(160) >= torch.tensor([0, 70])[:, None]
    ids, positions = torch.where(valid, ids, 0), (valid.cumsum(-1) - 1).clamp(min=0)
    keep = np.r_[40, 63, 64, 90, 110, 140, 159]
    plain, logits = json.loads((HERE / "qwen3" / "config.json").read_text()), []
    for change in ROPES.values():
        c = plain | dict(rope_parameters=None) | change
        c = {key: x for key, x in c.items() if x is not None}
        c = Qwen3Config.from_dict(json.loads(json.dumps(c)))
        model = Qwen3ForCausalLM.from_pretrained(
            HERE / "qwen3", config=c, attn_implementation="eager", dtype=torch.float32
        ).eval()
        with torch.no_grad():
            logits.append(
                model(ids, attention_mask=valid.long(), position_ids=positions).logits.numpy()[
                    :, keep
                ]
            )
    (HERE / "rope.json").write_text(json.dumps(ROPES, indent=1) + "\n")
    ids, valid, keep = ids.numpy().astype(np.int32), valid.numpy(), keep.astype(np.int32)
    np.savez_compressed(
        HERE / "rope.npz", ids=ids, valid=valid, columns=keep, logits=np.stack(logits)
    )
    for name, x in zip(ROPES, logits, strict=True):
        print(name, [float(np.abs(x - y).max()) for y in logits])


if __name__ == "__main__":
    ropes() if sys.argv[1:] == ["ropes"] else main()
