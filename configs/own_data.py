"""Your own data (JSON Lines) and your own reward function: sorting four letters.

jaxcredit train configs/own_data.py

A run takes about a minute on a CPU. A fifth of the problems is held out.
"""

from pathlib import Path

import optax

from jaxcredit.policy import Chars, presets
from jaxcredit.tasks import from_jsonl
from jaxcredit.train import Experiment, Warmup

DATA = Path(__file__).with_suffix(".jsonl")  # {"question": "dacb", "answer": "abcd"}


def reward(meta, text, ids):
    """Reward of answer `text` to the problem `meta`: a number, or None to leave it unscored."""
    return float(text == meta["answer"])


def experiment(data: Path = DATA, lr: float = 1e-3, steps: int = 60, seed: int = 0) -> Experiment:
    """The experiment of this file.

    Args:
        data: a file with one JSON object on each line: {"question": "dacb", "answer": "abcd"}
        lr: learning rate
        steps: optimizer steps after the warm-up
        seed: seed of the initial weights and of the sampling
    """
    chars = Chars("abcdefgh>")
    return Experiment(
        name="own_data",
        task=from_jsonl(data, reward=reward, prompt="{question}>", answer="answer", test=0.2),
        tokenizer=chars,
        policy=presets.micro(chars.vocab_size),
        warmup=Warmup(steps=300, batch=64, until=0.3, every=10, optimizer=optax.adamw(3e-3)),
        optimizer=optax.adam(lr),
        prompts_per_step=16,
        group_size=8,
        buckets=(5,),
        max_new_tokens=5,
        steps=steps,
        seed=seed,
    )
