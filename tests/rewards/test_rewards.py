"""Rewards: worked examples, properties that hold for any input, and texts that cannot be read."""

import doctest
import importlib
import itertools
import math
import pkgutil

import jax.numpy as jnp
import numpy as np
import pytest

from jaxcredit import losses, rewards
from jaxcredit.losses import Batch
from jaxcredit.rewards import Attempt


def test_examples_in_docstrings():
    names = [m.name for m in pkgutil.walk_packages(rewards.__path__, "jaxcredit.rewards.")]
    results = [doctest.testmod(importlib.import_module(name)) for name in names]
    assert sum(r.attempted for r in results) >= 5 and not any(r.failed for r in results)


def call(name, **parameters):
    return {"name": name, "parameters": parameters}


# texts


def test_multiset_jaccard():
    assert rewards.jaccard("aab", "abb") == 0.5
    assert rewards.jaccard([], []) == 1 and rewards.jaccard("a", "") == 0
    assert rewards.jaccard("ab", "ba") == 1


def test_answers_are_compared_without_case_articles_and_punctuation():
    assert rewards.exact_match(
        "The  Eiffel-Tower!", ["eiffeltower", "x"]
    ) and not rewards.exact_match("Eiffel", "Eiffel Tower")
    assert rewards.set_f1("the red house", "house, red") == 1
    assert rewards.set_f1("red", "red house blue") == pytest.approx(0.5)
    assert rewards.set_f1("", "house") == 0


# ToolRL

TOOLS = [call("search", q="x", n=3), call("calc", e="1+1")]


@pytest.mark.parametrize(
    ("predicted", "worth"),
    [
        (TOOLS, 3),
        ([call("search", q="y", n=3)], -0.5),
        ([call("calc", e="2"), call("search", q="x")], 0.5),
        ([call("foo")], -3),
        ([], -3),
        (TOOLS[::-1], 3),
    ],
)
def test_toolrl_example(predicted, worth):
    assert rewards.toolrl_calls(predicted, TOOLS) == pytest.approx(worth)


def test_toolrl_stays_in_its_bounds_and_an_extra_call_lowers_the_names_alone():
    rng = np.random.default_rng(0)

    def some():
        count = rng.integers(0, 4)
        return [
            call(
                rng.choice(["a", "b"]),
                **{k: int(rng.integers(2)) for k in rng.choice(list("xyz"), 2)},
            )
            for _ in range(count)
        ]

    values = [rewards.toolrl_calls(some(), gold) for gold in (some() for _ in range(300)) if gold]
    assert min(values) >= -3 and max(values) <= 3 and len(set(np.round(values, 6))) > 20
    extra = rewards.toolrl_calls([*TOOLS, call("foo")], TOOLS)
    assert extra == pytest.approx(-3 + 6 * (2 / 3 + 5) / 6)
    assert rewards.toolrl_calls(
        [call("search", q="x"), call("search", q="x")], [call("search", q="x")]
    ) == pytest.approx(-3 + 6 * 2.5 / 3)


def test_toolrl_reads_a_text():
    line = '{"name": "search", "parameters": {"q": "y", "n": 3}}'
    good = f"<think>so</think>\n<tool_call>\n{line}\n</tool_call>"
    assert rewards.toolrl(good, TOOLS) == pytest.approx(1 - 0.5)
    assert rewards.toolrl(good.replace("<think>", ""), TOOLS) == pytest.approx(-0.5)
    assert rewards.toolrl(good, TOOLS, answer=True) == pytest.approx(-0.5)
    assert rewards.toolrl(good + "\n<response>x</response>", TOOLS, answer=True) == pytest.approx(
        0.5
    )
    assert rewards.toolrl(good.replace("}\n", "\n"), TOOLS) == 1 - 3
    assert rewards.toolrl(good.replace('"name"', '"nom"'), TOOLS) == 1 - 3
    assert rewards.toolrl("", TOOLS) == -3
    assert (
        rewards.toolrl("<think>so</think>\n<response>x</response>", [], answer=True) == 1
    )  # nothing to call: the format alone
    assert rewards.toolrl(good + "<tool_call>", TOOLS) == pytest.approx(-0.5)  # a tag too many


# MatchTIR

