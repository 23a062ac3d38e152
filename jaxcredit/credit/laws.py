"""Laws that every estimator obeys, checked on random rollouts.

    for result in laws.check(my_credit):
        print(result.law, result.passed, result.detail)

A law is a function of a `Case` (an estimator and random rollouts with its signals). It returns None
if the law holds, else a message with the input that breaks it. `jaxcredit check` and the tests call
`check`.
"""

import dataclasses
import functools
from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from jaxcredit.credit.lift import Credit, Method, method_of
from jaxcredit.rollout import SIGNALS, Rollout, trajectory_mask, transforms
from jaxcredit.rollout.synthetic import synthetic

COLUMNS = ("advantage", "weight", "clip", "target")
COLLECTIVES = ("all-reduce", "all-gather", "all-to-all", "collective-permute", "reduce-scatter")

Law = Callable[["Case"], str | None]


class Result(NamedTuple):
    """Result of one law.

    Attributes:
        law: name of the law, in words.
        passed: whether it holds; None if it does not apply.
        detail: the input that breaks it, or why it does not apply; "" if it holds.
    """

    law: str
    passed: bool | None
    detail: str = ""


def check(
    credit: Credit,
    *,
    seed: int = 0,
    laws: Sequence[Law] | None = None,
    shapes: Sequence[dict] | None = None,
) -> list[Result]:
    """Check an estimator against the laws, on random rollouts.

    Args:
        credit: an estimator, or any function from a `Rollout` to credit [N, R, T].
        seed: seed of the random rollouts.
        laws: the laws to check; None for all (`LAWS`). `QUICK` leaves out those about devices
            and compilation.
        shapes: keywords of `jaxcredit.rollout.synthetic.synthetic`, one dict for each shape of
            rollout; None for `SHAPES`.

    Returns:
        A `Result` for each law. An exception inside of the estimator is a broken law, with the
        exception as its detail.

    >>> from jaxcredit import credit
    >>> check(credit.grpo, laws=[credit_sums_to_zero])
    [Result(law='credit sums to zero', passed=True, detail='')]
    """
    case = Case(
        credit,
        jax.jit(lambda rollout: credit(rollout)),
        method_of(credit),
        seed,
        tuple(SHAPES if shapes is None else shapes),
    )
    results = []
    for law in LAWS if laws is None else laws:
        name = law.__name__.replace("_", " ")
        try:
            problem = law(case)
            results.append(Result(name, problem is None, problem or ""))
        except Skip as reason:
            results.append(Result(name, None, str(reason)))
        except Exception as error:  # a broken law with a cause, so that the other laws are checked
            results.append(Result(name, False, f"{type(error).__name__}: {error}"))
    return results


class Case(NamedTuple):
    """An estimator and the random rollouts that the laws apply it to.

    Attributes:
        credit: the estimator.
        run: the estimator under `jax.jit`. All laws share it and few shapes, as compilation
            takes most of their time.
        method: the estimator's metadata.
        seed: seed of the rollouts.
        shapes: keywords of `synthetic`, one dict for each shape of rollout.
    """

    credit: Credit
    run: Credit
    method: Method
    seed: int
    shapes: tuple[dict, ...]

    @property
    def needs(self) -> tuple[str, ...]:
        """Names of the signals that the estimator declares; all signals without metadata."""
        return tuple(self.method.needs) if self.method.summary else tuple(SIGNALS)

    def samples(self, shapes=None, **settings) -> Iterable[Rollout]:
        """Random rollouts, one for each shape; `settings` are further keywords of `synthetic`."""
        for i, shape in enumerate(self.shapes if shapes is None else shapes):
            yield synthetic(100 * self.seed + i, self.needs, **shape, **settings)


class Skip(Exception):
    """Raised by a law that does not apply, with the reason."""


# One segment; several segments; several rows for each trajectory.
SHAPES: tuple[dict, ...] = ({"K": 1}, {"K": 3}, {"K": 3, "R": 8, "G": 5})


