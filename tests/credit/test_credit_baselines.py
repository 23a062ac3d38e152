"""Baselines and token transforms: the examples of their papers, both readings where sources differ, and what reduces to what."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from comparisons import assert_close
from reference_loops import LOOPS
from small_rollouts import assert_matches_loop, jitted, one_prompt, random_rollout

import jaxcredit.credit as catalogue
from jaxcredit import kernels
from jaxcredit.credit.trees.sploo import bold, l1, l1_bold, mid, p0, safe
from jaxcredit.rollout import Rollout

dr_grpo, entropy_mask, gdpo, gpg, grpo = (
    jitted(getattr(catalogue, n)) for n in ("dr_grpo", "entropy_mask", "gdpo", "gpg", "grpo")
)
attention_rhythm, hicra, otb, passk = (
    jitted(getattr(catalogue, n)) for n in ("attention_rhythm", "hicra", "otb", "passk")
)
ppo, prime, r_to_q_star, rloo, t_reg, vapo = (
    jitted(getattr(catalogue, n)) for n in ("ppo", "prime", "r_to_q_star", "rloo", "t_reg", "vapo")
)
reinforce_pp_baseline = jitted(catalogue.reinforce_pp_baseline)
sploo = jax.jit(
    catalogue.sploo, static_argnames=("kurtosis", "normalize")
)  # its numbers are traced: one program for all of them


def changed(rollout, **fields):
    return Rollout(**{**vars(rollout), **fields})


# ---------------------------------------------------------------- other readings and knobs, against the loops

READINGS = {
    "gpg paper": (gpg, LOOPS["gpg"], "", {"form": "paper"}),
    "passk plain": (passk, LOOPS["passk"], "", {"normalize": False}),
    "gdpo": (gdpo, LOOPS["gdpo"], "components", {"weights": (1.0, 0.5, -2.0), "per_token": False}),
    "vapo": (
        vapo,
        LOOPS["vapo"],
        "token_value",
        {"alpha": 0.3, "gamma": 0.9, "critic_lam": 0.8, "whiten": False},
    ),
    "otb tail": (otb, LOOPS["otb"], "prob_square", {"zero_tail": True}),
    "prime code": (
        prime,
        LOOPS["prime"],
        "prm_logp ref_logp",
        {"form": "code", "gamma": 0.9, "whiten": True},
    ),
    "hicra code": (
        partial(hicra, base=catalogue.grpo),
        LOOPS["hicra"],
        "planning entropy",
        {"form": "code"},
    ),
    "rhythm local": (
        attention_rhythm,
        LOOPS["attention_rhythm"],
        "waad fai",
        {"strategy": "local"},
    ),
    "rhythm global": (
        attention_rhythm,
        LOOPS["attention_rhythm"],
        "waad fai",
        {"strategy": "global", "share": 0.2},
    ),
    "rhythm alpha": (
        attention_rhythm,
        LOOPS["attention_rhythm"],
        "waad fai",
        {"alpha": 0.2, "window": 2},
    ),
    "sploo evidence": (sploo, LOOPS["sploo"], "", {"lam": 0.7, "a": 4.0, "c": 0.5, "c_b": 1.5}),
}


# Two programs a reading: those that are another formula, not another number, are asked in the fast stage.
FAST = ("gpg paper", "prime code", "hicra code", "rhythm local", "sploo evidence")


@pytest.mark.parametrize(
    "reading", [pytest.param(r, marks=() if r in FAST else pytest.mark.slow) for r in READINGS]
)
def test_readings(reading):
    credit, loop, needs, knobs = READINGS[reading]
    rollout = random_rollout(
        21, needs.split(), T=14, **({"R": 9, "G": 8} if credit is sploo else {"R": 7, "G": 5})
    )
    assert_matches_loop(
        partial(credit, **knobs),
        partial(loop, **knobs),
        rollout,
        atol=4e-5,
    )


# ---------------------------------------------------------------- baselines


def test_baseline_examples():
    rollout = one_prompt([1, 0, 0, 1])
    assert_close(gpg(rollout)[0, :, 0], [1, -1, -1, 1])  # alpha = 4 / 2
    assert_close(gpg(rollout, form="paper")[0, :, 0], [0.5, -0.5, -0.5, 0.5])
    assert (passk(rollout) == 0).all()  # a tie at the top
    two = one_prompt([1, 0], [[1, 1, 1], [2, 2, 0]], action_mask=[[1, 1, 1], [1, 1, 0]])
    assert_close(
        reinforce_pp_baseline(two, ddof=1, eps=0.0)[0],
        [[0.730297] * 3, [-1.095445, -1.095445, 0]],
        1e-5,
    )
    r = np.array([0.2, 1.0, 0.5, 0.5])
    assert_close(passk(one_prompt(r), eps=0.0)[0, :, 0], [0, 0.5 / r.std(), 0, 0])
    assert_close(passk(one_prompt(r), ddof=1, eps=0.0)[0, :, 0], [0, 0.5 / r.std(ddof=1), 0, 0])


def test_reinforce_pp_baseline_is_dr_grpo_whitened():
    rollout = random_rollout(1)
    far, A = dr_grpo(rollout), reinforce_pp_baseline(rollout)
    assert_close(A, kernels.standardize(far, where=rollout.action_mask), 1e-5)
    chosen = np.asarray(A, np.float64)[np.asarray(rollout.action_mask)]
    # The mean that was subtracted is a float32 sum, term by term with jax 0.7.2.
    assert abs(chosen.mean()) < 2e-5 and abs(chosen.std() - 1) < 1e-3
    assert (jnp.abs(A - far) > 1e-2).any()


def test_gpg_is_dr_grpo_where_every_outcome_counts():
    rollout = random_rollout(2, kinds=(1,))
    assert_close(gpg(rollout), dr_grpo(rollout))
    some = jnp.asarray(rollout.segment_mask).any(-1)
    none = changed(rollout, reward=jnp.where(jnp.arange(6)[:, None] == 0, 0.0, rollout.reward))
    count = (
        some.sum() / (some & (jnp.where(rollout.segment_mask, none.reward, 0).sum(-1) != 0)).sum()
    )
    assert_close(gpg(none), count * dr_grpo(none))
    assert count > 1.05
    assert_close(gpg(none, f_norm=2.0), gpg(none) / 2)


def test_passk_credits_one_at_most_and_shifts_change_nothing():
    rollout = random_rollout(3)
    A = np.asarray(jnp.where(rollout.action_mask, passk(rollout), 0)).max(-1)
    assert (A >= 0).all() and ((A > 0).sum(-1) <= 1).all() and (A > 0).any()


def test_gdpo_with_one_component_is_grpo_whitened_and_tells_combinations_apart():
    rollout = random_rollout(4)
    one = rollout.with_signals(
        components=jnp.where(rollout.segment_mask, rollout.reward, 0).sum(-1, keepdims=True)
    )
    assert_close(gdpo(one), kernels.standardize(grpo(rollout), where=rollout.action_mask), 1e-4)
    halves = one.with_signals(
        components=jnp.concatenate([one["components"] * 0.3, one["components"] ** 2], -1)
    )
    assert (jnp.abs(gdpo(halves) - gdpo(one)) > 1e-2).any()
    parts = np.array(
        [[1, 0], [0, 1], [0, 0], [0, 0], [0, 1], [0, 1]]
    )  # equal sums of the first two: the rarer part is worth more
    A = gdpo(one_prompt(parts.sum(-1), components=parts))[0, :, 0]
    assert (
        A[0] > A[1] + 0.1
        and abs(grpo(one_prompt(parts.sum(-1)))[0, 0, 0] - grpo(one_prompt(parts.sum(-1)))[0, 1, 0])
        < 1e-6
    )


def test_gdpo_by_trajectory_counts_every_answer_once():
    parts = [[1.0, 0], [0, 0], [0, 2]]
    rollout = one_prompt(
        [1, 0, 2],
        np.zeros((3, 8)),
        action_mask=np.arange(8) < np.array([[1], [8], [3]]),
        components=parts,
    )
    once = np.asarray(gdpo(rollout, per_token=False)[0, :, 0])
    assert abs(once.sum()) < 1e-5 and abs(once.std() - 1) < 1e-4
    assert (
        abs(np.asarray(gdpo(rollout)[0]).sum())
        < 1e-4
        < abs(np.asarray(gdpo(rollout)[0, :, 0]).sum())
    )


def test_vapo_looks_further_the_longer_the_answer():
    """lambda is 0, 0.8 and 0.98 at 20, 100 and 1000 tokens; a value that is 1 in one place only shows its decay."""
    length, lam = np.array([20, 100, 1000, 7]), np.array([0, 0.8, 0.98, 0])
    mask = jnp.asarray(np.arange(1000) < length[:, None])[:, None]
    zero = jnp.zeros(mask.shape)
    rollout = Rollout(zero.astype(int), mask, zero, zero.astype(int), zero[..., :1], mask[..., :1])
    A = vapo(rollout.with_signals(token_value=zero.at[:, :, 2].set(1.0)), whiten=False)[
        "advantage"
    ][:, 0]
    assert_close(A[:, :3], np.stack([lam - lam**2, 1 - lam, -np.ones(4)], -1), 1e-4)


@pytest.mark.slow
def test_vapo_is_ppo_where_lengths_are_equal():
    rollout = random_rollout(5, ("token_value",))
    same = changed(
        rollout,
        action_mask=jnp.broadcast_to(jnp.arange(20) >= 4, rollout.action_mask.shape),
        segment=jnp.full(rollout.action_mask.shape, 0),
    )
    got, part = vapo(same, alpha=0.25, whiten=False), ppo(same, lam=0.75, whiten=False)
    assert_close(got["advantage"], part["advantage"], 1e-4)
    assert_close(got["target"], ppo(same, lam=1.0, whiten=False)["target"], 1e-4)
    assert (jnp.abs(got["target"] - part["target"]) > 1e-2).any()
    far = (
        vapo(rollout, alpha=0.25, whiten=False)["advantage"]
        - ppo(rollout, lam=0.75, whiten=False)["advantage"]
    )
    assert (jnp.abs(far) > 1e-2).any()


def test_otb_weighs_returns_by_their_uncertainty_so_far():
    logp, square = (
        np.log([[0.5, 0.5], [0.9, 0.25], [0.2, 1.0]]),
        [[0.5, 0.5], [0.82, 0.25], [0.4, 1.0]],
    )
    w = 1 - 2 * np.exp(logp) + square
    mask = np.array([[1, 1], [1, 1], [1, 0]])
    W = np.cumsum(w * mask, -1)
    r = np.array([1.0, 0.0, 0.5])
    base = [(r * W[:, 0]).sum() / W[:, 0].sum(), (r * W[:, 1])[:2].sum() / W[:2, 1].sum()]
    rollout = one_prompt(r, np.zeros((3, 2)), action_mask=mask, logp=logp, prob_square=square)
    assert_close(otb(rollout)[0], (r[:, None] - base) * mask)
    even = one_prompt(
        r, np.zeros((3, 2)), logp=np.full((3, 2), np.log(0.5)), prob_square=np.full((3, 2), 0.5)
    )
    assert_close(otb(even), dr_grpo(even))  # equal weights: the mean
    assert (jnp.abs(otb(rollout)[0, :, 0] - dr_grpo(rollout)[0, :, 0]) > 1e-3).all()
    sure = one_prompt(r, np.zeros((3, 2)), logp=np.zeros((3, 2)), prob_square=np.ones((3, 2)))
    assert_close(otb(sure), dr_grpo(sure))  # nothing uncertain: the mean as well, not 0 / 0


def test_otb_beyond_the_second_longest():
    rollout = one_prompt(
        [1, 0],
        np.zeros((2, 4)),
        action_mask=[[1, 1, 1, 1], [1, 1, 0, 0]],
        prob_square=np.full((2, 4), 1.5),
    )
    assert_close(otb(rollout)[0, 0], [0.5, 0.5, 0, 0])
    assert_close(otb(rollout, zero_tail=True)[0, 0], [0.5, 0.5, 1, 1])


# ---------------------------------------------------------------- token transforms


def test_hicra_examples_and_what_it_leaves():
    rollout = random_rollout(6, ("planning",))
    A, base, plans = hicra(rollout), dr_grpo(rollout), rollout["planning"] > 0
    assert_close(A, jnp.where(plans, base + 0.2 * jnp.abs(base), base))
    assert (A >= base).all() and (jnp.sign(A) == jnp.sign(base)).all() and (A > base).any()
    assert_close(hicra(rollout, alpha=0.0), base)
    assert_close(hicra(rollout.with_signals(planning=jnp.zeros_like(rollout["planning"]))), base)
    assert_close(
        hicra(one_prompt([1, 0], planning=[[1, 0, 1]] * 2))[0],
        [[0.6, 0.5, 0.6], [-0.4, -0.5, -0.4]],
    )


def test_hicra_code_takes_unsure_tokens_of_long_right_answers():
    H = np.tile(np.arange(10.0), (3, 1))
    mask = np.arange(10) < np.array([[10], [4], [10]])
    rollout = one_prompt(
        [1, 1, 0], np.zeros((3, 10)), action_mask=mask, planning=np.zeros((3, 10)), entropy=H
    )
    A, base = hicra(rollout, form="code")[0], dr_grpo(rollout)[0]
    assert_close(
        A[0] / base[0], [1] * 8 + [1.2] * 2
    )  # above the eighth smallest: the top 30 percent less its least
    assert_close(A[1:], base[1:])  # right but short; wrong
    with pytest.raises(KeyError, match="entropy"):
        hicra(one_prompt([1, 0], planning=np.zeros((2, 3))), form="code")


def test_a_transform_takes_any_credit_of_one_prompt():
    rollout = random_rollout(7, ("planning", "stratum"))
    san = partial(catalogue.san, alpha=0.3)
    base = jax.jit(san)(rollout)
    assert_close(
        hicra(rollout, base=san),
        jnp.where(rollout["planning"] > 0, base + 0.2 * jnp.abs(base), base),
    )
    with pytest.raises(ValueError, match="reinforce_pp takes statistics over the batch"):
        hicra(rollout, base=catalogue.reinforce_pp)


MAP = np.array(
    [
        [1, 0, 0, 0, 0],
        [0.5, 0.5, 0, 0, 0],
        [0.1, 0.2, 0.7, 0, 0],
        [0.6, 0.1, 0.1, 0.2, 0],
        [0.1, 0.1, 0.5, 0.1, 0.2],
    ]
)


def test_attention_examples():
    att = jnp.asarray(MAP, jnp.float32)
    assert_close(kernels.waad(att, 2), [0, 0.5, 0.4, 1.5, 1.5])
    assert_close(kernels.fai(att, 1, 3), [0.4, 0.133333, 0.3, 0.1, 0], 1e-5)
    assert_close(kernels.mean_attention_distance(att), 0.96)
    assert (kernels.fai(att) == 0).all()  # shorter than the nearest future
    assert_close(
        kernels.fai(att, 1, 3, where=jnp.arange(5) < 4), [0.4, 0.15, 0.1, 0, 0], 1e-5
    )  # the fifth is padding
    eye, first = jnp.eye(5), jnp.zeros((5, 5)).at[:, 0].set(1.0)
    near_map, far_map = kernels.local_and_global_maps(jnp.stack([att, first, eye]))
    assert_close(near_map, eye)
    assert_close(far_map, first)
    mixed = kernels.local_and_global_maps(jnp.stack([att, first, eye]), share=0.7)
    assert_close(mixed[0], (eye + att) / 2)


def test_rhythm_examples():
    """The example's map: changes .5 .1 1.1 0, so the top one is token 2; token 0 is seen most."""
    waad, fai = [[0, 0.5, 0.4, 1.5, 1.5]] * 2, [[0.4, 0.133333, 0.3, 0.1, 0]] * 2
    rollout = one_prompt([1, 0], np.zeros((2, 5)), waad=waad, fai=fai)
    base = grpo(rollout)[0]
    assert_close(
        attention_rhythm(rollout, strategy="local", share=0.25)[0] / base, [[1, 1, 1.5, 1, 1]] * 2
    )
    assert_close(
        attention_rhythm(rollout, strategy="global", share=0.25)[0] / base, [[1.5, 1, 1, 1, 1]] * 2
    )
    late = rollout.with_signals(
        fai=jnp.asarray([[[0.1, 0.1, 0.1, 0.1, 0.9]] * 2]),
        waad=jnp.asarray([[[0.1, 0.5, 0.4, 1.5, 0.0]] * 2]),
    )
    # token 4 is an anchor that looks back little, introduced by token 3: they share its extra weight
    gain = np.asarray(attention_rhythm(late, share=0.2, alpha=0.3)[0] / base)[0] - 1
    assert_close(gain, [0, 0, 0, 0.5 * 0.3, 0.5 * 0.7])
    assert_close(
        attention_rhythm(late, share=0.2, window=0)[0] / base, [[1, 1, 1, 1, 1.5]] * 2
    )  # nobody introduces it: the global strategy
    with pytest.raises(ValueError, match="choose from .coupled., .local., .global."):
        catalogue.attention_rhythm(rollout, strategy="both")


