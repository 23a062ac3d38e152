"""Accuracy, pass@k and intervals, compared with brute force."""

import itertools

import numpy as np
import pytest

from jaxcredit.tasks import statistics


@pytest.mark.parametrize("n", [1, 2, 5, 7])
def test_pass_at_k_is_the_mean_over_all_subsets(n):
    scores = np.array([[1.0] * c + [0.0] * (n - c) for c in range(n + 1)])
    for k in range(1, n + 1):
        brute = [
            np.mean([row[list(s)].max() for s in itertools.combinations(range(n), k)])
            for row in scores
        ]
        np.testing.assert_allclose(statistics.pass_at_k(scores, k), brute, atol=1e-12)


def test_pass_at_k_counts_only_full_marks_and_names_what_is_missing():
    scores = np.array([[0.5, 0.9], [1.0, 0.2]])
    np.testing.assert_allclose(statistics.pass_at_k(scores, 1), [0, 0.5])
    np.testing.assert_allclose(statistics.pass_at_k(scores, 1, solved=0.5), [1, 0.5])
    with pytest.raises(ValueError, match=r"pass@3 needs at least 3 answers.*there are 2"):
        statistics.pass_at_k(scores, 3)


def test_wilson_solves_its_equation_and_is_honest_at_the_ends():
    z = 1.959964
    for right, total in [(0, 10), (3, 10), (10, 10), (460, 512)]:
        p, low, high = statistics.wilson(right, total)
        assert p == right / total and 0 <= low <= p <= high <= 1
        for bound in (low, high):  # each bound is a share whose z-test just rejects p
            assert abs((p - bound) ** 2 - z * z * bound * (1 - bound) / total) < 1e-9
    assert statistics.wilson(0, 10).high > 0.2 and statistics.wilson(10, 10).low < 0.8
    with pytest.raises(ValueError, match="3 right of 2"):
        statistics.wilson(3, 2)


def test_bootstrap_is_seeded_and_covers():
    rng = np.random.default_rng(0)
    values = rng.normal(size=200)
    a, b = statistics.bootstrap(values, seed=3), statistics.bootstrap(values, seed=3)
    assert a == b != statistics.bootstrap(values, seed=4)
    half = 1.96 * values.std() / np.sqrt(200)
    assert a.value == pytest.approx(values.mean()) and a.high - a.value == pytest.approx(
        half, rel=0.2
    )
    covered = [
        (e := statistics.bootstrap(rng.normal(size=60), draws=300, seed=i)).low < 0 < e.high
        for i in range(200)
    ]
    assert 0.88 <= np.mean(covered) <= 0.99
    with pytest.raises(ValueError, match="average over a prompt's answers"):
        statistics.bootstrap(np.zeros((3, 2)))


def test_summary_of_a_worked_example():
    scores = np.array([[1.0, 0, 0, 0], [1, 1, 1, 1], [0, 0, 0, 0]])
    lengths = np.array([[2, 9, 9, 9], [4, 4, 4, 4], [9, 9, 9, 9]])
    done = lengths < 9
    out = statistics.summary(
        scores, greedy=np.array([0, 1, 1]), lengths=lengths, done=done, ks=(1, 2)
    )
    assert out["mean@4"].value == pytest.approx(5 / 12) and out["pass@1"].value == pytest.approx(
        5 / 12
    )
    assert out["pass@2"].value == pytest.approx((0.5 + 1 + 0) / 3)
    assert out["greedy_accuracy"] == statistics.wilson(2, 3)
    assert out["mixed"] == pytest.approx(1 / 3) and out["truncated"] == pytest.approx(7 / 12)
    assert (
        out["length_right/mean"] == pytest.approx(18 / 5)
        and out["length_right/min"] == 2
        and out["length_right/median"] == 4
    )
    assert out["length_wrong/min"] == out["length_wrong/max"] == 9


def test_unscored_answers_are_in_no_mean_and_counted():
    nan = np.nan
    scores = np.array([[1.0, 0, nan], [nan, nan, nan], [1, 1, nan], [0, nan, nan]])
    out = statistics.summary(scores, greedy=np.array([1, nan, 0.5, nan]), ks=(1, 2))
    assert out["unscored"] == 7 + 2
    assert out["mean@3"].value == pytest.approx((0.5 + 1 + 0) / 3) and out[
        "mixed"
    ] == pytest.approx(1 / 3)
    np.testing.assert_allclose(statistics.pass_at_k(scores, 1), [0.5, nan, 1, 0])
    np.testing.assert_allclose(statistics.pass_at_k(scores, 2), [1, nan, 1, nan])
    assert out["pass@1"].value == pytest.approx(0.5) and out["pass@2"].value == 1
    assert out["greedy_accuracy"] == statistics.wilson(1, 2) and out["greedy_reward"].value == 0.75
    nothing = statistics.summary(
        np.full((2, 2), nan), greedy=np.full(2, nan), lengths=np.ones((2, 2)), done=np.ones((2, 2))
    )
    assert nothing == {"unscored": 6.0, "truncated": 0.0}
    assert "unscored" not in statistics.summary(np.zeros((2, 2)))


def test_what_summary_refuses():
    with pytest.raises(ValueError, match=r"must be \[prompts, answers\], got shape \(3,\)"):
        statistics.summary(np.zeros(3))
    with pytest.raises(ValueError, match="1 scores are not finite; the first is of prompt 1"):
        statistics.summary(np.array([[0.0], [np.inf]]))
    with pytest.raises(ValueError, match=r"lengths has shape \(2, 3\), the scores \(2, 2\)"):
        statistics.summary(np.zeros((2, 2)), lengths=np.zeros((2, 3)))


def test_the_table_shows_every_number_of_every_run():
    from rich.console import Console

    before, after = (
        statistics.summary(np.zeros((4, 2))),
        statistics.summary(np.ones((4, 2)), greedy=np.ones(4)),
    )
    console = Console(width=120, record=True, file=open("/dev/null", "w"))
    with console.file:
        console.print(statistics.table({"before": before, "after": after}, "sums"))
        text = console.export_text()
    line = next(row for row in text.splitlines() if "greedy_accuracy" in row)
    assert (
        "sums" in text and "before" in text and "-" in line and "1.000" in line and "pass@2" in text
    )


def test_equal_means_and_pass_rates_are_one_row_of_the_table():
    def names(scores):
        numbers = statistics.summary(np.asarray(scores), ks=(1, 2), done=np.ones((3, 2)))
        return [name for name, _ in statistics.table({"run": numbers}).texts]

    assert names([[1.0, 0], [0, 0], [1, 1]]) == ["mean@2, pass@1", "pass@2", "mixed", "truncated"]
    assert names([[0.5, 0], [0, 0], [1, 1]])[:3] == ["mean@2", "pass@1, pass@2", "mixed"], (
        "a graded reward is not a share of solved ones"
    )
