"""MatchTIR (arXiv 2601.10712, and its released code): each call earns what the gold call it is matched with is like."""

from collections.abc import Sequence

import numpy as np
from scipy.optimize import linear_sum_assignment

from jaxcredit.rewards.text import jaccard, set_f1
from jaxcredit.rewards.tool_use.toolrl import Call


def call_score(predicted: Call, gold: Call) -> float:
    """S = (1 + J(keys) + #gold values reproduced) / (2 + |params_gold|), 0 for another name; 1 only for the same call."""
    if str(predicted["name"]).lower() != str(gold["name"]).lower():
        return 0.0
    p, g = (
        x["parameters"] if isinstance(x.get("parameters"), dict) else {} for x in (predicted, gold)
    )
    return (1 + jaccard(list(p), list(g)) + sum(k in p and p[k] == v for k, v in g.items())) / (
        2 + len(g)
    )


def match_scores(predicted: Sequence[Call], gold: Sequence[Call]) -> np.ndarray:
    """S [P, Q]; what `kernels.transport` takes for the soft matching."""
    return np.array([[call_score(p, g) for g in gold] for p in predicted]).reshape(
        len(predicted), len(gold)
    )


def match_rewards(score: np.ndarray, *, optimal: bool = True, penalty: float = 0.0) -> np.ndarray:
    """What each prediction earns: the score of its one partner, or `penalty` without one. Pairs of score 0 are no pairs.

    The paper's matching has the largest sum (Hungarian); released code is greedy by decreasing score (`optimal=False`; of equal scores
    the first in reading order), which has at least half of it.
    """
    reward = np.full(len(score), penalty)
    for i, j in (
        zip(*linear_sum_assignment(score, maximize=True), strict=True)
        if optimal
        else _greedy(score)
    ):
        if score[i, j] > 0:
            reward[i] = score[i, j]
    return reward


def matchtir(
    turns: Sequence[Sequence[Call]],
    gold: Sequence[Call],
    *,
    answer: str | None = None,
    gold_answer: str | None = None,
    optimal: bool = True,
    penalty: float = 0.0,
) -> list[float]:
    """One reward a turn: the mean over its calls (0 without any), and, where both answers are given, their F1 for the answer's turn."""
    calls = [call for turn in turns for call in turn]
    each = iter(
        match_rewards(match_scores(calls, gold), optimal=optimal, penalty=penalty) if calls else ()
    )
    rewards = [float(np.mean([next(each) for _ in turn])) if turn else 0.0 for turn in turns]
    return (
        rewards
        if answer is None or gold_answer is None
        else [*rewards, set_f1(answer, gold_answer)]
    )


def _greedy(score):
    rows, columns = set(), set()
    for place in np.argsort(-score, axis=None, kind="stable"):
        i, j = divmod(int(place), score.shape[1])
        if i not in rows and j not in columns:
            rows.add(i)
            columns.add(j)
            yield i, j