def test_rhythm_reductions():
    rollout = random_rollout(8, ("waad", "fai"))
    base = grpo(rollout)
    assert_close(attention_rhythm(rollout, amplify=1.0), base)
    for strategy in ("local", "global"):
        gain = np.asarray(
            jnp.where(
                base != 0,
                attention_rhythm(rollout, strategy=strategy) / jnp.where(base != 0, base, 1),
                1,
            )
        )
        assert set(np.unique(gain.round(5))) == {1.0, 1.5}
    assert (
        jnp.abs(attention_rhythm(rollout) - attention_rhythm(rollout, strategy="global")) > 1e-3
    ).any()
    none = rollout.with_signals(
        fai=jnp.zeros_like(rollout["fai"])
    )  # answers shorter than the nearest future
    assert_close(attention_rhythm(none), base)
    assert_close(attention_rhythm(none, strategy="global"), base)


def test_entropy_mask_keeps_a_share_of_the_batch():
    rollout = random_rollout(9, ("entropy",))
    out, n = entropy_mask(rollout), int(rollout.action_mask.sum())
    assert_close(out["advantage"], grpo(rollout))
    assert int(out["weight"].sum()) == int(np.ceil(0.2 * n)) and set(np.unique(out["weight"])) == {
        0.0,
        1.0,
    }
    kept = np.asarray(out["weight"]) > 0
    H = np.asarray(rollout["entropy"])
    assert H[kept].min() > H[np.asarray(rollout.action_mask) & ~kept].max()
    assert (entropy_mask(rollout, rho=1.0)["weight"] == rollout.action_mask).all()


