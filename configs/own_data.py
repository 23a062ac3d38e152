"""Your own data and your own reward: a file with one JSON object a line, and a function. Here: four letters put in order.

Under a minute on a CPU; greedy accuracy on the letters held out goes from 0.66 after the warm-up to 0.94.

jaxcredit train configs/own_data.py
"""

from pathlib import Path

import optax

from jaxcredit.policy import presets
from jaxcredit.policy.tokenizer import Chars
from jaxcredit.tasks import from_jsonl
from jaxcredit.train.experiment import Experiment, Warmup

DATA = Path(__file__).with_suffix(".jsonl")  # {"question": "dacb", "answer": "abcd"}


def reward(meta, text, ids):
    """`meta` is the line's object, `text` the answer; any number up to 1e30 will do, None leaves it unscored."""
    return float(text == meta["answer"])


def experiment(data: Path = DATA, lr: float = 1e-3, steps: int = 60, seed: int = 0) -> Experiment:
    """The run of this file.

    Args:
        data: a file with one JSON object a line, {"question": "dacb", "answer": "abcd"}
        lr: learning rate
        steps: optimizer steps after the warm-up
        seed: seed of the first weights and of the sampling
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
