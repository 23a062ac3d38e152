"""A rollout says what does not fit, and credit says what is not one number a token."""

import dataclasses

import jax
import jax.numpy as jnp
import jaxtyping
import numpy as np
import pytest

import jaxcredit.credit as catalogue
from jaxcredit.credit import laws, method_of, per_batch, per_group
from jaxcredit.kernels import to_tokens
from jaxcredit.rollout import AXES, FilledRollout, Rollout, outcome

GOOD = laws.synthetic(0, ("stratum", "token_value"), N=3, R=4, T=12, K=2)
FLAT = {"tokens": GOOD.tokens.reshape(12, 12), "action_mask": GOOD.action_mask.reshape(12, 12)}
MALFORMED = {
    r"tokens has shape \(12, 12\), expected \[N, R, T\]": FLAT,
    r"reward has shape \(3, 4\), expected \[N, G, K\].*reward\[\.\.\., None\]": {
        "reward": GOOD.reward.sum(-1)
    },
    r"action_mask has shape \(3, 4, 11\), expected \[N, R, T\] with N=3, R=4, T=12": {
        "action_mask": GOOD.action_mask[..., 1:]
    },
    r"segment_mask has shape \(3, 4\), expected \[N, G, K\]": {
        "segment_mask": GOOD.segment_mask[..., 0]
    },
    r"done has shape \(3,\), expected \[N, G\]": {"done": GOOD.done[:, 0]},
    r"signals\['stratum'\] has shape \(3,\), expected \[N, G\]": {
        "signals": {**GOOD.signals, "stratum": jnp.zeros(3, int)}
    },
    r"action_mask is float32, expected bool": {"action_mask": GOOD.action_mask * 1.0},
    r"5 rows but 4 trajectories": {
        n: jnp.pad(getattr(GOOD, n), ((0, 0), (0, 1), (0, 0)))
        for n in ("tokens", "action_mask", "logp", "segment")
    }
    | {"row": None, "token_mask": None, "signals": {}},
}


@pytest.fixture
def untyped():
    """As users run it: the shape checks of the tests (conftest.py) refuse what is malformed before the library can."""
    jaxtyping.config.update("jaxtyping_disable", True)
    yield
    jaxtyping.config.update("jaxtyping_disable", False)


@pytest.mark.usefixtures("untyped")
@pytest.mark.parametrize("message", MALFORMED)
def test_shapes_are_refused_by_check_and_by_every_kind_of_estimator_also_when_traced(message):
    bad = dataclasses.replace(GOOD, **MALFORMED[message])
    for credit in (catalogue.grpo, catalogue.reinforce_pp):
        for call in (credit, lambda r, credit=credit: jax.eval_shape(credit, r)):
            with pytest.raises(ValueError, match=message):
                call(bad)
    with pytest.raises(ValueError, match=message):
        bad.check()
    twice = jax.tree.map(lambda x: jnp.stack([x, x]), bad)
    with pytest.raises(ValueError, match=message):
        jax.vmap(catalogue.grpo)(twice)


def _with(**fields):
    """A sound rollout of two trajectories of two turns and five columns, and what is given."""
    sound = {
        "tokens": [[[9, 1, 2, 3, 0], [9, 1, 4, 5, 6]]],
        "action_mask": [[[0, 1, 1, 1, 0], [0, 1, 1, 1, 1]]],
        "token_mask": [[[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]],
        "segment": [[[-1, 0, 0, 1, -1], [-1, 0, 0, 1, 1]]],
        "reward": [[[0, 1], [0.5, 0]]],
        "segment_mask": [[[1, 1], [1, 1]]],
    } | fields
    kinds = {"tokens": np.int32, "segment": np.int32, "row": np.int32, "reward": np.float32}
    arrays = {
        name: jnp.asarray(np.asarray(x).astype(kinds.get(name, bool))) for name, x in sound.items()
    }
    return Rollout(logp=jnp.zeros((1, 2, 5)), **arrays)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        (
            {
                "token_mask": [[[1, 1, 1, 1, 0], [1, 1, 0, 1, 1]]],
                "action_mask": [[[0, 1, 1, 1, 0], [0, 1, 0, 1, 1]]],
            },
            r"token_mask\[0, 1\] has a hole before column 3",
        ),
        (
            {"token_mask": [[[1, 1, 1, 1, 0], [1, 1, 1, 1, 0]]]},
            r"action_mask\[0, 1, 4\] is True where token_mask is False",
        ),
        ({"tokens": [[[9, 1, -100, 3, -100], [9, 1, 4, 5, 6]]]}, r"tokens\[0, 0, 2\] is -100"),
        ({"row": [[0, 2]]}, r"row\[0, 1\] is 2, but there are 2 trajectories"),
        (
            {"segment": [[[-1, 0, 0, 2, -1], [-1, 0, 0, 1, 1]]]},
            r"segment holds -1\.\.2, but reward has K = 2",
        ),
        (
            {"segment": [[[-1, 1, 1, 1, -1], [-1, 0, 0, 1, 1]]], "reward": [[[2, 1], [0, 0]]]},
            r"reward\[0, 0, 0\] is 2, .* in segment 1",
        ),
        ({"reward": [[[9e29, 9e29], [0, 0]]]}, r"reward\[0, 0\] add up to 1.8e\+30, beyond 1e\+30"),
        (
            {"reward": [[[np.nan, 1], [0, 0]]]},
            r"reward\[0, 0, 0\] is nan: 1 rewards are not finite",
        ),
    ],
    ids=[
        "hole",
        "mask in padding",
        "negative token",
        "row",
        "segment",
        "reward before any token",
        "huge",
        "nan",
    ],
)
def test_values_that_do_not_fit_are_named(fields, message):
    _with().check()
    with pytest.raises(ValueError, match=message):
        _with(**fields).check()