def test_t_reg_example_and_swapped_prompts():
    better, worse = np.log([[0.5, 0.2, 0.3]]), np.log([[0.25, 0.4, 0.3]])
    rollout = one_prompt([0], better_logp=better, worse_logp=worse)
    A = t_reg(rollout)[0, 0]
    assert_close(A, [0.166667, -0.166667, 0], 1e-5)
    assert_close(
        -(0.1 * A * np.log([0.4, 0.3, 0.2])).sum(), -0.004795, 1e-5
    )  # the policy-gradient loss of the credit, beta = 0.1
    assert_close(t_reg(one_prompt([0], better_logp=worse, worse_logp=better))[0, 0], -A)
    assert (t_reg(one_prompt([0], better_logp=better, worse_logp=better)) == 0).all()
    two = one_prompt([1, 0], better_logp=np.tile(better, (2, 1)), worse_logp=np.tile(worse, (2, 1)))
    assert_close(t_reg(two, mix=0.25, base=catalogue.grpo)[0, 0], 0.75 + 0.25 * A)


def test_r_to_q_star_example_and_expectation():
    assert_close(
        r_to_q_star(
            one_prompt([0], [[1, 2]], logp=np.log([[0.5, 0.2]]), ref_logp=np.log([[0.4, 0.4]]))
        )[0, 0],
        [0.022314, -0.069315],
        1e-5,
    )
    pi, ref = (
        np.random.default_rng(s).dirichlet(np.ones(50), 3) for s in (0, 1)
    )  # every action of three states
    A = r_to_q_star(
        one_prompt([0] * 3, np.zeros((3, 50)), logp=np.log(pi), ref_logp=np.log(ref)), beta=0.7
    )[0]
    assert_close((ref * np.exp(A / 0.7)).sum(-1), 1, 1e-5)
    assert_close((pi * np.exp(-A / 0.7)).sum(-1), 1, 1e-5)
    assert_close(A.sum(-1), 0.7 * (np.log(pi) - np.log(ref)).sum(-1), 1e-4)


