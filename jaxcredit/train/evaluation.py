"""Evaluation on held-out problems, during training and for `jaxcredit eval`."""

import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import numpy as np

from jaxcredit.collect.batches import bucketed
from jaxcredit.parallel.processes import (
    all_process_sum,
    local_rows,
    local_slice,
    to_global_array,
)
from jaxcredit.tasks import Task, statistics
from jaxcredit.tasks.answers import decode_and_score
from jaxcredit.train.experiment import Experiment, round_up
from jaxcredit.train.programs import Programs

EXAMPLES = 8  # answers of an evaluation that are kept to be read


class Answers(NamedTuple):
    """k answers to each of n problems. With several processes, the problems of this process."""

    items: list[dict]
    texts: list[list[str]]
    scores: np.ndarray  # float64 [n, k], NaN if the reward left the answer unscored
    lengths: np.ndarray  # [n, k] in tokens
    done: np.ndarray  # [n, k], true if the answer ended with a stop token


def evaluate_greedy(
    exp: Experiment, programs: Programs, params: Any
) -> tuple[dict[str, float], list[dict]]:
    """Metrics of greedy answers to the held-out problems, and a few answers as examples.

    Metrics are means over all processes, examples are of this process. Accuracy is the share of
    scored answers with a reward of at least 1. Unscored answers are counted, but in neither mean.
    """
    items, batch = exp.held_out()
    answers = _answer_all(exp, programs, programs.greedy, params, items, batch)
    examples = [
        {"prompt": item["prompt"], "answer": text[0], "score": float(score[0])}
        for item, text, score in zip(
            answers.items[:EXAMPLES], answers.texts, answers.scores, strict=False
        )
    ]
    scores = answers.scores[~np.isnan(answers.scores)]
    metrics = {
        "eval/greedy_accuracy": _mean_over_processes(scores >= 1),
        "eval/greedy_reward": _mean_over_processes(scores),
        "eval/unscored": all_process_sum(answers.scores.size - scores.size),
    }
    return metrics, examples


def greedy_accuracy(exp: Experiment, programs: Programs, params: Any) -> float:
    """Share of the held-out problems whose greedy answer earns a reward of at least 1."""
    return evaluate_greedy(exp, programs, params)[0]["eval/greedy_accuracy"]


def sample_answers(
    exp: Experiment,
    programs: Programs,
    params: Any,
    k: int,
    *,
    items: Sequence[dict] | None = None,
    temperature: float | None = None,
    seed: int = 0,
) -> Answers:
    """`k` sampled answers to each problem.

    Args:
        exp: the experiment; gives tokenizer, task and sampling options.
        programs: its compiled programs.
        params: parameters of the policy.
        k: answers per problem, at least 1.
        items: the problems; None: the held-out ones.
        temperature: None: that of the experiment.
        seed: seed of the sampling.
    """
    items = exp.held_out()[0] if items is None else items
    temperature = exp.temperature if temperature is None else temperature
    draw = functools.partial(programs.sample, rows=k, temperature=temperature)
    batch = min(
        round_up(len(items), exp.prompts_per_step),
        exp.prompts_per_step * max(1, exp.group_size // k),
    )
    return _answer_all(exp, programs, draw, params, items, batch, key=jax.random.key(seed))


def evaluation_summary(
    exp: Experiment, programs: Programs, params: Any, k: int, *, seed: int = 0
) -> dict:
    """Statistics of greedy and of `k` sampled answers to the held-out problems.

    See `tasks.statistics.summary` for the result.
    """
    items, batch = exp.held_out()
    greedy = _answer_all(exp, programs, programs.greedy, params, items, batch)
    sampled = sample_answers(exp, programs, params, k, items=items, seed=seed)
    ks = sorted({1, k} | {j for j in (2, 4, 8, 16) if j < k})
    return statistics.summary(
        sampled.scores,
        greedy=greedy.scores[:, 0],
        lengths=sampled.lengths,
        done=sampled.done,
        ks=ks,
    )


def answer_batches(
    draw: Callable,
    params: Any,
    tokenizer: Any,
    task: Task,
    items: Sequence[dict],
    *,
    buckets: Sequence[int],
    batch: int,
    key: jax.Array | None = None,
    sharding: jax.sharding.Sharding | None = None,
    timeout_s: float = 10.0,
    workers: int = 1,
) -> Iterator[Answers]:
    """Answers to `items` in batches; each process yields the answers to its share of a batch.

    Args:
        draw: compiled sampler, `draw(params, prompt, valid, key)`.
        params: parameters of the policy.
        tokenizer: encodes prompts with `chat` and decodes answers.
        task: gives the reward.
        items: problems with `prompt` and `meta`, the same in all processes.
        buckets: prompt lengths for which programs are compiled.
        batch: problems per batch, over all processes. The last batch is filled up with problems
            whose answers are dropped.
        key: random key; None: that of seed 0.
        sharding: sharding of arrays [N, ...]; None on one device.
        timeout_s: longest duration of one call of the reward in seconds.
        workers: number of processes that score; 0: this process.
    """
    key = jax.random.key(0) if key is None else key
    own = local_slice(batch)
    for start in range(0, len(items), batch):
        index = np.arange(start, start + batch)
        padded = [items[int(i) % len(items)] for i in index]
        tokens, valid = bucketed(
            [tokenizer.chat(item["prompt"]) for item in padded], buckets, pad=tokenizer.pad_id
        )
        out = draw(
            params,
            to_global_array(tokens[own], sharding),
            to_global_array(valid[own], sharding),
            jax.random.fold_in(key, start),
        )
        counted = index[own] < len(items)
        answers, mask, done = (
            local_rows(out[name])[counted] for name in ("tokens", "mask", "done")
        )
        kept = padded[own][: counted.sum()]  # the padding is at the end
        texts, scores = decode_and_score(
            task, tokenizer, answers, mask, kept, timeout_s=timeout_s, workers=workers
        )
        yield Answers(kept, texts, scores, mask.sum(-1), done)


def concatenate(parts: Sequence[Answers]) -> Answers:
    """Several batches of answers as one."""
    return Answers(
        [item for part in parts for item in part.items],
        [row for part in parts for row in part.texts],
        *(
            np.concatenate([getattr(part, name) for part in parts])
            for name in ("scores", "lengths", "done")
        ),
    )


def _answer_all(exp, programs, draw, params, items, batch, key=None) -> Answers:
    """All answers to `items`, with the experiment's tokenizer, task and limits."""
    return concatenate(
        list(
            answer_batches(
                draw,
                params,
                exp.tokenizer,
                exp.task,
                items,
                buckets=exp.buckets,
                batch=batch,
                key=key,
                sharding=programs.batch,
                timeout_s=exp.reward_timeout_s,
                workers=exp.reward_workers,
            )
        )
    )


def _mean_over_processes(x: np.ndarray) -> float:
    """Mean over the elements of all processes; 0 if there are none."""
    return float(all_process_sum(np.sum(x, dtype=np.float64)) / max(all_process_sum(np.size(x)), 1))
