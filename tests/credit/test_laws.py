"""Every estimator obeys every law, and every law finds an estimator that breaks it."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxcredit.credit as catalogue
from jaxcredit.credit import laws, method_of, per_batch, per_group
from jaxcredit.kernels import center, to_tokens
from jaxcredit.rollout import SIGNALS, outcome

THOROUGH = (
    "grpo",
    "reinforce_pp",
)  # one of each scope; all laws on all estimators are for the slow stage
SOON = {
    *THOROUGH,
    *catalogue.__all__[::4],
}  # every fourth one, as they compile for two seconds each


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=() if n in SOON else pytest.mark.slow) for n in catalogue.__all__],
)
def test_laws_hold(name):
    results = laws.check(getattr(catalogue, name), laws=laws.QUICK, shapes=laws.SHAPES[2:])
    assert len(results) == len(laws.QUICK)
    assert not [r for r in results if r.passed is False]


@pytest.mark.parametrize("name", THOROUGH)
def test_all_laws_hold_in_all_shapes(name):
    results = laws.check(getattr(catalogue, name))
    assert len(results) == len(laws.LAWS)
    assert not [r for r in results if r.passed is False]


@pytest.mark.slow
@pytest.mark.parametrize("name", [n for n in catalogue.__all__ if n not in THOROUGH])
def test_the_other_laws_hold(name):
    assert not [
        r for r in laws.check(getattr(catalogue, name), laws=laws.PROGRAMS) if r.passed is False
    ]


@pytest.mark.parametrize("name", catalogue.__all__)
def test_metadata_is_complete(name):
    method = method_of(getattr(catalogue, name))
    assert method.name == name and method.summary
    assert method.paper or "no paper" in getattr(catalogue, name).__doc__.lower()
    assert method.scope in ("group", "batch") and method.fidelity in ("paper", "code", "ours")
    assert method.granularity in ("token", "segment", "step", "turn", "trajectory", "agent")
    assert method.family == getattr(catalogue, name).__module__.split(".")[-2], (
        "family is the folder"
    )
    assert all(SIGNALS[signal].axes == axes for signal, axes in method.needs.items())


@pytest.mark.slow
@pytest.mark.parametrize("name", catalogue.__all__)
def test_a_hundred_thousand_rollouts_are_finite(name):
    """Credit of 10^5 random trajectories, and the gradient of the unlifted function, are finite."""
    credit = getattr(catalogue, name)
    method = method_of(credit)

    @jax.jit
    def ok(rollout):
        def total(reward):
            changed = rollout.filled().__class__(
                **{**vars(rollout), "reward": jnp.where(rollout.segment_mask, reward, 0)}
            )
            answer = (
                credit.unlifted(changed)
                if method.scope == "batch"
                else jax.vmap(credit.unlifted)(changed)
            )
            return sum(jnp.where(rollout.action_mask, x, 0).sum() for x in jax.tree.leaves(answer))

        finite = [jnp.isfinite(x).all() for x in jax.tree.leaves(credit(rollout))]
        return jnp.stack(finite).all(), jnp.isfinite(jax.grad(total)(rollout.reward)).all()

    for seed in range(7):
        rollout = laws.synthetic(1000 + seed, method.needs, N=2048, R=8)
        value, gradient = ok(rollout)
        assert value, f"credit of seed {1000 + seed}"
        assert gradient, f"gradient of seed {1000 + seed}"
    assert ok._cache_size() == 1


@pytest.mark.parametrize("seed", range(5))
def test_synthetic_rollouts_are_sound_and_cover_the_hard_cases(seed):
    rollout = laws.synthetic(seed, N=64, R=8, G=5).check()
    mask, valid, real = (
        np.asarray(x) for x in (rollout.action_mask, rollout.token_mask, rollout.segment_mask)
    )
    assert (mask <= valid).all()
    alive = real.any(-1).sum(-1)
    assert (alive == 1).any() and (alive == 0).any() and (alive == 5).any()
    assert (valid & ~mask)[..., 4:].any() and (~mask.any(-1)).any()
    dead = ~np.take_along_axis(real.any(-1), np.asarray(rollout.row), 1)
    assert not mask[dead].any()


def _sums(batch):
    return spread_all(center(outcome(batch)), batch)


def spread_all(x, batch):
    return jax.vmap(to_tokens)(x, batch)


@per_group
def honest(group):
    """Return less the group's mean."""
    return to_tokens(center(outcome(group), where=group.segment_mask.any(-1)), group)


@per_group
def by_position(group):
    """Depends on the order of rows."""
    return jnp.zeros(group.action_mask.shape).at[0].set(1.0)


@per_group
def by_padding(group):
    """Depends on the padded length."""
    return to_tokens(outcome(group) / group.action_mask.shape[1], group)


@per_group
def explodes(group):
    """Divides 0 by 0."""
    return to_tokens(outcome(group) / (outcome(group) - outcome(group).mean()), group)


@per_group(affine=True)
def one_pass(group):
    """Variance as E[x^2] - E[x]^2, which loses its digits to an offset."""
    R, there = outcome(group), group.segment_mask.any(-1)
    n = jnp.maximum(there.sum(), 1)
    mean, square = jnp.where(there, R, 0).sum() / n, jnp.where(there, R * R, 0).sum() / n
    return to_tokens(
        jnp.where(there, R - mean, 0) / (jnp.sqrt(jnp.maximum(square - mean**2, 0)) + 1e-6), group
    )


@per_group(zero_sum=True)
def uneven(group):
    """The return itself, which does not sum to 0."""
    return to_tokens(outcome(group), group)


@per_group(zero_sum=True)
def careless_mean(group):
    """A mean by division, which is not exact for equal rewards."""
    R, there = outcome(group), group.segment_mask.any(-1)
    return to_tokens(
        jnp.where(there, R - jnp.where(there, R, 0).sum() / jnp.maximum(there.sum(), 1), 0), group
    )


@per_batch
def whole_batch(batch):
    """Statistics over the batch, declared by per_batch."""
    return _sums(batch)


def unmasked(rollout):
    return jnp.ones(rollout.action_mask.shape)


def leaky(rollout):
    return jnp.where(rollout.action_mask, rollout.logp, 0)


def crowd(rollout):
    return jnp.where(rollout.action_mask, jnp.mean(outcome(rollout)), 0)


@pytest.mark.parametrize(
    ("credit", "law"),
    [
        (by_position, laws.permuting_trajectories_permutes_credit),
        (by_padding, laws.padding_changes_nothing),
        (explodes, laws.finite_and_zero_off_the_mask),
        (unmasked, laws.finite_and_zero_off_the_mask),
        (leaky, laws.no_gradient_flows),
        (crowd, laws.other_prompts_do_not_matter),
        (crowd, laws.no_collective_over_prompts),
        (one_pass, laws.large_offset_changes_nothing),
        (uneven, laws.credit_sums_to_zero),
        (careless_mean, laws.equal_rewards_give_zero),
    ],
    ids=lambda x: x.__name__,
)
def test_a_law_catches_who_breaks_it(credit, law):
    case = laws.Case(
        credit, jax.jit(lambda rollout: credit(rollout)), method_of(credit), 0, laws.SHAPES
    )
    assert law(case)


def test_an_honest_newcomer_passes_without_metadata():
    assert not [r for r in laws.check(honest) if r.passed is False]


def test_a_credit_that_raises_is_a_failed_law_and_not_a_crash():
    def broken(rollout):
        raise TypeError("no such thing")

    results = laws.check(broken)
    assert all(r.passed is False or r.passed is None for r in results)
    assert "no such thing" in results[0].detail