def test_prime_against_the_others_mean_token():
    rollout = random_rollout(10, ("prm_logp", "ref_logp"), R=7, G=5)
    same = rollout.with_signals(prm_logp=rollout["ref_logp"])
    assert_close(prime(same), rloo(same))
    assert (jnp.abs(prime(rollout) - rloo(rollout)) > 1e-3).any()
    small = one_prompt(
        [1, 0], [[1, 1], [2, 2]], prm_logp=[[1, 2], [4, 6]], ref_logp=np.zeros((2, 2))
    )
    assert_close(
        prime(small, beta=1.0)[0], [[1 + 3 - 10, 1 + 2 - 5], [-1 + 10 - 3, -1 + 6 - 1.5]]
    )  # mean tokens 1.5 and 5
    assert_close(
        prime(small, beta=1.0, form="code")[0],
        [[1 + 6 - 13, 1 + 4 - 6.5], [-1 + 20 - 13, -1 + 12 - 6.5]],
    )


# ---------------------------------------------------------------- order statistics


@pytest.mark.parametrize("dtype", ["float32", pytest.param("float64", marks=pytest.mark.slow)])
def test_kth_largest_is_the_sorts(dtype):
    with jax.enable_x64(True):
        rng = np.random.default_rng(0)
        x = (
            rng.normal(size=(40, 30))
            * 10.0 ** rng.integers(-40 if dtype == "float64" else -30, 30, (40, 30))
        ).astype(dtype)
        x[::3] = np.round(rng.normal(size=(14, 30)))  # ties, zeros of both signs
        where = rng.random((40, 30)) < 0.7
        k = np.minimum(rng.integers(1, 30, 40), where.sum(-1))
        got = np.asarray(
            jax.jit(kernels.kth_largest)(jnp.asarray(x), jnp.asarray(k), jnp.asarray(where))
        )
        want = [np.sort(row[w])[::-1][n - 1] for row, w, n in zip(x, where, k, strict=True)]
        assert got.dtype == dtype and (got == want).all()
        assert (
            np.isinf(kernels.kth_largest(jnp.asarray(x[0]), jnp.asarray(0)))
            and not kernels.top_share(jnp.asarray(x[0]), 0.3, jnp.zeros(30, bool)).any()
        )
    assert [
        int(kernels.top_share(jnp.arange(float(n)), 0.2).sum()) for n in (1, 5, 6, 10, 15, 35)
    ] == [1, 1, 2, 2, 3, 7]


