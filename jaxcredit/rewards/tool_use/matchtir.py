"""MatchTIR, arXiv 2601.10712 and its released code: tool calls are matched with gold calls."""

from collections.abc import Sequence

import numpy as np
from scipy.optimize import linear_sum_assignment

from jaxcredit.rewards.text import jaccard, set_f1
from jaxcredit.rewards.tool_use.toolrl import Call


def call_score(predicted: Call, gold: Call) -> float:
    """Similarity of two calls: S = (1 + J(keys) + #equal gold values) / (2 + |params_gold|).

    J is the Jaccard index. S is 0 if the names differ, without regard to case, and 1 for equal
    calls.

    Args:
        predicted: the policy's call {"name": ..., "parameters": {...}}.
        gold: the gold call.

    Returns:
        A number in [0, 1].
    """
    if str(predicted["name"]).lower() != str(gold["name"]).lower():
        return 0.0
    p, g = (
        call["parameters"] if isinstance(call.get("parameters"), dict) else {}
        for call in (predicted, gold)
    )
    equal_values = sum(key in p and p[key] == value for key, value in g.items())
    return (1 + jaccard(list(p), list(g)) + equal_values) / (2 + len(g))


def match_scores(predicted: Sequence[Call], gold: Sequence[Call]) -> np.ndarray:
    """Similarities of all pairs of calls.

    `match_rewards` makes rewards of them, and `kernels.optimal_transport` a soft matching.

    Args:
        predicted: P calls of the policy.
        gold: Q gold calls.

    Returns:
        [P, Q], values of `call_score`.
    """
    scores = np.array([[call_score(p, g) for g in gold] for p in predicted])
    return scores.reshape(len(predicted), len(gold))


def match_rewards(score: np.ndarray, *, optimal: bool = True, penalty: float = 0.0) -> np.ndarray:
    """Reward of each predicted call: the similarity to the gold call that it is matched with.

    Args:
        score: [P, Q], similarities as from `match_scores`. Pairs with score 0 are never matched.
        optimal: use the matching with the largest sum (Hungarian algorithm), as in the paper.
            False: match pairs by decreasing score, ties in reading order, as in the released code.
        penalty: reward of a call without a match.

    Returns:
        [P] rewards.
    """
    reward = np.full(len(score), penalty)
    if optimal:
        pairs = zip(*linear_sum_assignment(score, maximize=True), strict=True)
    else:
        pairs = _greedy(score)
    for i, j in pairs:
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
    """Rewards of the turns: the mean reward of a turn's calls, and the F1 score of the answer.

    Args:
        turns: the policy's calls of each turn. A turn without calls has reward 0.
        gold: the gold calls of the whole trajectory.
        answer: the policy's final answer.
        gold_answer: the gold answer. If both answers are given, a last turn has their `set_f1`.
        optimal: as for `match_rewards`.
        penalty: as for `match_rewards`.

    Returns:
        One reward for each turn.
    """
    calls = [call for turn in turns for call in turn]
    scores = match_scores(calls, gold)
    earned = iter(match_rewards(scores, optimal=optimal, penalty=penalty) if calls else ())
    rewards = [float(np.mean([next(earned) for _ in turn])) if turn else 0.0 for turn in turns]
    if answer is None or gold_answer is None:
        return rewards
    return [*rewards, set_f1(answer, gold_answer)]


def _greedy(score):
    """Pairs (i, j) by decreasing score, each row and each column once."""
    rows, columns = set(), set()
    for index in np.argsort(-score, axis=None, kind="stable"):
        i, j = divmod(int(index), score.shape[1])
        if i not in rows and j not in columns:
            rows.add(i)
            columns.add(j)
            yield i, j