PREDICTED = [call("search", q="x", n=3), call("search", q="y"), call("calc", e=1)]
GOLD = [call("Search", q="y", n=3), call("search", q="z")]


def test_matchtir_example():
    S = rewards.match_scores(PREDICTED, GOLD)
    np.testing.assert_allclose(S, [[0.75, 0.5], [0.625, 2 / 3], [0, 0]])
    np.testing.assert_allclose(rewards.match_rewards(S), [0.75, 2 / 3, 0])
    np.testing.assert_allclose(rewards.match_rewards(S, penalty=-0.5), [0.75, 2 / 3, -0.5])
    assert rewards.matchtir(
        [PREDICTED[:2], [], PREDICTED[2:]], GOLD, answer="red", gold_answer="red house"
    ) == pytest.approx([(0.75 + 2 / 3) / 2, 0, 0, 2 / 3])


def test_greedy_matching_is_not_optimal_and_at_least_half_of_it():
    S = np.array([[0.9, 0.8], [0.85, 0.1]])
    assert rewards.match_rewards(S, optimal=False).sum() == pytest.approx(1.0)
    assert rewards.match_rewards(S).sum() == pytest.approx(1.65)
    rng = np.random.default_rng(1)
    for _ in range(50):
        S = rng.random((rng.integers(1, 5), rng.integers(1, 5))) * rng.integers(0, 2, (1, 1))
        P, Q = S.shape
        wide = np.pad(S, ((0, 0), (0, P)))  # a partner of score 0 for whoever finds none
        most = max(
            sum(wide[i, j] for i, j in enumerate(p))
            for p in itertools.permutations(range(P + Q), P)
        )
        best, greedy = (rewards.match_rewards(S, optimal=o).sum() for o in (True, False))
        assert best == pytest.approx(most) and best + 1e-12 >= greedy >= best / 2 - 1e-12
        order = rng.permutation(P)
        np.testing.assert_allclose(rewards.match_rewards(S[order]), rewards.match_rewards(S)[order])


def test_matchtir_edges():
    assert rewards.matchtir([GOLD], GOLD) == [1.0]
    np.testing.assert_allclose(
        rewards.match_rewards(rewards.match_scores([*GOLD, GOLD[0]], GOLD)).sum(), 2
    )  # a copy earns nothing
    assert rewards.matchtir([[], []], GOLD) == [0, 0]
    assert rewards.matchtir([PREDICTED], [], penalty=-0.5) == [-0.5]
    assert rewards.call_score(
        {"name": "calc", "parameters": "1+1"}, call("calc", e=1)
    ) == pytest.approx(1 / 3)  # not JSON: the name alone
    tied = np.ones((2, 2)) * 0.5
    np.testing.assert_allclose(rewards.match_rewards(tied, optimal=False), [0.5, 0.5])


# paths, lengths


def test_kg_path_example():
    path = ["a", "r", "b"]
    assert rewards.kg_path(True, ["a", "r", "x"], path) == pytest.approx(1.2)
    assert rewards.kg_path(False, ["a"], ["a", "b", "c", "d"]) == pytest.approx(-0.7)
    assert rewards.kg_path(True, path, path) == pytest.approx(1.6)
    by_hits = [rewards.path_coverage(list("abcdefgh")[:n], list("abcdefgh")) for n in range(9)]
    assert by_hits == sorted(by_hits) and by_hits[-1] == 1.5
    assert by_hits[1] == pytest.approx(1.2 / 8)  # one hit: no bonus
    assert rewards.path_coverage(path, path, freshness=0.5) == 0.75
    assert rewards.path_coverage(path, []) == 0
    assert (
        rewards.distinct_share("a b c a b c".split()) == 0.75 and rewards.distinct_share(["a"]) == 1
    )


def test_train_long_think_short_example():
    tent = [rewards.near_budget(n, 100) for n in (50, 100, 150, 200, 250)]
    assert tent == pytest.approx([0.5, 1, 0.5, 0, 0])
    assert rewards.train_long_think_short(1, 1, 50, 100) == pytest.approx(0.7)
    for far in (0, 10, 70, 100):
        assert rewards.near_budget(100 - far, 100) == pytest.approx(
            rewards.near_budget(100 + far, 100)
        )
    assert rewards.near_budget(100, 100, most=2) == 2