# ---------------------------------------------------------------- sploo

TREE = np.concatenate([np.array([[0]] * 5 + [[1]] * 3), 10 + np.arange(88).reshape(8, 11)], 1)
REWARDS = [1, 1, 1, 1, 0, 0, 0, 0]


def test_sploo_example():
    rollout = one_prompt(REWARDS, TREE)
    A = sploo(rollout)[0]
    assert_close(A[:4, :2], [[0.571429, 0.494898]] * 4, 1e-5)
    assert_close(A[4, :2], [-0.571429, -0.816327], 1e-5)
    assert_close(A[5:, :2], [[-0.571429, -0.459184]] * 3, 1e-5)
    assert (A[:, 2:] == A[:, 1:2]).all()
    S = sploo(rollout, **safe.keywords)[0]
    assert_close(S[4, :2], [-1.386, -0.816327], 1e-3)
    assert_close(S[np.r_[:4, 5:8]], A[np.r_[:4, 5:8]])  # e is 2.84 and 2.56 there, below c
    e = (
        np.asarray(sploo(rollout, a=1.0, c=1e-9)[0][:, 0]) / A[:, 0] - 1,
    )  # a (1 - c/e) with c about 0 is 1 wherever e > 0
    assert_close(e, [[1] * 8], 1e-4)
    for c, fires in (
        (2.84, [1, 1, 1, 1, 1, 0, 0, 0]),
        (2.842, [0, 0, 0, 0, 1, 0, 0, 0]),
        (2.56, [1] * 8),
        (10.42, [0, 0, 0, 0, 1, 0, 0, 0]),
        (10.44, [0] * 8),
    ):
        assert_close(jnp.abs(sploo(rollout, a=1e6, c=c)[0][:, 0]) > 1, fires)
    B = sploo(rollout, **l1_bold.keywords)[0]
    assert_close(B[0, :3], [2.222, 0.947, 0.495], 1e-3)
    assert_close(B[4, :3], [-3.100, -1.563, -0.816], 1e-3)
    assert_close(B[5, :3], [-2.091, -0.809, -0.459], 1e-3)


