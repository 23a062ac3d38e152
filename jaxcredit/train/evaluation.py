"""How good a policy is on held-out problems: sampled in large compiled batches, judged by the task."""

from collections.abc import Callable, Iterator, Sequence
from typing import NamedTuple

import jax
import numpy as np

from jaxcredit.collect.batches import bucketed
from jaxcredit.parallel.processes import all_process_sum, local_rows, local_slice, to_global_array
from jaxcredit.tasks import Task, score


class Answers(NamedTuple):
    """What was answered to some problems, `k` times each."""

    items: list[dict]
    texts: list[list[str]]
    scores: np.ndarray  # [n, k], NaN where the reward left the answer unscored
    lengths: np.ndarray  # [n, k] tokens
    done: np.ndarray  # [n, k] ended by itself


def answer(
    draw: Callable,
    params,
    tokenizer,
    task: Task,
    items: Sequence[dict],
    *,
    buckets,
    batch: int,
    key=None,
    sharding=None,
    timeout_s: float = 10.0,
    workers: int = 1,
) -> Iterator[Answers]:
    """The answers to this process' share of `items`, `batch` problems of all processes at a time.

    `draw(params, prompt, valid, key)` is a compiled sampler. The last batch is filled up with problems whose answers are dropped.
    """
    key = jax.random.key(0) if key is None else key
    for start in range(0, len(items), batch):
        index = np.arange(start, start + batch)
        asked = [items[int(i) % len(items)] for i in index]
        own = local_slice(batch)
        prompt, valid = (
            x[own]
            for x in bucketed(
                [tokenizer.chat(i["prompt"]) for i in asked], buckets, pad=tokenizer.pad_id
            )
        )
        out = draw(
            params,
            to_global_array(prompt, sharding),
            to_global_array(valid, sharding),
            jax.random.fold_in(key, start),
        )
        fresh = index[own] < len(items)
        tokens, mask, done = (local_rows(out[name])[fresh] for name in ("tokens", "mask", "done"))
        some = [item for item, new in zip(asked[own], fresh, strict=True) if new]
        k = mask.shape[1]
        ids = [
            [row[kept].tolist() for row, kept in zip(*pair, strict=True)]
            for pair in zip(tokens, mask, strict=True)
        ]
        texts = [[tokenizer.decode(a) for a in answers] for answers in ids]
        flat = score(
            task,
            [item["meta"] for item in some for _ in range(k)],
            [text for row in texts for text in row],
            [a for row in ids for a in row],
            prompts=[item["prompt"] for item in some for _ in range(k)],
            timeout_s=timeout_s,
            workers=workers,
        )
        yield Answers(some, texts, flat.sum(-1).reshape(len(some), k), mask.sum(-1), done)


def whole(parts: Sequence[Answers]) -> Answers:
    """Several batches of answers as one."""
    return Answers(
        [item for part in parts for item in part.items],
        [row for part in parts for row in part.texts],
        *(
            np.concatenate([getattr(part, name) for part in parts])
            for name in ("scores", "lengths", "done")
        ),
    )


def mean(x: np.ndarray) -> float:
    """The mean over the rows of all processes."""
    return float(all_process_sum(np.sum(x, dtype=np.float64)) / max(all_process_sum(np.size(x)), 1))
