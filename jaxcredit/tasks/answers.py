"""Decoding and scoring of sampled answers, on the host."""

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import Bool, Float, Int

from jaxcredit.tasks.scoring import score
from jaxcredit.tasks.task import Task


class ScoredAnswers(NamedTuple):
    """Texts and rewards of k answers to each of n problems."""

    texts: list[list[str]]
    rewards: Float[np.ndarray, "n k"]  # float64; NaN if the reward left the answer unscored (None)


def decode_and_score(
    task: Task,
    tokenizer: Any,
    tokens: Int[np.ndarray, "n k S"],
    mask: Bool[np.ndarray, "n k S"],
    items: Sequence[Mapping[str, Any]],
    *,
    timeout_s: float = 10.0,
    workers: int = 1,
) -> ScoredAnswers:
    """Decode k answers to each of n problems and score them with the task's reward.

    Args:
        task: gives the reward function.
        tokenizer: has `decode`, from a list of token ids to a text.
        tokens: token ids as sampled.
        mask: true for the tokens of the answer; the others are left out.
        items: the n problems, each with `prompt` and `meta`.
        timeout_s: longest duration of one call of the reward in seconds.
        workers: number of processes that score; 0: this process. See `tasks.score`.

    Raises:
        RewardError: the reward raised, or did not return a finite number. The message shows prompt
            and answer.
        RewardTimeout: a call exceeded `timeout_s`.
    """
    n, k, _ = tokens.shape
    ids = [tokens[i, j][mask[i, j]].tolist() for i in range(n) for j in range(k)]
    texts = [tokenizer.decode(answer) for answer in ids]
    rewards = score(
        task,
        [item["meta"] for item in items for _ in range(k)],
        texts,
        ids,
        prompts=[item["prompt"] for item in items for _ in range(k)],
        timeout_s=timeout_s,
        workers=workers,
    )
    return ScoredAnswers(
        [texts[i * k : (i + 1) * k] for i in range(n)], rewards.sum(-1).reshape(n, k)
    )
