"""Token estimators: worked examples, invariants, reductions with and without their condition."""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from comparisons import assert_close
from small_rollouts import jitted, one_prompt, random_rollout

import jaxcredit.credit as catalogue
from jaxcredit import kernels

attention_rhythm, dr_grpo, entropy_mask, grpo, hicra = (
    jitted(getattr(catalogue, name))
    for name in "attention_rhythm dr_grpo entropy_mask grpo hicra".split()
)
prime, r_to_q_star, rloo, t_reg = (
    jitted(getattr(catalogue, name)) for name in "prime r_to_q_star rloo t_reg".split()
)


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
    """Changes of WAAD are .5 .1 1.1 0, so token 2 is the top one; token 0 has the largest FAI."""
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
    # token 4 is an anchor with low WAAD, introduced by token 3: they share its extra weight
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