def test_sploo_presets():
    knobs = {"p0": p0, "safe": safe, "mid": mid, "bold": bold, "l1": l1, "l1_bold": l1_bold}
    want = {
        "p0": (0, 0),
        "safe": (0, 2, 3),
        "mid": (0, 3, 2),
        "bold": (0, 4, 1.5),
        "l1": (1, 0),
        "l1_bold": (1, 4, 1.5),
    }
    for name, preset in knobs.items():
        assert (
            tuple(preset.keywords[k] for k in ("lam", "a", "c") if k in preset.keywords)
            == want[name]
        )
        assert preset.func is catalogue.sploo


@pytest.mark.slow
def test_sploo_without_baseline_and_weights_is_rloo():
    rollout = random_rollout(11, R=8, G=6)
    off = {"c_b": np.inf, "lam": 0.0, "a": 0.0}
    assert_close(sploo(rollout, **off), rloo(rollout), 1e-5)
    for knob in ({"c_b": 1.0}, {"lam": 1.0}, {"a": 4.0, "c": 0.1}):
        assert (jnp.abs(sploo(rollout, **{**off, **knob}) - rloo(rollout)) > 1e-3).any()
    own = jnp.arange(8)[:, None] + 5000
    apart = changed(
        rollout, tokens=jnp.where(jnp.arange(20) == 4, own, rollout.tokens)
    )  # parted at their first token
    first = jnp.arange(20) == 4
    weighed = sploo(apart, lam=0.5)
    assert_close(jnp.where(first, weighed, 0), 1.5 * jnp.where(first, rloo(apart), 0), 1e-5)
    assert_close(jnp.where(first, 0, weighed), jnp.where(first, 0, rloo(apart)), 1e-5)
    pair = one_prompt([0.3, 0.9], [[1, 2, 3], [1, 2, 4]])
    assert_close(
        sploo(pair, **bold.keywords)[0], [[-0.6] * 3, [0.6] * 3]
    )  # of two, b is the other's reward and nothing is evidence
    assert_close(sploo(one_prompt([0.7] * 8, TREE), **l1_bold.keywords), 0, 0)


def test_sploo_scales_with_rewards_and_ignores_a_shift():
    rollout = random_rollout(12, kinds=(0, 3))
    last = rollout.segment_mask & (
        jnp.cumsum(rollout.segment_mask, -1) == rollout.segment_mask.sum(-1, keepdims=True)
    )
    moved = changed(rollout, reward=4 * rollout.reward + jnp.where(last, 7.0, 0))
    assert_close(sploo(moved, **l1_bold.keywords), 4 * sploo(rollout, **l1_bold.keywords), 1e-3)
    divided = sploo(rollout, **l1_bold.keywords, normalize=True)
    assert_close(sploo(moved, **l1_bold.keywords, normalize=True), divided, 1e-3)
    R, there = (
        jnp.where(rollout.segment_mask, rollout.reward, 0).sum(-1),
        rollout.segment_mask.any(-1),
    )
    std = np.asarray(kernels.masked_std(R, there, -1))
    assert_close(
        jnp.where(std[:, None, None] > 0, divided * (std[:, None, None] + 1e-6), 0),
        sploo(rollout, **l1_bold.keywords),
        1e-3,
    )