def test_overlong():
    assert [rewards.overlong(n, 100, cushion=20) for n in (0, 80, 90, 100, 1000)] == pytest.approx(
        [0, 0, -0.5, -1, -1]
    )


# groups: trust, trace, thinking


def test_trust_example():
    r, p = [1, 1, 0, 0], [0.4, 0.6, 0.9, 0.5]
    assert rewards.trust(r, p) == pytest.approx(0.818731, abs=1e-6)
    R = rewards.trust_grpo(r, p, 600)
    assert R == pytest.approx([1.093456, 1.140184, 0.210276, 0.11682], abs=1e-6)
    z = (np.array(R) - np.mean(R)) / (np.std(R, ddof=1) + 1e-6)
    np.testing.assert_allclose(z, [0.82111, 0.905759, -0.778786, -0.948083], atol=1e-5)
    assert rewards.trust_grpo(r, p, 0, judged_from=0.2) == pytest.approx(
        [1 + 0.3 * 0.4, 1 + 0.3 * 0.6, 0, 0]
    )  # as released


def test_trust_goes_to_plain_rewards():
    r, p = [1, 1, 0, 0], [0.4, 0.6, 0.9, 0.5]
    assert rewards.trust_grpo(r, p, 1e7) == pytest.approx(r)
    assert rewards.trust_grpo([1, 1, 1], [0.1, 0.9, 0.5], 0) == [1, 1, 1] and rewards.trust_grpo(
        [0, 0.1], [0.1, 0.9], 0
    ) == [0, 0.1]
    assert rewards.trust_grpo([0.3, 0.4], [0.5, 1.0], 0) == pytest.approx(
        [0.45, 0.7]
    )  # nobody right: factor 1
    flat = np.array(rewards.trust_grpo(r, [0.7] * 4, 600)) - r
    assert np.ptp(flat) < 1e-12 and flat[0] > 0  # a constant, which a group's mean takes away
    rng = np.random.default_rng(2)
    for _ in range(100):
        assert 0 < rewards.trust(rng.integers(0, 2, 5), rng.random(5)) <= 1


def test_trace_example():
    group = [
        Attempt(True, 2, 4),
        Attempt(True, 3, 5),
        Attempt(True, 4, 7),
        Attempt(True, 6, 9),
        Attempt(True, 0, 2),
    ]
    group += [Attempt(False, 1, 3), Attempt(False, 3, 6), Attempt(False, 5, 8), Attempt(None)]
    R, after = rewards.trace(group, (3, 5))
    assert R == pytest.approx([1.20, 1.05, 0.98, 0.90, 1.00, -0.10, 0, -0.10, -0.5])
    assert after == (2, 4)
    assert rewards.cost_aware_score(0.8, 1200, 3) == pytest.approx(7.8049, abs=1e-4)


def test_trace_ranks_and_tightens():
    tied, _ = rewards.trace(
        [Attempt(True, 2, 4), Attempt(True, 2, 4), Attempt(True, 3, 1), Attempt(True, 3, 5)], (3, 5)
    )
    assert tied == pytest.approx([1.2, 1.2, 1.125, 1.05])
    assert rewards.trace([Attempt(True, 9, 9)], (3, 5)) == (
        [0.98],
        (3, 5),
    )  # alone beyond it: the better end; and nothing to learn
    assert rewards.trace([Attempt(True, 2, 9)], (3, 5)) == (
        [0.98],
        (2, 9),
    )  # fewer calls, more rounds: not within, yet lexicographically less
    assert rewards.trace([Attempt(False, 0, 0), Attempt(True, 0, 1)], (3, 5))[1] == (3, 5)
    first, reference = rewards.trace(
        [Attempt(True, 5, 6), Attempt(False, 1, 1), Attempt(None)], None
    )
    assert first == [1, 0, -0.5] and reference == (5, 6)
    rng = np.random.default_rng(3)
    for _ in range(100):
        group = [
            Attempt([True, False, None][rng.integers(3)], *map(int, rng.integers(0, 8, 2)))
            for _ in range(6)
        ]
        R, after = rewards.trace(group, reference)
        right, wrong = (
            [r for r, a in zip(R, group, strict=True) if bool(a.correct) is is_right]
            for is_right in (True, False)
        )
        assert min(right, default=1) > max(wrong, default=0) and after <= reference
        reference = after