def test_padding_and_silent_trajectories_are_sound():
    """Negative tokens and junk rewards in padding, a trajectory without tokens, one whose tokens are in no segment."""
    _with(
        tokens=[[[9, 1, 2, 3, -100], [9, 1, 4, 5, 6]]],
        segment_mask=[[[1, 1], [1, 0]]],
        reward=[[[0, 1], [0.5, np.nan]]],
    ).check()
    _with(
        action_mask=[[[0, 1, 1, 1, 0], [0, 0, 0, 0, 0]]],
        segment=[[[-1, -1, -1, -1, -1], [-1, 0, 0, 1, 1]]],
    ).check()


def test_valid_is_up_to_the_last_chosen_token_where_it_is_not_given():
    mask = np.random.default_rng(0).random((5, 4, 9)) < 0.3
    mask[0, 0] = False
    want = np.flip(np.maximum.accumulate(np.flip(mask, -1), -1), -1)
    rollout = laws.synthetic(0, (), N=5, R=4, T=9)
    assert (
        np.asarray(
            dataclasses.replace(rollout, action_mask=jnp.asarray(mask), token_mask=None)
            .filled()
            .token_mask
        )
        == want
    ).all()


@per_group
def of_trajectories(group):
    """[G], which is broadcast to [R, T] where G = T."""
    return outcome(group)


@per_group
def of_columns(group):
    """Two columns, of which one is [R, 1]."""
    A = to_tokens(outcome(group), group)
    return {"advantage": A, "weight": A[:, :1]}


@per_group
def of_nothing(group):
    """A scalar."""
    return 1.0


@per_batch
def of_batch(batch):
    """[N, G]."""
    return outcome(batch)


@pytest.mark.parametrize(
    ("credit", "message"),
    [
        (
            of_trajectories,
            r"of_trajectories: advantage has shape \[6\], expected \[R, T\] = \[6, 6\].*to_tokens",
        ),
        (
            of_columns,
            r"of_columns: weight has shape \[6, 1\], expected \[R, T\] = \[6, 6\].*to_tokens",
        ),
        (
            of_nothing,
            r"of_nothing: advantage has shape \[\], expected \[R, T\] = \[6, 6\].*to_tokens",
        ),
        (
            of_batch,
            r"of_batch: advantage has shape \[6, 6\], expected \[N, R, T\] = \[6, 6, 6\].*to_tokens",
        ),
    ],
    ids=lambda x: getattr(x, "__name__", ""),
)
def test_an_answer_of_another_shape_is_refused_though_it_could_be_broadcast(credit, message):
    square = laws.synthetic(0, (), N=6, R=6, T=6)
    for call in (credit, jax.jit(lambda r: credit(r))):
        with pytest.raises(ValueError, match=message):
            call(square)


SILENT = ("grpo", "reinforce_pp", "ppo", "masked_gae", "poad", "ma_rlhf", "vapo", "vsrm", "epo")


@pytest.mark.parametrize("name", SILENT)
def test_the_reward_of_a_segment_without_tokens_reaches_the_tokens_before_it(name):
    """A tool's verdict, the only reward of the group: as good as the same reward on the policy's own turn."""
    credit = getattr(catalogue, name)
    values = {"token_value": (2, 2), "macro": (2, 2), "info": (2, 3)}
    signals = {
        s: jnp.zeros((1, *values[s]), jnp.int32 if s == "macro" else jnp.float32)
        for s in method_of(credit).needs
    }
    verdict, own = (
        Rollout(
            tokens=jnp.array([[[1, 2], [1, 3]]]),
            action_mask=jnp.ones((1, 2, 2), bool),
            logp=jnp.zeros((1, 2, 2)) - 1,
            segment=jnp.zeros((1, 2, 2), jnp.int32),
            reward=jnp.array([reward]),
            segment_mask=jnp.ones((1, 2, 2), bool),
            signals=signals,
        ).check()
        for reward in ([[0.0, 1.0], [0.0, 0.0]], [[1.0, 0.0], [0.0, 0.0]])
    )
    a, b = (jax.tree.leaves(jax.jit(lambda r: credit(r))(r))[0] for r in (verdict, own))
    assert jnp.abs(a).max() > 0.1
    if name != "epo":  # which discounts turns
        np.testing.assert_allclose(a, b, atol=1e-6)


def test_a_filled_rollout_has_every_field_under_jit_and_vmap_and_cannot_be_made_without():
    rollout = _with(token_mask=[[[1, 1, 1, 1, 0], [1, 1, 1, 1, 1]]])
    assert rollout.row is None and rollout.done is None
    filled = jax.jit(lambda x: x.filled())(rollout)
    assert type(filled) is FilledRollout and filled.done.all() and filled.row.tolist() == [[0, 1]]
    types = []
    jax.vmap(lambda group: types.append((type(group), group.row.shape)) or group.row)(filled)
    assert types == [(FilledRollout, (2,))]
    assert type(filled.with_signals(value=filled.reward).check()) is FilledRollout
    with pytest.raises(TypeError, match="row"):
        FilledRollout(**{k: v for k, v in vars(filled).items() if k != "row"})


def test_every_field_has_its_axes_in_one_table():
    fields = {field.name for field in dataclasses.fields(Rollout)} - {"signals"}
    assert AXES.keys() == fields
    for name, axes in AXES.items():
        assert getattr(GOOD, name).ndim == 1 + len(axes.split())
