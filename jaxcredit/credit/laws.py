"""What every estimator obeys, as functions: the tests, `jaxcredit check` and a newcomer's own file all call `check`.

    for result in laws.check(my_credit): print(result.law, result.passed, result.detail)

Each law takes a credit and random rollouts made from the SIGNALS table, and answers with what is wrong, or nothing.
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
from jaxcredit.rollout import SIGNALS, Rollout, trajectory_mask
from jaxcredit.rollout import transforms as variants
from jaxcredit.rollout.synthetic import synthetic

COLUMNS = ("advantage", "weight", "clip", "target")
COLLECTIVES = ("all-reduce", "all-gather", "all-to-all", "collective-permute", "reduce-scatter")


Law = Callable[["Case"], str | None]


class Result(NamedTuple):
    """One law, and whether it held: None where it does not apply (then `detail` says why)."""

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
    """Every law on this credit (or those of `laws`), each with the failing input when it does not hold."""
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
        except Skip as why:
            results.append(Result(name, None, str(why)))
        except Exception as error:  # the law could not even be tried: that is a failure with a cause, not a crash of the table
            results.append(Result(name, False, f"{type(error).__name__}: {error}"))
    return results


class Case(NamedTuple):
    """A credit under examination. `run` is its one compiled form: the laws ask about few shapes, as most of their time is compiling."""

    credit: Credit
    run: Credit
    method: Method
    seed: int
    shapes: tuple[dict, ...]

    @property
    def needs(self) -> tuple[str, ...]:
        """The signals it declares; all that there are, for a function without metadata."""
        return tuple(self.method.needs) if self.method.summary else tuple(SIGNALS)

    def samples(self, shapes=None, **kw) -> Iterable[Rollout]:
        """Random rollouts: one segment, several, and rows that continue other rows' trajectories."""
        for i, shape in enumerate(self.shapes if shapes is None else shapes):
            yield synthetic(100 * self.seed + i, self.needs, **shape, **kw)


class Skip(Exception):
    """Raised by a law that does not apply."""


SHAPES: tuple[dict, ...] = ({"K": 1}, {"K": 3}, {"K": 3, "R": 8, "G": 5})


def finite_and_zero_off_the_mask(case: Case) -> str | None:
    """[N, R, T] floats, finite whatever happened, and nothing on tokens the policy did not choose."""
    for rollout in (*case.samples(), *case.samples(case.shapes[-1:], dtype="bfloat16")):
        for name, x in _columns(case.run(rollout)).items():
            if name not in COLUMNS:
                return f"column {name!r} is not one of {', '.join(COLUMNS)}"
            if x.shape != rollout.action_mask.shape or not jnp.issubdtype(x.dtype, jnp.floating):
                return f"{name} is {x.dtype}{list(x.shape)}, expected floats {list(rollout.action_mask.shape)}"
            if not jnp.isfinite(x).all():
                return f"{name} is not finite: {_where(~np.isfinite(x), rollout)}"
            off = (x != (name == "clip")) & ~rollout.action_mask
            if off.any():
                return f"{name} is not {int(name == 'clip')} off the mask: {_where(off, rollout)}"
    return None


def jit_equals_eager(case: Case) -> str | None:
    """The compiled program gives the numbers of the uncompiled one."""
    for rollout in case.samples(case.shapes[1:2] or case.shapes):
        if problem := _differ(case.run(rollout), case.credit(rollout), rollout):
            return problem
    return None


def permuting_trajectories_permutes_credit(case: Case) -> str | None:
    """Trajectories have no order: renaming them changes nothing, and their rows' credit goes with the rows."""
    for i, rollout in enumerate(case.samples()):
        G, R = rollout.segment_mask.shape[1], rollout.action_mask.shape[1]
        order = np.random.default_rng(case.seed + i).permutation(G)
        renamed, before = variants.reordered(rollout, "G", order), case.run(rollout)
        if problem := _differ(case.run(renamed), before, rollout):
            return "trajectories renamed, rows in place: " + problem
        if R == G:  # the rows of one trajectory do have an order; single ones have none
            moved = jax.tree.map(lambda x, order=order: x[:, order], before)
            if problem := _differ(
                case.run(variants.reordered(renamed, "R", order)), moved, rollout
            ):
                return "trajectories and rows reordered: " + problem
    return None