def test_adaptive_thinking():
    long = [True, True, False, False]
    assert (
        rewards.preferred_mode([1, 1, 1, 0], long) == -1
        and rewards.preferred_mode([1, 0, 0, 0], long) == 1
    )
    assert (
        rewards.preferred_mode([0, 0, 0, 0], long) == 0
        and rewards.preferred_mode([1, 1], [True, True]) == 0
    )
    assert rewards.preferred_mode([1, 0, 0, 0], long, margin=0.6) == 0
    assert rewards.adaptive_thinking([1, 1, 1, 0], long) == [1, 1, 1.5, 0]
    assert rewards.adaptive_thinking([1, 0, 0, 0], long) == [1.5, 0, 0, 0]
    assert rewards.adaptive_thinking([1, 0, 0, 0], long, margin=0.6) == [1, 0, 0, 0]


# search

WELL = (
    "<think>a</think> <search>q</search>\n<information>Paris is big.</information>"
    "<think>b</think><answer>{}</answer>"
)


@pytest.mark.parametrize(
    ("text", "worth"),
    [
        (WELL.format("the Paris"), 1),
        ("<think>a<answer>Paris</answer>", 0.8),
        (WELL.format("Rome"), 0.3),
        (WELL.format("Rome").replace("Paris", "It"), 0.2),
        ("so <answer>Rome</answer>", 0.1),
        ("Rome", 0),
        ("", 0),
    ],
)
def test_search_r1_levels(text, worth):
    assert rewards.search_r1(text, ["Paris"]) == pytest.approx(worth)
    assert rewards.search_r1(text, ["Paris"], outcome_only=True) == (worth >= 0.8)


@pytest.mark.parametrize(
    "text",
    [
        "<think>a</think><search>q</search><think>b</think><answer>x</answer>",  # nothing was read
        "<think>a</think>so<answer>x</answer>",
        "<answer>x</answer>",
        "<think>a</think><answer>x</answer><think>b</think>",
        "<think>a<search>q</search></think><answer>x</answer>",
        "<think>a</think><answer>x",
    ],
)
def test_ill_formed_searches(text):
    assert not rewards.well_formed(text) and rewards.well_formed(
        "<think>a</think>\n<answer>x</answer>\n"
    )


def test_what_a_search_returned_is_not_in_the_loss():
    mask = jnp.array([[[True, False, False, True]]])

    def loss(logp, advantage):
        batch = Batch(
            mask,
            logp,
            advantage,
            jnp.ones((1, 1, 4)),
            jnp.ones((1, 1, 4)),
            jnp.zeros((1, 1, 4), jnp.int32),
        )
        numerator, denominator = losses.token_mean(losses.reinforce(logp, batch), batch)
        return numerator / denominator

    logp, advantage = jnp.array([[[-1.0, -2, -3, -4]]]), jnp.full((1, 1, 4), 0.5)
    assert loss(logp, advantage) == 1.25
    assert (
        loss(logp.at[0, 0, 1].set(-9), advantage.at[0, 0, 2].set(7))
        == 1.25
        != loss(logp.at[0, 0, 0].set(-9), advantage)
    )


def test_reseek():
    ideal = rewards.ideal_judgments([0.9, 0.5, 0.1])
    assert ideal == [True, True, False]
    assert rewards.reseek([True, False, False], ideal, 1.0, right=0.2, wrong=-0.3) == [
        0.2,
        -0.3,
        0.2,
        1,
    ]
    assert rewards.reseek([], [], 0.0) == [0]
    # What was judged useless cannot matter: any text in its place leaves the same context.
    assert (
        rewards.useful_results(["a", "b", "c"], [True, False, True])
        == rewards.useful_results(["a", "other", "c"], [True, False, True])
        == ["a", "c"]
    )


def test_re_searcher():
    assert rewards.re_searcher(1, [True, False], [True, True]) == pytest.approx(1 + 0.1 + 0.1)
    assert rewards.re_searcher(0, [], [], formed=False) == 0
    turns = rewards.re_searcher_turns([True, False], [True, True], 1)
    assert turns == pytest.approx([0.1, 0, 1])
    assert sum(turns) + 0.1 == pytest.approx(rewards.re_searcher(1, [True, False], [True, True]))