def finite_and_zero_off_the_mask(case: Case) -> str | None:
    """Columns are finite floats [N, R, T], 0 ("clip": 1) on tokens the policy did not choose."""
    for rollout in (*case.samples(), *case.samples(case.shapes[-1:], dtype="bfloat16")):
        for name, x in _columns(case.run(rollout)).items():
            if name not in COLUMNS:
                return f"unknown column {name!r}; columns are {', '.join(COLUMNS)}"
            if x.shape != rollout.action_mask.shape or not jnp.issubdtype(x.dtype, jnp.floating):
                shape = list(rollout.action_mask.shape)
                return (
                    f"{name} has dtype {x.dtype} and shape {list(x.shape)}, expected floats {shape}"
                )
            if not jnp.isfinite(x).all():
                return f"{name} is not finite: {_where(~np.isfinite(x), rollout)}"
            off = (x != (name == "clip")) & ~rollout.action_mask
            if off.any():
                neutral = int(name == "clip")
                return (
                    f"{name} is not {neutral} on tokens that the policy did not choose "
                    f"(action_mask is False): {_where(off, rollout)}"
                )
    return None


def jit_equals_eager(case: Case) -> str | None:
    """The estimator gives the same numbers with and without `jax.jit`."""
    for rollout in case.samples(case.shapes[1:2] or case.shapes):
        if problem := _differ(
            case.run(rollout), case.credit(rollout), rollout, "with jit", "without"
        ):
            return problem
    return None


def permuting_trajectories_permutes_credit(case: Case) -> str | None:
    """Renumbering trajectories changes nothing; reordering rows reorders their credit."""
    for i, rollout in enumerate(case.samples()):
        G, R = rollout.segment_mask.shape[1], rollout.action_mask.shape[1]
        order = np.random.default_rng(case.seed + i).permutation(G)
        renumbered, before = transforms.reordered(rollout, "G", order), case.run(rollout)
        if problem := _differ(case.run(renumbered), before, rollout, "then", "before"):
            return "the trajectories were renumbered: " + problem
        if R == G:  # rows of one trajectory have an order
            moved = jax.tree.map(lambda x, order=order: x[:, order], before)
            if problem := _differ(
                case.run(transforms.reordered(renumbered, "R", order)),
                moved,
                rollout,
                "then",
                "before",
            ):
                return "the trajectories and their rows were reordered: " + problem
    return None


def padding_changes_nothing(case: Case) -> str | None:
    """Padding of tokens, segments, rows and trajectories does not change other tokens' credit."""
    for rollout in case.samples(case.shapes[::2]):
        _, R, T = rollout.action_mask.shape
        padded = functools.reduce(transforms.padded, ("T", "K", "R", "G"), rollout)
        after = {name: x[:, :R, :T] for name, x in _columns(case.run(padded)).items()}
        if problem := _differ(after, case.run(rollout), rollout, "with padding", "without"):
            return problem
    return None


def no_gradient_flows(case: Case) -> str | None:
    """Credit has no gradient with respect to rewards, log-probabilities and signals."""
    for rollout in case.samples(case.shapes[1:2] or case.shapes):
        floats = {n: x for n, x in rollout.signals.items() if jnp.issubdtype(x.dtype, jnp.floating)}

        def total(reward, logp, signals, rollout=rollout):
            rollout = dataclasses.replace(rollout, reward=reward, logp=logp).with_signals(**signals)
            return sum((x * x).sum() for x in jax.tree.leaves(case.credit(rollout)))

        gradient = jax.jit(jax.grad(total, (0, 1, 2)))(rollout.reward, rollout.logp, floats)
        for path, g in jax.tree.leaves_with_path(
            dict(zip(("reward", "logp", "signals"), gradient, strict=True))
        ):
            if (g != 0).any():
                return (
                    f"the gradient with respect to {jax.tree_util.keystr(path)} is up to "
                    f"{float(jnp.abs(g).max()):.3g}, expected 0: wrap the credit in "
                    "jax.lax.stop_gradient"
                )
    return None