def padding_changes_nothing(case: Case) -> str | None:
    """More columns, segments, rows and trajectories that are not real leave the credit of the others as it was."""
    for rollout in case.samples(case.shapes[::2]):
        _, R, T = rollout.action_mask.shape
        padded = functools.reduce(variants.padded, ("T", "K", "R", "G"), rollout)
        after = {name: x[:, :R, :T] for name, x in _columns(case.run(padded)).items()}
        if problem := _differ(after, case.run(rollout), rollout):
            return problem
    return None


def no_gradient_flows(case: Case) -> str | None:
    """Credit is a constant of the loss."""
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
                return f"a gradient of {float(jnp.abs(g).max()):.3g} flows into {jax.tree_util.keystr(path)}"
    return None


def other_prompts_do_not_matter(case: Case) -> str | None:
    """per_group: a prompt's credit stays when every other prompt is replaced."""
    _group_only(case)
    for i, rollout in enumerate(case.samples()):
        others = variants.like(rollout, 100 * case.seed + 50 + i)
        mixed = jax.tree.map(
            lambda a, b: jnp.asarray(np.concatenate([np.asarray(a)[:1], np.asarray(b)[1:]])),
            rollout,
            others,
        )
        a, b = (
            {name: x[:1] for name, x in _columns(case.run(r)).items()} for r in (mixed, rollout)
        )
        if problem := _differ(a, b, rollout):
            return problem
    return None


def no_collective_over_prompts(case: Case) -> str | None:
    """per_group: with the prompts spread over devices, the compiled program holds no communication."""
    _group_only(case)
    leaves, tree = jax.tree.flatten(_sharded(case))
    text = (
        jax.jit(lambda *leaves: case.credit(jax.tree.unflatten(tree, leaves)))
        .lower(*leaves)
        .compile()
        .as_text()
    )
    assert text is not None, "this backend does not show what it compiled"
    found = [c for c in COLLECTIVES if c in text]
    return (
        f"the program compiled for {jax.device_count()} devices holds {', '.join(found)}"
        if found
        else None
    )


def sharding_changes_nothing(case: Case) -> str | None:
    """The same numbers with the prompts on one device and spread over all."""
    rollout = _sharded(case)
    alone = jax.device_put(rollout, jax.devices()[0])
    a, b = (jax.device_get(case.run(r)) for r in (rollout, alone))
    return _differ(a, b, rollout)


def a_large_offset_is_survived(case: Case) -> str | None:
    """float32 outcomes 10,000 higher give the same credit: variances take two passes."""
    _declared(case.method.affine)
    for rollout in case.samples():
        rollout = dataclasses.replace(
            rollout, reward=jnp.round(rollout.reward * 64) / 64
        )  # which the offset leaves exact
        if problem := _differ(
            case.run(variants.rewarded(rollout, 1.0, 1e4)), case.run(rollout), rollout, tol=2e-3
        ):
            return problem
    return None


def affine_rewards_change_nothing(case: Case) -> str | None:
    """Declared affine: outcomes a R + b with a > 0 give the same credit (but for eps)."""
    _declared(case.method.affine)
    for rollout in case.samples(kinds=(0, 3)):
        if problem := _differ(
            case.run(variants.rewarded(rollout, 4.0, -1.0)), case.run(rollout), rollout, tol=1e-4
        ):
            return problem
    return None


