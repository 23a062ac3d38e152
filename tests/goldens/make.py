"""Tiny seeded checkpoints of each family, written by transformers, with the logits torch computes for them.

python -m venv V && V/bin/python -m pip install torch==2.13.0 transformers safetensors numpy && V/bin/python tests/goldens/make.py
Rewrites tests/goldens/{llama,qwen2,qwen3}; about 0.4 MB in all. The tests need only the files.
"""

import shutil
from pathlib import Path

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM, Qwen2Config, Qwen2ForCausalLM, Qwen3Config, Qwen3ForCausalLM

HERE = Path(__file__).parent
SHAPE = dict(vocab_size=96, hidden_size=32, intermediate_size=48, num_hidden_layers=2, max_position_embeddings=256)
# A small original length puts the wave lengths of an 8-wide head on all three sides of llama3's smoothing.
LLAMA3 = dict(
    rope_type="llama3", rope_theta=1e4, factor=8.0, low_freq_factor=1.0, high_freq_factor=4.0, original_max_position_embeddings=64
)
LINEAR = dict(rope_type="linear", rope_theta=1e6, factor=2.0)
PLAIN = dict(rope_type="default", rope_theta=1e6)
FAMILIES = {
    "llama": lambda: LlamaForCausalLM(
        LlamaConfig(
            **SHAPE,
            num_attention_heads=4,
            num_key_value_heads=2,
            rope_parameters=LLAMA3,
            tie_word_embeddings=False,
            rms_norm_eps=1e-5,
            attn_implementation="eager",
        )
    ),
    "qwen2": lambda: Qwen2ForCausalLM(
        Qwen2Config(
            **SHAPE,
            num_attention_heads=4,
            num_key_value_heads=1,
            rope_parameters=LINEAR,
            tie_word_embeddings=False,
            attn_implementation="eager",
        )
    ),
    "qwen3": lambda: Qwen3ForCausalLM(
        Qwen3Config(
            **SHAPE,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=16,
            rope_parameters=PLAIN,
            tie_word_embeddings=True,
            attn_implementation="eager",
        )
    ),
}
SHARDED = "qwen2"  # this one is written in several files with an index


def main() -> None:
    torch.set_num_threads(1)
    for seed, (name, build) in enumerate(FAMILIES.items()):
        torch.manual_seed(seed)
        model = build().float().eval()
        with torch.no_grad():  # norms and biases start at 1 and 0: move them, or their place in the file is not tested
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
        assert torch.isfinite(logits[valid]).all()
        keep = np.r_[0:80:4, 79]  # some columns, to stay small
        np.savez_compressed(
            folder / "golden.npz",
            ids=ids.numpy().astype(np.int32),
            valid=valid.numpy(),
            columns=keep.astype(np.int32),
            logits=logits.numpy()[:, keep],
        )
        print(name, sorted((p.name, p.stat().st_size) for p in folder.iterdir()))


if __name__ == "__main__":
    main()