def other_prompts_do_not_matter(case: Case) -> str | None:
    """With `per_group`, replacing every other prompt does not change a prompt's credit."""
    _group_only(case)
    for i, rollout in enumerate(case.samples()):
        others = transforms.like(rollout, 100 * case.seed + 50 + i)
        mixed = jax.tree.map(
            lambda a, b: jnp.asarray(np.concatenate([np.asarray(a)[:1], np.asarray(b)[1:]])),
            rollout,
            others,
        )
        a, b = (
            {name: x[:1] for name, x in _columns(case.run(r)).items()} for r in (mixed, rollout)
        )
        if problem := _differ(a, b, rollout, "with other prompts replaced", "before"):
            return problem
    return None


def no_collective_over_prompts(case: Case) -> str | None:
    """With `per_group` and prompts sharded over devices, the compiled program has no collective."""
    _group_only(case)
    leaves, tree = jax.tree.flatten(_sharded(case))
    text = (
        jax.jit(lambda *leaves: case.credit(jax.tree.unflatten(tree, leaves)))
        .lower(*leaves)
        .compile()
        .as_text()
    )
    assert text is not None, "the backend does not return the text of the compiled program"
    collectives = [c for c in COLLECTIVES if c in text]
    if collectives:
        count = jax.device_count()
        return f"the program compiled for {count} devices has {', '.join(collectives)}"
    return None


def sharding_changes_nothing(case: Case) -> str | None:
    """Sharding the prompts over all devices gives the same numbers as one device."""
    rollout = _sharded(case)
    on_one = jax.device_put(rollout, jax.devices()[0])
    a, b = (jax.device_get(case.run(r)) for r in (rollout, on_one))
    return _differ(a, b, rollout, "on all devices", "on one")


def large_offset_changes_nothing(case: Case) -> str | None:
    """If `affine`, adding 10,000 to all returns does not change float32 credit."""
    _declared(case.method, "affine")
    for rollout in case.samples():
        # In float32 these rewards plus the offset are exact.
        rollout = dataclasses.replace(rollout, reward=jnp.round(rollout.reward * 64) / 64)
        if problem := _differ(
            case.run(transforms.rewarded(rollout, 1.0, 1e4)),
            case.run(rollout),
            rollout,
            "with returns + 10000",
            "without",
            tolerance=2e-3,
        ):
            return problem
    return None


def affine_rewards_change_nothing(case: Case) -> str | None:
    """If `affine`, returns a R + b with a > 0 give the same credit (up to eps)."""
    _declared(case.method, "affine")
    for rollout in case.samples(kinds=(0, 3)):
        if problem := _differ(
            case.run(transforms.rewarded(rollout, 4.0, -1.0)),
            case.run(rollout),
            rollout,
            "with returns 4 R - 1",
            "with R",
            tolerance=1e-4,
        ):
            return problem
    return None


def credit_sums_to_zero(case: Case) -> str | None:
    """If `zero_sum`, each trajectory has one advantage, and a group's advantages sum to 0."""
    _declared(case.method, "zero_sum")
    for rollout in case.samples():
        rollout = rollout.filled()
        # A trajectory without policy tokens shows no advantage, so every token becomes one.
        whole = jnp.broadcast_to(
            jnp.take_along_axis(trajectory_mask(rollout), rollout.row, 1)[..., None],
            rollout.action_mask.shape,
        )
        rollout = dataclasses.replace(
            rollout, action_mask=whole, token_mask=whole, segment=jnp.where(whole, 0, -1)
        )
        A = np.asarray(_columns(case.run(rollout))["advantage"], np.float64)
        size = 1 + np.abs(A).max()
        if (bad := np.abs(A - A[..., :1]) > 1e-5 * size).any():
            return f"tokens of one trajectory have different advantages {_where(bad, rollout)}"
        first = (
            np.asarray(rollout.row)[:, None, :] == np.arange(rollout.segment_mask.shape[1])[:, None]
        )
        first &= first.cumsum(-1) == 1  # one row for each trajectory
        total = (first * A[:, None, :, 0]).sum((1, 2))
        if (bad := np.abs(total) > 1e-4 * size).any():
            n = bad.argmax()
            return (
                f"prompt {n}: the group's advantages sum to {total[n]:.4g}, expected 0; "
                f"{_rewards_of(rollout, n)}"
            )
    return None


