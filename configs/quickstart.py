"""Spelling backward: demonstrations of short words, then TEMPO on longer ones that nobody demonstrated. A laptop's CPU.

jaxcredit train configs/quickstart.py
"""

import optax

from jaxcredit import credit
from jaxcredit.experiment import Experiment, Warmup
from jaxcredit.policy import presets
from jaxcredit.tasks import spell_backward
from jaxcredit.tokenize import Chars


def experiment(lr: float = 3e-3, prompts: int = 32, group: int = 16, steps: int = 80, seed: int = 0) -> Experiment:
    tokenizer = Chars("abcdefghijklmnopqrstuvwxyz>")
    return Experiment(
        name="quickstart",
        task=spell_backward(lengths=(7, 7), demo_lengths=(7, 7), demo_size=13000, seed=seed),
        tokenizer=tokenizer,
        policy=presets.micro(tokenizer.vocab_size, forbidden=(tokenizer.pad_id,)),
        warmup=Warmup(steps=200, batch=128, until=0.2, every=2, optimizer=optax.adamw(2e-3)),
        credit=credit.tempo,
        optimizer=optax.chain(optax.clip_by_global_norm(1.0), optax.adam(lr, b2=0.99)),
        prompts=prompts,
        group=group,
        buckets=(8,),
        new=8,
        steps=steps,
        eval_every=5,
        save_every=20,
        seed=seed,
    )
