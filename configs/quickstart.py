"""Sorting digits: demonstrations of three to five of them, then TEMPO on six, which nobody demonstrated. Two CPU cores, minutes.

jaxcredit train configs/quickstart.py

The warm-up is stopped on purpose where a fifth of the held-out lists of six comes out right: from there on the only teacher is the
verifier's yes or no. This shows that it works, not who wins: `--credit grpo` ends lower because where answers agree its gradient is half as
long as TEMPO's, against the same KL. Short answers branch little.
"""

import optax

from jaxcredit import credit, signals
from jaxcredit.policy import presets
from jaxcredit.policy.tokenizer import Chars
from jaxcredit.tasks import number_sorting
from jaxcredit.train.experiment import Experiment, Warmup
from jaxcredit.train.learning_rate import warmup_cosine


def experiment(
    lr: float = 1e-3,
    prompts: int = 128,
    group: int = 8,
    steps: int = 240,
    beta: float = 0.5,
    seed: int = 0,
) -> Experiment:
    """The run of this file.

    Args:
        lr: learning rate at its peak, ten steps after the beginning; it ends at a twentieth of that
        prompts: lists of digits a step
        group: answers to each list
        steps: optimizer steps after the warm-up
        beta: weight of the KL to the policy that the warm-up left
        seed: seed of the lists, of the first weights and of the sampling
    """
    tokenizer = Chars("0123456789<>")
    schedule = warmup_cosine(lr, steps, warmup=10, end=lr / 20)
    return Experiment(
        name="quickstart",
        task=number_sorting(lengths=(6, 6), demo_lengths=(3, 5), seed=seed),
        tokenizer=tokenizer,
        policy=presets.micro(tokenizer.vocab_size, remat="none"),
        warmup=Warmup(steps=400, batch=128, until=0.2, every=10, optimizer=optax.adamw(3e-3)),
        credit=credit.tempo,
        signals={"reference": signals.reference()},
        beta=beta,  # rewards that say nothing then leave the policy where it was; without, Adam wears it down within twenty steps
        optimizer=optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule, b2=0.99)),
        prompts_per_step=prompts,
        group_size=group,
        buckets=(7,),
        max_new_tokens=7,
        steps=steps,
        eval_every=10,
        eval_prompts=512,
        save_every=80,
        seed=seed,
    )
