"""Pooled evidence (`credit.pooled`) on a transformer, against GRPO, TEMPO and SPLOO in three tasks.

    python notebooks/studies/pooled_language_models.py [--seeds 3] [--steps 60] [--language NAME]

Runs start from one warmed-up checkpoint for each task. "sorting" is the quickstart's task, where
every token decides. In the other two one token of twelve decides: it must repeat the first letter
of the prompt. The letters before it are nearly always the same ("shared") or free ("scattered").
The command prints mean rewards, and the lead of pooled with paired intervals.
"""

import argparse
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console

from jaxcredit import credit, signals
from jaxcredit.arena.learn import paired_difference
from jaxcredit.collect.single_turn import single_turn
from jaxcredit.credit.trees.sploo import l1
from jaxcredit.collect.batches import Batches
from jaxcredit.train.experiment import Experiment, Warmup
from jaxcredit.policy import presets
from jaxcredit.train.programs import build, compose_step
from jaxcredit.utils.tables import Column, Sheet
from jaxcredit.tasks import Task, number_sorting
from jaxcredit.policy.tokenizer import Chars
from jaxcredit.train.evaluation import greedy_accuracy
from jaxcredit.train.loop import rollout_metrics
from jaxcredit.train.supervised import warm_up

LETTERS, LENGTH, AT = "abcdefgh", 12, 6
ESTIMATORS = {
    "grpo": credit.grpo,
    "tempo": credit.tempo,
    "p0": credit.sploo,
    "l1": l1,
    "pooled": credit.pooled,
}


class RunSummary(NamedTuple):
    """Mean reward of each step, and the largest decision weight at the end."""

    reward: np.ndarray
    weight: float


def needle(same: float, size: int = 4096) -> Task:
    """Task with one deciding letter: answer 7 of 12 must be the prompt's first letter.

    Letters before it are "a" with probability `same`. Demonstrations have random letters.
    """
    rng = np.random.default_rng(0)

    def problem(_):
        prompt, answer = (rng.choice(list(LETTERS), n) for n in (3, LENGTH))
        answer[:AT] = np.where(rng.random(AT) < same, "a", answer[:AT])
        return {"prompt": "".join(prompt) + ">", "meta": prompt[0], "answer": "".join(answer)}

    items = [problem(i) for i in range(size)]
    return Task(
        "needle",
        items[64:],
        items[:64],
        lambda meta, text, ids: float(text[AT : AT + 1] == meta),
        items[64:],
    )


def experiment(language: str, steps: int) -> Experiment:
    """Experiment of one of the three tasks."""
    sorting = language == "sorting"
    tokenizer = Chars("0123456789<>" if sorting else LETTERS + ">")
    return Experiment(
        name=language,
        task=number_sorting() if sorting else needle({"shared": 0.97, "scattered": 0.3}[language]),
        tokenizer=tokenizer,
        policy=presets.micro(tokenizer.vocab_size, remat="none"),
        warmup=Warmup(
            steps=400 if sorting else 60,
            batch=128,
            until=0.2 if sorting else 2.0,
            optimizer=optax.adamw(3e-3),
        ),
        credit=credit.pooled,
        signals={"decision": signals.decision(places=16)},
        optimizer=optax.chain(
            optax.clip_by_global_norm(1.0), optax.adam(2e-3 if sorting else 1e-3, b2=0.99)
        ),
        prompts_per_step=128 if sorting else 16,
        group_size=8,
        buckets=(7,) if sorting else (4,),
        max_new_tokens=7 if sorting else LENGTH + 1,
        steps=steps // 2 if sorting else steps,
    ).check()


def compare(language: str, *, seeds: int, steps: int) -> dict[str, list[RunSummary]]:
    """Runs by estimator; a seed has the same parameters and prompts for all estimators."""
    exp = experiment(language, steps)
    programs = build(exp)
    state, _ = warm_up(
        exp,
        programs,
        programs.init(jax.random.key(0)),
        lambda params: greedy_accuracy(exp, programs, params),
        lambda line: None,
    )
    weights, runs = jax.device_get(state.params), {}
    # All runs update the evidence, so that their programs differ in the credit only.
    for name, estimator in ESTIMATORS.items():
        used = programs._replace(credit=jax.jit(partial(columns, estimator)))
        runs[name] = [train_once(exp, used, weights, seed) for seed in range(seeds)]
    return runs


def columns(estimator, rollout):
    """Columns of an estimator's credit."""
    return credit.columns(estimator(rollout), rollout)


def train_once(exp: Experiment, programs, weights, seed: int) -> RunSummary:
    """One run from the given parameters."""
    collect = single_turn(
        programs.sample, exp.tokenizer, exp.task, group_size=exp.group_size, buckets=exp.buckets
    )
    step = compose_step(exp, programs)
    state = programs.begin(jax.tree.map(jnp.asarray, weights), jax.random.key(seed))
    key = jax.random.key(seed)
    rewards, largest_weight = [], float("nan")
    batches = Batches(len(exp.task.train), exp.prompts_per_step, seed)
    for k in range(exp.steps):
        collected = collect(state.params, jax.random.fold_in(key, k), next(batches))()
        rollout = step.annotate(state, collected)
        columns = step.credit(rollout)
        state, metrics = step.update(state, rollout, columns)
        rewards.append(float(rollout_metrics(rollout, columns)["reward"]))
        largest_weight = float(metrics["decision/weight"])
    return RunSummary(np.array(rewards), largest_weight)


def table(results: dict[str, dict[str, list[RunSummary]]]) -> Sheet:
    """Table of mean rewards, and the lead of pooled over each estimator with paired intervals."""
    numbers = ("reward, all steps", "last tenth", "pooled - it, all steps", "largest weight")
    sheet = Sheet("language", "estimator", *(Column(name, right=True) for name in numbers), keys=2)
    for language, by in results.items():
        area = {name: np.array([[c.reward.mean() for c in runs]]) for name, runs in by.items()}
        for name, runs in by.items():
            end = np.mean([c.reward[-max(len(c.reward) // 10, 1) :].mean() for c in runs])
            lead = paired_difference(area["pooled"], area[name])[0]
            row = (
                f"{lead.value:+.3f} ({lead.low:+.3f}..{lead.high:+.3f})" if name != "pooled" else ""
            )
            weight = (
                f"{np.mean([c.weight for c in runs]):.2f}"
                if ESTIMATORS[name] is credit.pooled
                else ""
            )
            sheet.add_row(language, name, f"{area[name].mean():.3f}", f"{end:.3f}", row, weight)
    return sheet


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=60)
    parser.add_argument("--language", choices=("sorting", "shared", "scattered"), action="append")
    args = vars(parser.parse_args())
    languages = args.pop("language") or ("sorting", "shared", "scattered")
    Console().print(table({language: compare(language, **args) for language in languages}))


if __name__ == "__main__":
    main()