def test_sploo_never_sees_ones_own_future():
    """b and the weight of i at t stay when i's reward, its tokens from t on and its length are replaced."""
    rng = np.random.default_rng(3)
    knobs = {"lam": 1.0, "a": 4.0, "c": 0.2, "c_b": 1.2}
    N, G, T = 64, 8, 12
    tokens, reward = (
        rng.integers(0, 2, (N, G, T)),
        rng.integers(0, 2, (N, G, 1)) + 0.01 * rng.normal(size=(N, G, 1)),
    )
    length = rng.integers(3, T + 1, (N, G, 1))
    with jax.enable_x64(True):

        def credit(tokens, reward, length):
            mask = jnp.asarray(np.arange(T) < length)
            zero = jnp.zeros(mask.shape)
            real = jnp.ones((N, G, 1), bool)
            return np.asarray(
                sploo(
                    Rollout(
                        jnp.asarray(tokens),
                        mask,
                        zero,
                        zero.astype(int),
                        jnp.asarray(reward),
                        real,
                        token_mask=mask,
                    ),
                    **knobs,
                )
            )[:, 0]

        t = rng.integers(0, 3, N)
        first = np.arange(G)[:, None] == 0
        other = np.where(
            first & (np.arange(T) >= t[:, None, None]), rng.integers(0, 2, (N, G, T)), tokens
        )
        long = np.where(first, T - 1, length)
        one, two = (np.where(first, r, reward) for r in (0.0, 1.0))
        A0, A1, B0, B1 = (
            credit(tokens, one, length),
            credit(tokens, two, length),
            credit(other, one, long),
            credit(other, two, long),
        )
    upto = np.arange(T) <= t[:, None]
    weight, weight_after = A1 - A0, B1 - B0
    np.testing.assert_allclose(weight[upto], weight_after[upto], atol=1e-12)
    np.testing.assert_allclose(A0[upto], B0[upto], atol=1e-12)
    assert (weight[upto] > 2.5).any() and np.abs(
        A0 - B0
    ).max() > 0.05  # evidence fired; later columns did change


def test_sploo_credit_of_an_ended_answer_and_of_twins():
    """One answer ends where others go on; two are the same to the end and stay peers."""
    tokens = [[1, 2, 0, 0], [1, 2, 3, 4], [1, 2, 3, 4], [1, 2, 5, 6], [7, 8, 9, 9]]
    mask = np.array([[1, 1, 0, 0]] + [[1] * 4] * 4)
    rollout = one_prompt([1, 0, 1, 0, 0.5], tokens, action_mask=mask)
    knobs = {"lam": 1.0, "a": 4.0, "c": 0.01, "c_b": 0.5, "least": 1}
    assert_close(
        sploo(rollout, **knobs)[0],
        LOOPS["sploo"](
            {k: np.asarray(v[0]) for k, v in vars(rollout.filled()).items() if k != "signals"},
            **knobs,
        ),
    )


# Every group of four answers of three binary tokens, a random policy with a logit for each prefix, and a reward for each answer.
ANSWERS = np.array(list(np.ndindex(2, 2, 2)))
NODE = np.array([[0, 1 + y[0], 3 + 2 * y[0] + y[1]] for y in ANSWERS])
GROUPS = np.array(list(np.ndindex(8, 8, 8, 8)))


@pytest.fixture(scope="module")
def world():
    rng = np.random.default_rng(5)
    p_one = rng.uniform(0.25, 0.75, 7)[NODE]
    chance = np.where(ANSWERS == 1, p_one, 1 - p_one).prod(-1)
    return p_one, chance, rng.normal(size=8)


def expectation(world, **knobs):
    """E sum_it A_it grad log pi, one number a prefix; and the true gradient."""
    p_one, chance, r = world
    with jax.enable_x64(True):
        ones = jnp.ones((4096, 4, 3), bool)
        zero = jnp.zeros(ones.shape)
        rollout = Rollout(
            jnp.asarray(ANSWERS[GROUPS]),
            ones,
            zero,
            zero.astype(int),
            jnp.asarray(r[GROUPS][..., None]),
            ones[..., :1],
        )
        A = np.asarray(sploo(rollout, **knobs))
    assert A.dtype == np.float64
    score = (ANSWERS - p_one)[GROUPS]
    weight = chance[GROUPS].prod(-1)[:, None, None]
    true = np.bincount(NODE.reshape(-1), ((chance * r)[:, None] * (ANSWERS - p_one)).reshape(-1))
    return np.bincount(NODE[GROUPS].reshape(-1), (weight * A * score).reshape(-1)) / 4, true, A


def test_p0_is_exactly_unbiased(world):
    plain = expectation(world, c_b=np.inf)[2]
    for c_b in (3.0, 1.0):
        got, true, A = expectation(world, c_b=c_b)
        np.testing.assert_allclose(got, true, rtol=0, atol=1e-12)
        if c_b == 1.0:
            assert np.abs(A - plain).max() > 0.05  # the baseline moved, and costs no bias