def test_adasearch():
    assert rewards.decision_f1([1, 1, 0, 0], [1, 0, 0, 1]) == 0.5
    assert rewards.decision_f1([0, 0], [1, 0]) == 0 and rewards.decision_f1([1, 0], [1, 0]) == 1
    assert rewards.knows([1, 0]) and not rewards.knows([1, 0, 0]) and not rewards.knows([])
    assert rewards.adasearch_answer("The Nile.", "nile") == 1
    assert [
        rewards.adasearch_decision(e, True, c) for e in (True, False) for c in (True, False)
    ] == [1, 0.5, 0.5, 0]


# OpAgent


def test_opagent_example():
    process = [-0.001, 0, -0.001, 0]
    assert rewards.normalized_process(process) == pytest.approx([-0.5, 0, -0.5, 0], abs=1e-5)
    assert rewards.opagent(process, 1, 1) == pytest.approx([0.95, 1, 0.95, 1], abs=1e-6)
    assert rewards.opagent(process, 0.3, 1) == pytest.approx([-0.75, -0.7, -0.75, -0.7], abs=1e-6)
    assert rewards.opagent([0, 0], 0.7, 1, threshold=0.5) == [
        1,
        1,
    ]  # nothing to blame: the outcome alone
    assert rewards.normalized_process([]) == []
    rng = np.random.default_rng(4)
    for _ in range(50):
        norm = rewards.normalized_process(rng.choice([0, -0.001], 6))
        assert max(abs(sum(norm[k:])) for k in range(6)) <= 1


def test_opagent_rules_apply_in_their_order():
    step = rewards.browser_step
    assert (
        step(failed=True, url_changed=True) == -0.001
        and step(url_changed=True, similarity=1.0) == 0
    )
    assert (
        step(on_element=True, similarity=1.0) == 0 and step(similarity=1.0, progress=True) == -0.001
    )
    assert (
        step(similarity=0.9, progress=True) == 0
        and step(similarity=0.9, progress=False) == step() == -0.001
    )


# GTAlign


def test_gtalign_example():
    user, model = rewards.gtalign_utilities(
        1, response_words=200, words=700, reasoning_chars=300, formed=1, payoff=1
    )
    assert (user, model) == pytest.approx((0.7810, 0.9196), abs=5e-5)
    assert math.sqrt(user * model) == pytest.approx(0.8475, abs=5e-5)


def test_gtalign_reads_a_text():
    cells = {
        "DQ_AQ": (4, 3),
        "DQ_CQ": (3, 3),
        "DQ_DA": (10, 9.5),
        "VQ_AQ": (1, 2),
        "VQ_CQ": (0, 0),
        "VQ_DA": (-1, 1),
    }
    payoff = {name: {"user": u, "LLM": v} for name, (u, v) in cells.items()}
    assert rewards.payoff_reward(payoff) == pytest.approx(7 / 12)
    block = str(payoff).replace("'", '"')
    text = (
        f"<thinking>hm</thinking>\n<payoff>{block}</payoff>\n<analyze>so</analyze>\n"
        "<response>it is 2</response>"
    )
    user, model = rewards.gtalign_read(text, 1)
    assert (
        rewards.gtalign(text, 1) == pytest.approx(math.sqrt(user * model))
        and rewards.gtalign(text, 1) > rewards.gtalign(text, 0) > 0
    )
    chars = len(text.split("<response>")[0])
    assert user == pytest.approx(
        0.5001 + 0.2 * rewards.length_window(3, 20, 500) + 0.3 * math.exp(-chars / 500)
    )
    loose = rewards.gtalign_read(text.replace("<analyze>so</analyze>", ""), 1)
    assert model - loose[1] == pytest.approx(0.2, abs=1e-3)  # not well formed
    for bad in (
        "",
        text.replace("DQ_AQ", "XX"),
        text.replace('"user": 4', '"user": "much"'),
        text.replace("</payoff>", ""),
    ):
        assert rewards.gtalign(bad, 1) == 0
    assert rewards.length_window(10**7, 20, 500) < 1e-100  # and no overflow
