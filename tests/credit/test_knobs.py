"""Knobs of estimators: annotated choices, messages for wrong values and names, shared names."""

import dataclasses
import inspect
from functools import partial, wraps
from typing import Literal, get_args, get_origin

import jax
import jax.numpy as jnp
import pytest
from paths import CONFIGS

from jaxcredit import credit, kernels
from jaxcredit.cli import loading as find
from jaxcredit.credit import check_knobs, laws, method_of, per_batch, per_group

KNOBS = {
    name: list(inspect.signature(getattr(credit, name), eval_str=True).parameters.values())[1:]
    for name in credit.__all__
}
CHOICES = [
    (name, knob)
    for name, knobs in KNOBS.items()
    for knob in knobs
    if get_origin(knob.annotation) is Literal
]


@pytest.mark.parametrize("name", credit.__all__)
def test_every_knob_is_annotated_and_no_knob_is_a_bare_string(name):
    for knob in KNOBS[name]:
        assert knob.annotation is not knob.empty and knob.kind is knob.KEYWORD_ONLY, knob
        assert str not in (knob.annotation, *get_args(knob.annotation)), (
            f"{knob}: write Literal[...]"
        )
        assert get_origin(knob.annotation) is Literal or not isinstance(knob.default, str), (
            f"{knob}: write Literal[...]"
        )


@pytest.mark.parametrize(("name", "knob"), CHOICES, ids=lambda x: getattr(x, "name", x))
def test_a_wrong_choice_is_an_error_that_lists_the_choices(name, knob):
    estimator = getattr(credit, name)
    rollout = laws.synthetic(0, method_of(estimator).needs, N=1).filled()
    assert knob.default in get_args(knob.annotation)
    for call in (estimator, estimator.unlifted):
        for wrong in ("typo", knob.default.upper(), None, jnp.zeros(2)):
            with pytest.raises(ValueError, match=f"^{name}: {knob.name}=") as error:
                call(rollout, **{knob.name: wrong})
            assert all(repr(choice) in str(error.value) for choice in get_args(knob.annotation))


def test_the_estimators_that_choose_by_name_are_found():
    assert len(CHOICES) > 20 and {"gpg", "prime", "hicra", "hae", "gigpo", "sotopia"} <= {
        name for name, _ in CHOICES
    }


@pytest.mark.parametrize("name", credit.__all__)
def test_an_unknown_knob_is_an_error_that_names_the_knobs(name):
    rollout = laws.synthetic(0, method_of(getattr(credit, name)).needs, N=1)
    with pytest.raises(TypeError, match=f"^{name} has no knob 'nonsense'; ") as error:
        getattr(credit, name)(rollout, nonsense=1)
    assert str(error.value).endswith(
        f"its knobs: {', '.join(knob.name for knob in KNOBS[name]) or 'none'}"
    )


def test_a_near_miss_is_suggested():
    with pytest.raises(
        TypeError,
        match="^tempo has no knob 'gaet'; did you mean gate\\? its knobs: gate, ddof, eps$",
    ):
        credit.tempo(laws.synthetic(0, N=1), gaet=1)


@pytest.mark.parametrize(
    ("wrong", "error", "words"),
    [
        (partial(credit.tempo, gaet=1), TypeError, "tempo has no knob 'gaet'"),
        (
            partial(partial(credit.prime, form="Code"), beta=0.1),
            ValueError,
            "prime: form='Code' is unknown",
        ),
        (
            partial(credit.hicra, base=partial(credit.grpo, scale=True)),
            TypeError,
            "grpo has no knob 'scale'",
        ),
    ],
    ids=["unknown", "choice", "base"],
)
def test_an_experiment_refuses_wrong_knobs_before_it_runs(wrong, error, words):
    exp, _ = find.experiment(str(CONFIGS / "quickstart.py"))
    with pytest.raises(error, match=words):
        dataclasses.replace(exp, credit=wrong).check()
    dataclasses.replace(exp, credit=partial(credit.tempo, gate=2)).check()


def test_knobs_of_functions_that_are_not_lifted_are_their_own():
    @wraps(credit.grpo)
    def mine(rollout, extra=1):
        return extra * credit.grpo(rollout)

    check_knobs(partial(mine, extra=2))
    check_knobs(partial(lambda rollout, x: x * rollout.logp, x=2))
    check_knobs(partial(jax.jit(credit.grpo), eps=0.0))


@pytest.mark.parametrize("lift", [per_group, per_batch])
def test_an_estimator_of_ones_own_is_checked_alike(lift):
    @lift
    def mine(rollout, *, form: Literal["a", "b"] = "a", **others: int):
        return jnp.zeros(rollout.action_mask.shape)

    rollout = laws.synthetic(0, N=1)
    assert mine(rollout, form="b", anything=1).shape == rollout.action_mask.shape
    with pytest.raises(ValueError, match="mine: form='c' is unknown; choose from 'a', 'b'"):
        mine(rollout, form="c")


def test_annotations_that_only_a_type_checker_can_read_are_no_error():
    @per_group
    def mine(group, *, form: "OnlyForTypeCheckers" = 1):  # noqa: F821
        return jnp.zeros(group.action_mask.shape)

    assert not mine(laws.synthetic(0, N=1), form=2).any()


def test_utterance_rewards_list_their_forms():
    rewards = inspect.unwrap(
        kernels.utterance_rewards
    )  # without the type checker of the tests, which would refuse first
    with pytest.raises(
        ValueError,
        match="^utterance_rewards: form='sclaed' is unknown; choose from 'scaled', 'normalized'",
    ):
        rewards(jnp.zeros((1, 1, 1)), jnp.zeros((1, 1)), jnp.ones((1, 1), bool), form="sclaed")


@pytest.mark.parametrize("old", ["mode", "divide", "normalise", "standardise", "standardize"])
def test_division_by_the_deviation_has_one_spelling(old):
    """`normalize` divides by the group's (pool's) deviation; `whiten` normalizes over the batch."""
    assert [name for name, knobs in KNOBS.items() if old in [k.name for k in knobs]] == (
        ["oprl"] if old == "mode" else []
    )


@pytest.mark.parametrize("name", credit.estimators())
def test_every_estimator_and_preset_has_a_name_for_the_command_line(name):
    assert find.estimator(name) is credit.estimators()[name]
    assert name.isidentifier()


def test_presets_are_settings_of_sploo():
    assert list(credit.PRESETS) == ["sploo_safe", "sploo_bold", "sploo_l1", "sploo_l1_bold"]
    assert all(preset.func is credit.sploo for preset in credit.PRESETS.values())


def test_a_star_import_keeps_the_builtins():
    names: dict = {}
    exec("from jaxcredit.credit import *", names)
    assert (
        not set(vars(__import__("builtins"))) & set(credit.__all__) and names["grpo"] is credit.grpo
    )


@pytest.mark.parametrize("name", credit.__all__)
def test_our_designs_say_so_in_their_first_line(name):
    method = method_of(getattr(credit, name))
    assert (method.fidelity == "ours") == ("our design" in method.summary.lower())
