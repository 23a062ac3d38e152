"""Gain and bias of `Experiment.sample_ahead`: seconds a step with a slow reward, and the error of
the expected gradient.

    python tests/benchmarks/ahead.py
    python tests/benchmarks/ahead.py --judge 0.2 --seeds 5

Gain: seconds a step in steady state and held-out accuracy of the quickstart, with and without
sampling ahead. The reward takes `--judge` seconds more a step, as a judge behind a network does.
Both runs of a seed begin from one warm-up.

Bias: relative error |g - true| / |true| of the expected gradient on answers that the policy sampled
before its last update, computed by enumeration of all answers of five tokens from a vocabulary of
four. The policy has a logit for every prefix, rewards are random 0 or 1, and the update is the step
along the gradient that gives the KL divergence in the first column.
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
# Importance weights from the probability ratio (new over old policy) of each token and of the whole
# answer.
WEIGHTS = {
    "none": lambda token, answer: 1.0,
    "per token, at most 2": lambda token, answer: jnp.minimum(token, 2),
    "per token": lambda token, answer: token,
    "per answer, at most 2": lambda token, answer: jnp.minimum(answer, 2),
    "per answer": lambda token, answer: answer,
}


def bias(seeds: int) -> Table:
    """Table of the relative error of the expected gradient for each importance weight, mean over
    random policies.
    """
    answers = np.array(list(itertools.product(range(V), repeat=T)))
    first = np.cumsum([0, *(V**t for t in range(T))])[
        :-1
    ]  # index of the first prefix of each length
    prefix = np.stack([first[t] + (answers[:, :t] * V ** np.arange(t)).sum(1) for t in range(T)], 1)

    def logp(logits):  # [answers, T]
        return jnp.take_along_axis(jax.nn.log_softmax(logits)[prefix], answers[..., None], -1)[
            ..., 0
        ]

    def errors(seed, target_kl):
        rng = np.random.default_rng(seed)
        old, R = (
            jnp.array(rng.normal(size=(first[-1] + V ** (T - 1), V))),
            jnp.array(rng.integers(0, 2, len(answers)), jnp.float64),
        )

        def gradient(logits, sampler, weigh):
            p, gap = jnp.exp(logp(sampler).sum(1)), logp(logits) - logp(sampler)
            w = weigh(jnp.exp(gap), jnp.exp(gap.sum(1, keepdims=True)))
            return jax.grad(lambda z: jnp.sum((p * (R - p @ R))[:, None] * w * logp(z)))(logits)

        direction = gradient(old, old, WEIGHTS["none"])
        low, high = 0.0, 1e3
        for _ in range(60):  # bisection for the step size
            size = (low + high) / 2
            kl = jnp.sum(
                jnp.exp(logp(old).sum(1)) * (logp(old) - logp(old + size * direction)).sum(1)
            )
            low, high = (size, high) if kl < target_kl else (low, size)
        new = old + size * direction
        true = gradient(new, new, WEIGHTS["none"])
        return [
            float(jnp.linalg.norm(gradient(new, old, weigh) - true) / jnp.linalg.norm(true))
            for weigh in WEIGHTS.values()
        ]

    table = Table(
        "KL",
        *WEIGHTS,
        title="relative error of the gradient on answers one update old, by importance weight",
    )
    with jax.enable_x64(True):
        for target_kl in (1e-3, 1e-2, 0.1):
            mean_errors = np.array([errors(seed, target_kl) for seed in range(seeds)]).mean(0)
            table.add_row(f"{target_kl:g}", *(f"{x:.3f}" for x in mean_errors))
    return table


def slow_reward(reward, *, every: int, by: float):
    """The reward function, `by` seconds slower at every `every`-th answer."""
    count = itertools.count(1)

    def judged(*answer):
        if next(count) % every == 0:
            time.sleep(by)
        return reward(*answer)

    return judged


def gain(judge: float, steps: int, seeds: int) -> Table:
    """Table of seconds a step and held-out accuracy of the quickstart with a slow reward."""
    from jaxcredit.cli import loading as find
    from jaxcredit.collect.batches import Batches
    from jaxcredit.train import programs
    from jaxcredit.train.evaluation import greedy_accuracy
    from jaxcredit.train.programs import compose_step, make_collector
    from jaxcredit.train.supervised import warm_up

    took, accuracy, gaps = ({ahead: [] for ahead in (False, True)} for _ in range(3))
    for seed in range(seeds):
        exp = find.experiment(
            "configs/quickstart.py", ["--seed", str(seed), "--steps", str(steps)]
        )[0]
        slow = slow_reward(exp.task.reward, every=exp.prompts_per_step * exp.group_size, by=judge)
        exp = dataclasses.replace(exp, task=dataclasses.replace(exp.task, reward=slow))
        made = programs.build(exp)
        warm, _ = warm_up(
            exp,
            made,
            made.init(jax.random.key(seed)),
            lambda w, e=exp, m=made: greedy_accuracy(e, m, w),
            lambda text: None,
        )
        warm = jax.device_get(warm)
        for ahead in (False, True):
            exp = dataclasses.replace(exp, sample_ahead=ahead)
            made = programs.build(exp)
            state, gap, clock = jax.tree.map(jnp.asarray, warm), [], []

            batches = Batches(len(exp.task.train), exp.prompts_per_step, seed)
            collect, step = make_collector(exp, made, batches), compose_step(exp, made)

            def dispatch(state, k, collect=collect, batches=batches):
                key = jax.random.fold_in(jax.random.wrap_key_data(state.key), k)
                return collect(state.params, key, next(batches))

            pending = None
            for k in range(steps):
                collected = (pending or dispatch(state, k))()
                rollout = step.annotate(state, collected)
                columns = step.credit(rollout)
                pending = dispatch(state, k + 1) if ahead and k < steps - 1 else None
                state, metrics = step.update(state, rollout, columns)
                gap.append(metrics["sampler_logp_diff"])
                clock.append(time.perf_counter())
            accuracy[ahead].append(greedy_accuracy(exp, made, state.params))
            took[ahead].append(statistics.median(np.diff(clock)[steps // 2 :]))
            gaps[ahead].append(float(np.mean(jax.device_get(gap[1:]))))
    table = Table(
        "ahead",
        "seconds a step (median)",
        "held-out accuracy, mean (each)",
        "|log p - log p when sampled| a token",
    )
    for ahead in (False, True):
        each = ", ".join(f"{x:.3f}" for x in accuracy[ahead])
        table.add_row(
            str(ahead),
            f"{statistics.median(took[ahead]):.3f}",
            f"{np.mean(accuracy[ahead]):.3f} ({each})",
            f"{np.mean(gaps[ahead]):.4f}",
        )
    table.title = f"quickstart, {steps} steps, a reward that takes {judge:g} s a step"
    return table


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "--judge", type=float, default=0.5, help="seconds a step of the reward (default 0.5)"
    )
    parser.add_argument("--steps", type=int, default=40)
    parser.add_argument("--seeds", type=int, default=3)
    args = parser.parse_args()
    console = Console()
    console.print(bias(8))
    console.print(gain(args.judge, args.steps, args.seeds))


if __name__ == "__main__":
    main()
