"""A random Qwen3 checkpoint of 0.1 million parameters with its own tokenizer and chat template,
made without torch.

For tests that begin with a Hugging Face folder: `write_tiny_checkpoint(folder)`, or `python
tests/helpers/tiny_checkpoint.py FOLDER`.
"""

import sys

import jax
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers

from jaxcredit.parallel import params
from jaxcredit.policy import presets, transformer
from jaxcredit.policy import tokenizer as tokenize
from jaxcredit.policy.formats import pretrained

TEXT = (
    "Tom has 12 apples and gives 5 to his sister. How many apples does he have left? "
    "He has 12 - 5 = 7 apples left. The answer is 7.\n"
    "A train drives 60 miles in an hour. How far does it drive in 3 hours? "
    "It drives 60 * 3 = 180 miles. The answer is 180.\n"
    "Anna reads 20 pages each day. How many days does she need for 300 pages? "
    "She needs 300 / 20 = 15 days. The answer is 15.\n"
)
CHAT = (
    "{% for m in messages %}"
    "{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def tiny_tokenizer(size: int = 320) -> tokenize.HF:
    """Byte-level BPE tokenizer trained on a few lines; it encodes every text."""
    tok = Tokenizer(models.BPE())
    tok.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tok.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=size, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    tok.train_from_iterator(TEXT.splitlines(), trainer)
    return tokenize.HF(
        tokenize.fast(tok, chat_template=CHAT, eos_token="<|im_end|>", pad_token="<|endoftext|>")
    )


def write_tiny_checkpoint(folder, *, seed: int = 0, **fields) -> None:
    """Write a Qwen3 checkpoint: query and key norms, tied embeddings, wide heads, and a vocabulary
    larger than the tokenizer's.
    """
    tok = tiny_tokenizer()
    shape = dict(
        vocab=tok.vocab_size + 16, width=64, layers=2, heads=4, kv_heads=2, head_dim=32, ffn=128
    )
    cfg = presets.qwen3_0p6b(**(shape | fields))
    pretrained.export(
        params.init(transformer.specs(cfg), jax.random.key(seed)), cfg, folder, tokenizer=tok
    )


if __name__ == "__main__":
    write_tiny_checkpoint(sys.argv[1])