def equal_rewards_give_zero(case: Case) -> str | None:
    """If `zero_sum`, a group with equal returns, or with one trajectory, gets exactly 0."""
    _declared(case.method, "zero_sum")
    for rollout in case.samples(kinds=(2,)):
        A = _columns(case.run(rollout))["advantage"]
        if (A != 0).any():
            return f"the returns are equal, but the advantage is not 0 {_where(A != 0, rollout)}"
    return None


LAWS: tuple[Law, ...] = (
    finite_and_zero_off_the_mask,
    jit_equals_eager,
    permuting_trajectories_permutes_credit,
    padding_changes_nothing,
    no_gradient_flows,
    other_prompts_do_not_matter,
    no_collective_over_prompts,
    sharding_changes_nothing,
    large_offset_changes_nothing,
    affine_rewards_change_nothing,
    credit_sums_to_zero,
    equal_rewards_give_zero,
)
# Laws about compilation and devices. They follow from `per_group`, and are slow to check.
PROGRAMS = (jit_equals_eager, no_collective_over_prompts, sharding_changes_nothing)
QUICK = tuple(law for law in LAWS if law not in PROGRAMS)


def _group_only(case):
    if case.method.scope != "group":
        raise Skip("the estimator takes statistics over the batch (per_batch)")


def _declared(method, name):
    if not getattr(method, name):
        raise Skip(f"the estimator does not declare {name}=True")


def _columns(credit):
    return credit if isinstance(credit, dict) else {"advantage": credit}


def _sharded(case):
    """A rollout whose prompts are sharded over all devices, in the shape of the other laws."""
    count = jax.device_count()
    if count < 2:
        raise Skip("there is one device; JAX_NUM_CPU_DEVICES=8 simulates eight")
    N = 16 if 16 % count == 0 else count
    rollout = synthetic(case.seed, case.needs, N=N, **SHAPES[1])
    return jax.device_put(
        rollout,
        NamedSharding(Mesh(np.array(jax.devices()), ("prompts",)), PartitionSpec("prompts")),
    )


def _differ(a, b, rollout, label_a, label_b, tolerance=2e-5):
    """Message about the first difference of two credits, or None if they are equal."""
    a, b = _columns(a), _columns(b)
    if a.keys() != b.keys():
        return f"columns are {', '.join(a)} {label_a}, {', '.join(b)} {label_b}"
    for name in a:
        x, y = np.asarray(a[name], np.float64), np.asarray(b[name], np.float64)
        bad = ~(np.abs(x - y) <= tolerance * (1 + np.abs(y).max(initial=0)))
        if bad.any():
            at = tuple(int(i) for i in np.argwhere(bad)[0])
            return (
                f"{name} of {_place(at)} is {x[at]:.6g} {label_a}, {y[at]:.6g} {label_b} "
                f"({bad.sum()} tokens differ); {_rewards_of(rollout, at[0])}"
            )
    return None


def _where(bad, rollout):
    """First place at which a mask is True, the number of places, and the rewards of that prompt."""
    bad = np.asarray(bad)
    at = tuple(int(i) for i in np.argwhere(bad)[0])
    return f"at {_place(at)} ({bad.sum()} tokens); {_rewards_of(rollout, at[0])}"


def _place(at):
    return "prompt {}, row {}, token {}".format(*at)


def _rewards_of(rollout, n):
    """Rewards and numbers of policy tokens of one prompt, in words."""
    real, reward = np.asarray(rollout.segment_mask)[n], np.asarray(rollout.reward, np.float64)[n]
    rewards = [[float(f"{r:.4g}") for r in row[ok]] for row, ok in zip(reward, real, strict=True)]
    tokens = np.asarray(rollout.action_mask)[n].sum(-1).tolist()
    return f"rewards of that prompt's trajectories {rewards}, policy tokens of its rows {tokens}"