def credit_sums_to_zero(case: Case) -> str | None:
    """Declared zero-sum: each trajectory has one number, and a group's numbers sum to 0."""
    _declared(case.method.zero_sum)
    for rollout in case.samples():
        rollout = rollout.filled()
        # A trajectory shows its number only where it has a token, so each row here is given all of its columns.
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
            return f"tokens of one trajectory differ: {_where(bad, rollout)}"
        first = (
            np.asarray(rollout.row)[:, None, :] == np.arange(rollout.segment_mask.shape[1])[:, None]
        )
        first &= first.cumsum(-1) == 1  # one row for each trajectory
        total = (first * A[:, None, :, 0]).sum((1, 2))
        if (bad := np.abs(total) > 1e-4 * size).any():
            return f"prompt {bad.argmax()}: the group's credit sums to {total[bad.argmax()]:.4g}; {_story(rollout, bad.argmax())}"
    return None


def equal_rewards_give_zero(case: Case) -> str | None:
    """Declared zero-sum: a group whose outcomes are equal, or that has one trajectory, gets exactly 0, whatever the reward."""
    _declared(case.method.zero_sum)
    for rollout in case.samples(kinds=(2,)):
        A = _columns(case.run(rollout))["advantage"]
        if (A != 0).any():
            return f"equal rewards, and yet credit: {_where(A != 0, rollout)}"
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
    a_large_offset_is_survived,
    affine_rewards_change_nothing,
    credit_sums_to_zero,
    equal_rewards_give_zero,
)
# What two devices, two compilers and two orders of compiling could get wrong: true of the lift, and dear to ask of every estimator.
PROGRAMS = (jit_equals_eager, no_collective_over_prompts, sharding_changes_nothing)
QUICK = tuple(law for law in LAWS if law not in PROGRAMS)


def _group_only(case):
    if case.method.scope != "group":
        raise Skip("it takes statistics over the batch")


def _declared(it):
    if not it:
        raise Skip("not declared")


def _columns(answer):
    return answer if isinstance(answer, dict) else {"advantage": answer}


def _sharded(case):
    """A rollout whose prompts lie on all devices. Its shape is that of the other laws, so that one program more is compiled, not two."""
    count = jax.device_count()
    if count < 2:
        raise Skip("there is one device (try JAX_NUM_CPU_DEVICES=8)")
    N = 16 if 16 % count == 0 else count
    rollout = synthetic(case.seed, case.needs, N=N, **SHAPES[1])
    return jax.device_put(
        rollout,
        NamedSharding(Mesh(np.array(jax.devices()), ("prompts",)), PartitionSpec("prompts")),
    )


def _differ(a, b, rollout, tol=2e-5):
    """What differs between two answers, in words."""
    a, b = _columns(a), _columns(b)
    if a.keys() != b.keys():
        return f"columns {', '.join(a)} and {', '.join(b)}"
    for name in a:
        x, y = np.asarray(a[name], np.float64), np.asarray(b[name], np.float64)
        bad = ~(np.abs(x - y) <= tol * (1 + np.abs(y).max(initial=0)))
        if bad.any():
            at = tuple(int(i) for i in np.argwhere(bad)[0])
            return f"{name}{list(at)} is {x[at]:.6g} and {y[at]:.6g} ({bad.sum()} places); {_story(rollout, at[0])}"
    return None


def _where(bad, rollout):
    bad = np.asarray(bad)
    at = tuple(int(i) for i in np.argwhere(bad)[0])
    return f"at {list(at)} ({bad.sum()} places); {_story(rollout, at[0])}"


def _story(rollout, n):
    """The prompt that shows it, short enough for a table."""
    real, reward = np.asarray(rollout.segment_mask)[n], np.asarray(rollout.reward, np.float64)[n]
    earned = [[float(f"{r:.4g}") for r in row[ok]] for row, ok in zip(reward, real, strict=True)]
    return f"rewards of that prompt {earned}, policy tokens {np.asarray(rollout.action_mask)[n].sum(-1).tolist()}"
