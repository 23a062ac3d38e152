"""What sampling ahead gains and what it costs (`Experiment.ahead`): seconds a step with a slow judge, and how wrong the gradient becomes.

    python tests/benchmarks/ahead.py                     # about 4 CPU minutes
    python tests/benchmarks/ahead.py --judge 0.2 --seeds 5

Gain: the quickstart from one warm-up a seed, whose judge takes `--judge` seconds more a step, as one behind a network does; the seconds of
a step in steady state and held-out accuracy, with and without `ahead`. Bias, exactly: all answers of five tokens out of four, in a policy
that has a logit for every prefix. The answers' rewards are 0 or 1; the policy moves as far along its gradient as gives the KL in the
first column, and is then taught by answers of the policy before. The error is |g - true| / |true|, of weights in expectation.
"""

import argparse
import dataclasses
import itertools
import statistics
import time

import jax
import numpy as np
from jax import numpy as jnp
from rich.console import Console
from rich.table import Table

V, T = 4, 5
WAYS = {  # weights from what is now likelier by how much: each token, and the whole answer
    "not at all": lambda token, answer: 1.0,
    "by the token, at most 2": lambda token, answer: jnp.minimum(token, 2),
    "by the token": lambda token, answer: token,
    "by the answer, at most 2": lambda token, answer: jnp.minimum(answer, 2),
    "by the answer": lambda token, answer: answer,
}


def bias(seeds: int) -> Table:
    """The relative error of the expected gradient by how old answers are weighed, mean over random policies."""
    answers = np.array(list(itertools.product(range(V), repeat=T)))
    place = np.cumsum([0, *(V**t for t in range(T))])[:-1]  # of prefixes of each length
    prefix = np.stack([place[t] + (answers[:, :t] * V ** np.arange(t)).sum(1) for t in range(T)], 1)

    def logp(logits):  # [answers, T]
        return jnp.take_along_axis(jax.nn.log_softmax(logits)[prefix], answers[..., None], -1)[
            ..., 0
        ]

    def errors(seed, wanted):
        rng = np.random.default_rng(seed)
        old, R = (
            jnp.array(rng.normal(size=(place[-1] + V ** (T - 1), V))),
            jnp.array(rng.integers(0, 2, len(answers)), jnp.float64),
        )

        def gradient(logits, sampler, weigh):
            p, gap = jnp.exp(logp(sampler).sum(1)), logp(logits) - logp(sampler)
            w = weigh(jnp.exp(gap), jnp.exp(gap.sum(1, keepdims=True)))
            return jax.grad(lambda z: jnp.sum((p * (R - p @ R))[:, None] * w * logp(z)))(logits)

        climb = gradient(old, old, WAYS["not at all"])
        low, high = 0.0, 1e3
        for _ in range(60):  # the step that gives the KL
            size = (low + high) / 2
            kl = jnp.sum(jnp.exp(logp(old).sum(1)) * (logp(old) - logp(old + size * climb)).sum(1))
            low, high = (size, high) if kl < wanted else (low, size)
        new = old + size * climb
        true = gradient(new, new, WAYS["not at all"])
        return [
            float(jnp.linalg.norm(gradient(new, old, way) - true) / jnp.linalg.norm(true))
            for way in WAYS.values()
        ]

    table = Table(
        "KL",
        *WAYS,
        title="error of the expected gradient of answers one update old, by how they are weighed",
    )
    with jax.enable_x64(True):
        for wanted in (1e-3, 1e-2, 0.1):
            found = np.array([errors(seed, wanted) for seed in range(seeds)])
            table.add_row(f"{wanted:g}", *(f"{x:.3f}" for x in found.mean(0)))
    return table


def slower(reward, *, every: int, by: float):
    """The reward, that takes `by` seconds more at every so manieth answer."""
    count = itertools.count(1)

    def judged(*answer):
        if next(count) % every == 0:
            time.sleep(by)
        return reward(*answer)

    return judged


def gain(judge: float, steps: int, seeds: int) -> Table:
    """The quickstart with a slow judge."""
    from jaxcredit.cli import loading as find
    from jaxcredit.collect.batches import Batches
    from jaxcredit.train import programs
    from jaxcredit.train.loop import train
    from jaxcredit.train.run import _collector, greedy, steps_of
    from jaxcredit.train.supervised import warm_up

    took, accuracy, gaps = ({way: [] for way in (False, True)} for _ in range(3))
    for seed in range(seeds):
        exp = find.experiment(
            "configs/quickstart.py", ["--seed", str(seed), "--steps", str(steps)]
        )[0]
        slow = slower(exp.task.reward, every=exp.prompts_per_step * exp.group_size, by=judge)
        exp = dataclasses.replace(exp, task=dataclasses.replace(exp.task, reward=slow))
        made = programs.build(exp)
        warm, _ = warm_up(
            exp,
            made,
            made.init(jax.random.key(seed)),
            lambda w, e=exp, m=made: greedy(e, m, w)[0],
            lambda text: None,
        )
        warm = jax.device_get(warm)
        for way in (False, True):
            exp = dataclasses.replace(exp, sample_ahead=way)
            made = programs.build(exp)
            state, told, clock = jax.tree.map(jnp.asarray, warm), [], []

            def log(state, collected, metrics, told=told, clock=clock):
                told.append(metrics["sampler_logp_diff"])
                clock.append(time.perf_counter())
                return len(told) == steps

            batches = Batches(len(exp.task.train), exp.prompts_per_step, seed)
            parts = {**steps_of(exp, made), "collect": _collector(exp, made, batches)}
            end = train(
                state,
                batches,
                **parts,
                log=log,
                ahead=lambda way=way, told=told: way and len(told) < steps - 1,
            )
            accuracy[way].append(greedy(exp, made, end.params)[0])
            took[way].append(statistics.median(np.diff(clock)[steps // 2 :]))
            gaps[way].append(float(np.mean(jax.device_get(told[1:]))))
    table = Table(
        "ahead",
        "seconds a step (median)",
        "held-out accuracy, mean (each)",
        "|log p now - log p sampled| a token",
    )
    for way in (False, True):
        each = ", ".join(f"{x:.3f}" for x in accuracy[way])
        table.add_row(
            str(way),
            f"{statistics.median(took[way]):.3f}",
            f"{np.mean(accuracy[way]):.3f} ({each})",
            f"{np.mean(gaps[way]):.4f}",
        )
    table.title = f"quickstart, {steps} steps, a judge that takes {judge:g} s a step"
    return table


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--judge", type=float, default=0.5, help="seconds (default .5)")
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    console = Console()
    console.print(bias(8))
    console.print(gain(args.judge, args.steps, args.seeds))


if __name__ == "__main__":
    main()
