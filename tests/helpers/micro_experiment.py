"""The smallest experiment: spell three letters backward, with a third of the reward for each right
letter.

Also a config: jaxcredit train tests/helpers/micro_experiment.py
"""

import itertools

import optax

from jaxcredit import credit, signals
from jaxcredit.policy import presets
from jaxcredit.policy.tokenizer import Chars
from jaxcredit.tasks import Task
from jaxcredit.train import programs
from jaxcredit.train.experiment import Experiment

CHARS = Chars("abcd>")
ITEMS = [
    {"prompt": "".join(w) + ">", "meta": "".join(reversed(w))}
    for w in itertools.product("abcd", repeat=3)
]


def score(meta, text, ids):
    return sum(a == b for a, b in zip(meta, text, strict=False)) / 3


def experiment(
    steps: int = 4,
    group: int = 4,
    beta: float = 0.0,
    critic: bool = False,
    seed: int = 0,
    fsdp: int = 0,
    slices: int = 1,
) -> Experiment:
    return Experiment(
        name="micro",
        task=Task("micro", ITEMS[:48], ITEMS[48:], score),
        tokenizer=CHARS,
        policy=presets.micro(CHARS.vocab_size, width=16, layers=1, heads=2),
        credit=credit.ppo if critic else credit.tempo,
        signals=({"reference": signals.reference()} if beta else {})
        | ({"critic": signals.critic(width=8)} if critic else {}),
        beta=beta,
        optimizer=optax.adam(1e-2),
        prompts_per_step=4,
        group_size=group,
        buckets=(4,),
        max_new_tokens=4,
        steps=steps,
        eval_every=2,
        eval_prompts=8,
        save_every=2,
        seed=seed,
        mesh={"data": slices, "fsdp": fsdp, "tensor": -1} if fsdp else {},
    )


built = {}


def build(exp: Experiment):
    """`programs.build`, cached for experiments with the same programs. All experiments here have
    the same optimizer.
    """
    key = repr(
        (
            exp.policy,
            exp.credit,
            sorted(exp.signals),
            exp.beta,
            exp.prompts_per_step,
            exp.group_size,
            exp.max_new_tokens,
            exp.temperature,
            exp.sample_ahead,
            exp.mesh,
        )
    )
    if key not in built:
        built[key] = programs.build(exp)
    return built[key]