def test_safe_keeps_the_direction_in_every_state(world):
    """Binary tokens have one direction a state: its sign stays and its size is at least that of the truth, at most 1 + a of it."""
    got, true, A = expectation(world, a=2.0, c=0.5, ramp=1.0)
    factor = got / true
    assert (factor > 1 - 1e-12).all() and (factor < 3).all() and factor.max() > 1.02
    assert np.abs(A - expectation(world)[2]).max() > 0.1


def test_evidence_keeps_a_state_without_advantage_at_zero(world):
    p_one, chance, r = world
    r = r.copy()
    r[[1, 5]] = r[[0, 4]]  # the last token decides nothing after 00 and after 10
    got, true, _ = expectation((p_one, chance, r), a=4.0, c=0.2, lam=1.0, ramp=1.0)
    dead = [3, 5]
    np.testing.assert_allclose(true[dead], 0, atol=1e-15)
    np.testing.assert_allclose(got[dead], 0, atol=1e-12)
    assert np.abs(got - true).max() > 1e-2


def test_l1_weighs_each_state_in_closed_form(world):
    p_one, chance, _ = world
    visits = np.zeros(7)
    for y, node in enumerate(NODE):
        visits[node] += chance[y]
    for lam in (1.0, 0.4):
        got, true, _ = expectation(world, lam=lam)
        d, G = visits, 4
        factor = 1 + lam * (1 - (1 - (1 - d) ** G) / (G * d)) / (1 - 1 / G)
        np.testing.assert_allclose(got, factor * true, rtol=0, atol=1e-12)
        assert factor.max() > 1.2


def test_tempos_gradient_is_two_of_ours():
    """In every child of every state: TEMPO's credit sums to (1 - 1/G) (rloo + (1 - 1/n)/(1 - 1/G) prefix leave-one-out)."""
    rng = np.random.default_rng(6)
    N, G, T = 20, 6, 7
    tokens, r = rng.integers(0, 2, (N, G, T)), rng.normal(size=(N, G))
    tokens[:, :, -1] = np.arange(G)
    with jax.enable_x64(True):
        ones = jnp.ones((N, G, T), bool)
        rollout = Rollout(
            jnp.asarray(tokens),
            ones,
            jnp.zeros(ones.shape),
            jnp.zeros(ones.shape, int),
            jnp.asarray(r)[..., None],
            ones[..., :1],
        )
        tempo = (
            np.asarray(jax.jit(partial(catalogue.tempo, eps=0.0))(rollout))
            * r.std(-1)[:, None, None]
        )
        prefix = np.asarray(sploo(rollout, c_b=0.0, least=1, kurtosis=False))
        alone = np.asarray(rloo(rollout))
        shrunk = np.asarray(sploo(rollout))
    gap = 0.0
    for n in range(N):
        for t in range(T):
            state, child = ([tuple(y[: t + s]) for y in tokens[n]] for s in (0, 1))
            size = np.array([state.count(s) for s in state])
            for i in range(G):
                if size[i] > 1:
                    peers = [j for j in range(G) if j != i and state[j] == state[i]]
                    assert abs(prefix[n, i, t] - (r[n, i] - r[n, peers].mean())) < 1e-12
            ours = (1 - 1 / G) * (alone[n, :, t] + (1 - 1 / size) / (1 - 1 / G) * prefix[n, :, t])
            for c in set(child):
                of = [i for i in range(G) if child[i] == c]
                assert abs(tempo[n, of, t].sum() - ours[of].sum()) < 1e-12
            gap = max(gap, np.abs(tempo[n, :, t] - ours).max())
    assert gap > 0.1  # one by one they are not the same
    assert np.abs(tempo.sum(1) - (1 - 1 / G) * (alone + shrunk).sum(1)).max() > 0.05


@pytest.mark.slow
@pytest.mark.parametrize("reward", [0.7, 1e4 + 0.3, -3.3e-5])
def test_equal_rewards_of_any_value_are_exactly_nothing(reward):
    tokens = np.random.default_rng(0).integers(0, 2, (7, 5))
    signals = {
        "components": [[reward, -reward]] * 7,
        "prob_square": np.full((7, 5), 0.3),
        "planning": tokens,
        "waad": tokens,
        "fai": tokens,
    }
    rollout = one_prompt([reward] * 7, tokens, logp=-tokens - 0.5, **signals)
    for credit in (
        reinforce_pp_baseline,
        gpg,
        passk,
        gdpo,
        otb,
        hicra,
        attention_rhythm,
        sploo,
        partial(sploo, **l1_bold.keywords),
    ):
        assert (credit(rollout) == 0).all(), credit
