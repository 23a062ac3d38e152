"""Decorators that make an estimator of a function of one prompt's group, or of a batch.

They add checks of shapes and knobs, `jax.vmap` over prompts, float32, masking,
`jax.lax.stop_gradient` and metadata.
"""

import dataclasses
import difflib
import functools
import inspect
from collections.abc import Callable, Mapping, Sequence
from typing import (
    Any,
    Concatenate,
    Literal,
    NamedTuple,
    ParamSpec,
    Protocol,
    TypedDict,
    Unpack,
    get_args,
    get_origin,
    overload,
    runtime_checkable,
)

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxcredit.kernels.choices import check_choice
from jaxcredit.rollout import SIGNALS, FilledRollout, Rollout

Columns = dict[str, Float[Array, "N R T"]]
Credit = Callable[..., Float[Array, "N R T"] | Columns]
Fidelity = Literal["paper", "code", "ours"]
Granularity = Literal["token", "segment", "step", "turn", "trajectory", "agent"]
Knobs = ParamSpec("Knobs")


class Method(NamedTuple):
    """Metadata of an estimator, used by the catalogue, the laws and the trainer.

    Attributes:
        name: the function's name.
        summary: the first line of its docstring.
        scope: "group" (a prompt's credit ignores other prompts) or "batch" (statistics over
            all prompts).
        paper: arXiv number, or "" without a paper.
        fidelity: source of the formula. "paper": the paper's equation; "code": the authors'
            released code; "ours": our own design where the sources are silent.
        granularity: the unit that is credited.
        family: the estimator's folder below `jaxcredit/credit/`.
        needs: axes of each signal that is used, for one group, by the signal's name.
        cost: what the signals take beside the group's own answers; "" for nothing.
        min_group_size: smallest G that is accepted; 1 if there are no statistics over a group.
        affine: whether credit is unchanged by r -> a r + b with a > 0.
        zero_sum: whether each trajectory has one number, and a group's numbers sum to 0.
        reduces_to: another method, and the conditions under which both are equal.
    """

    name: str
    summary: str = ""
    scope: Literal["group", "batch"] = "group"
    paper: str = ""
    fidelity: Fidelity = "ours"
    granularity: Granularity = "trajectory"
    family: str = ""
    needs: Mapping[str, str] = {}
    cost: str = ""
    min_group_size: int = 2
    affine: bool = False
    zero_sum: bool = False
    reduces_to: str = ""


class Metadata(TypedDict, total=False):
    """Keywords of `per_group` and `per_batch`; `Method` has their meanings and defaults."""

    paper: str
    fidelity: Fidelity
    granularity: Granularity
    family: str
    needs: Sequence[str] | Mapping[str, str]
    cost: str
    min_group_size: int
    affine: bool
    zero_sum: bool
    reduces_to: str


@runtime_checkable
class Estimator(Protocol[Knobs]):
    """Credit function with metadata and checked knobs, as made by `per_group` and `per_batch`."""

    __name__: str
    method: Method

    def __call__(self, rollout: Rollout, /, *args: Knobs.args, **knobs: Knobs.kwargs) -> Any:
        """Credit of every token, without a gradient.

        Args:
            rollout: N prompts. Floats below float32 are computed in float32.
            **knobs: keywords of the function.

        Returns:
            Advantage [N, R, T], or a dict of such columns: "advantage", "weight", "clip",
            "target". Tokens that the policy did not choose have 0 ("clip": 1).

        Raises:
            TypeError: an unknown knob.
            ValueError: a knob's value that its `Literal` does not list, a rollout whose shapes
                do not fit, fewer trajectories than `method.min_group_size`, or a function that
                returns other shapes.
            KeyError: a signal in `method.needs` that the rollout does not carry.
        """
        ...

    def unlifted(self, rollout: FilledRollout, /, *args: Knobs.args, **knobs: Knobs.kwargs) -> Any:
        """The decorated function itself: differentiable, neither masked nor stopped.

        Args:
            rollout: one prompt's group after `per_group`; the batch after `per_batch`.
            **knobs: keywords of the function, checked.

        Returns:
            [R, T] after `per_group`, [N, R, T] after `per_batch`, or a dict of such columns.
        """
        ...


Function = Callable[Concatenate[FilledRollout, Knobs], Any]


@overload
def per_group(fn: Function[Knobs], /) -> Estimator[Knobs]: ...
@overload
def per_group(**metadata: Unpack[Metadata]) -> Callable[[Function[Knobs]], Estimator[Knobs]]: ...
def per_group(fn: Callable | None = None, /, **metadata: Unpack[Metadata]) -> Any:
    """Make an estimator of a function of one prompt's group.

    The function runs under `jax.vmap` over the prompts. A prompt's credit cannot depend on
    other prompts, so prompts on different devices need no communication.

    Args:
        fn: `fn(group, *, knobs)`, which returns [R, T] or a dict of such columns. `group` is a
            `FilledRollout` without the axis N. Without `fn` a decorator is returned.
        **metadata: fields of `Method`. `needs` are names in `jaxcredit.SIGNALS`, or a mapping
            from name to axes for signals of your own.

    Returns:
        An `Estimator`: `estimator(rollout, **knobs)` is [N, R, T], or a dict of such columns.

    Example:
        >>> @per_group(granularity="trajectory")
        ... def centered(group):
        ...     reward = group.reward.sum(-1)
        ...     return jnp.zeros(group.tokens.shape) + (reward - reward.mean())[group.row][:, None]
        >>> centered.method.granularity
        'trajectory'
    """
    return _estimator(fn, "group", metadata)


@overload
def per_batch(fn: Function[Knobs], /) -> Estimator[Knobs]: ...
@overload
def per_batch(**metadata: Unpack[Metadata]) -> Callable[[Function[Knobs]], Estimator[Knobs]]: ...
def per_batch(fn: Callable | None = None, /, **metadata: Unpack[Metadata]) -> Any:
    """Make an estimator of a function of the whole batch, which may use statistics over prompts.

    Args:
        fn: `fn(batch, *, knobs)`, which returns [N, R, T] or a dict of such columns. Without it
            a decorator is returned.
        **metadata: fields of `Method`, as for `per_group`.

    Returns:
        An `Estimator`: `estimator(rollout, **knobs)` is [N, R, T], or a dict of such columns.
    """
    return _estimator(fn, "batch", metadata)


def method_of(credit: Credit) -> Method:
    """Metadata of a credit function, through any `functools.partial` around it.

    A function without metadata gets a `Method` with its name and defaults.

    >>> from jaxcredit import credit
    >>> method_of(credit.sploo).granularity
    'token'
    """
    while isinstance(credit, functools.partial):
        credit = credit.func
    return getattr(credit, "method", Method(getattr(credit, "__name__", type(credit).__name__)))


def check_knobs(credit: Callable[..., Any]) -> None:
    """Check the knobs in the `functools.partial`s around an estimator, without tracing it.

    Args:
        credit: an estimator, or a partial of one. Estimators among its knobs (`base`) are
            checked too.

    Raises:
        TypeError: an unknown knob; the message lists the estimator's knobs.
        ValueError: a value that its knob does not list; the message lists the right ones.
    """
    knobs: dict[str, Any] = {}
    while isinstance(credit, functools.partial):
        knobs = {**credit.keywords, **knobs}
        credit = credit.func
    fn = getattr(getattr(credit, "unlifted", None), "__wrapped__", None)
    # Only an estimator itself wraps `fn`: a `functools.wraps` around one may have other knobs.
    if fn is not None and fn is getattr(credit, "__wrapped__", None):
        _check_knobs(method_of(credit).name, fn, knobs)
    for base in filter(callable, knobs.values()):
        check_knobs(base)


def columns(credit: Float[Array, "N R T"] | Columns, rollout: Rollout) -> Columns:
    """Credit as a dict of columns, with defaults filled in.

    Args:
        credit: the result of an estimator: advantage [N, R, T], or a dict of columns.
        rollout: the rollout that it was computed from.

    Returns:
        "advantage", "weight" (default: the action mask), "clip" (default: 1) and any other
        column of `credit`, each [N, R, T].
    """
    given = credit if isinstance(credit, dict) else {"advantage": credit}
    dtype = given["advantage"].dtype
    return {
        "weight": rollout.action_mask.astype(dtype),
        "clip": jnp.ones(rollout.action_mask.shape, dtype),
        **given,
    }


def _estimator(fn, scope, metadata) -> Any:
    """An `Estimator` of `fn`, or without `fn` a decorator."""
    if fn is None:
        return functools.partial(_estimator, scope=scope, metadata=metadata)
    summary = (fn.__doc__ or "").strip().partition("\n")[0]
    needs = metadata.get("needs", ())
    needs = needs if isinstance(needs, Mapping) else {name: SIGNALS[name].axes for name in needs}
    method = Method(
        **{**metadata, "name": fn.__name__, "summary": summary, "scope": scope, "needs": needs}
    )

    @functools.wraps(fn)
    def unlifted(rollout: Rollout, **knobs):
        _check_knobs(method.name, fn, knobs)
        return fn(rollout, **knobs)

    @functools.wraps(fn)
    def lifted(rollout: Rollout, **knobs):
        _check_knobs(method.name, fn, knobs)
        rollout.check_shapes()
        _require(method, rollout)
        rollout = _clean(rollout.filled())
        body = functools.partial(fn, **knobs)
        computed = body(rollout) if scope == "batch" else jax.vmap(body)(rollout)
        return jax.tree.map(jax.lax.stop_gradient, _finish(method, computed, rollout.action_mask))

    credit: Any = lifted
    credit.method, credit.unlifted = method, unlifted
    return credit


@functools.cache
def knobs_of(fn: Callable) -> Mapping[str, inspect.Parameter]:
    """Parameters of an estimator after the rollout, by name, with evaluated annotations."""
    try:
        signature = inspect.signature(fn, eval_str=True)
    except NameError:  # quoted annotations of names that only a type checker imports
        signature = inspect.signature(fn)
    return dict(list(signature.parameters.items())[1:])


def _check_knobs(name, fn, knobs):
    """Raise on an unknown knob, and on a value that the knob's `Literal` does not list."""
    known = knobs_of(fn)
    for knob, value in knobs.items():
        if knob in known:
            annotation = known[knob].annotation
            if get_origin(annotation) is Literal:
                check_choice(name, knob, value, get_args(annotation))
        elif not any(p.kind is p.VAR_KEYWORD for p in known.values()):
            near = difflib.get_close_matches(knob, known, 1)
            hint = f"did you mean {near[0]}? " if near else ""
            raise TypeError(
                f"{name} has no knob {knob!r}; {hint}its knobs: {', '.join(known) or 'none'}"
            )


def _require(method, rollout):
    """Raise on a missing signal, or on fewer trajectories than the estimator compares."""
    for name in method.needs:
        try:
            rollout[name]
        except KeyError as error:
            raise KeyError(f"{method.name}: {error.args[0]}") from None
    G = rollout.reward.shape[-2]
    if G < method.min_group_size:
        raise ValueError(
            f"{method.name} compares the trajectories of a group, but each group has {G}: "
            f"sample at least {method.min_group_size} answers to each prompt (group_size in an "
            "experiment), or choose an estimator without group statistics (ppo, remax)"
        )


def _clean(rollout):
    """The rollout in at least float32, with reward 0 in segments that did not take place."""

    def widen(x):
        if not jnp.issubdtype(x.dtype, jnp.floating):
            return x
        return x.astype(jnp.promote_types(x.dtype, jnp.float32))

    rollout = jax.tree.map(widen, rollout)
    reward = rollout.reward
    if not jnp.issubdtype(reward.dtype, jnp.floating):
        reward = reward.astype(jnp.float32)
    return dataclasses.replace(rollout, reward=jnp.where(rollout.segment_mask, reward, 0))


def _finish(method, computed, mask):
    """The columns with their neutral value (0; "clip": 1) at tokens the policy did not choose."""
    given = computed if isinstance(computed, dict) else {"advantage": computed}
    for name, x in given.items():
        _check_shape(method, name, jnp.shape(x), mask.shape)
    if not isinstance(computed, dict):
        return jnp.where(mask, computed, 0)
    return {name: jnp.where(mask, x, 1.0 if name == "clip" else 0.0) for name, x in given.items()}


def _check_shape(method, name, shape, expected):
    """Raise unless a column has one number a token.

    Broadcasting [G] to [R, T] where G = T would silently mix trajectories and tokens.
    """
    if shape == expected:
        return
    axes, first, hint = (
        ("R, T", 1, "")
        if method.scope == "group"
        else ("N, R, T", 0, ", one prompt at a time (jax.vmap)")
    )
    raise ValueError(
        f"{method.name}: {name} has shape {list(shape[first:])}, "
        f"expected [{axes}] = {list(expected[first:])}. jaxcredit.kernels.to_tokens(x, group) "
        f"gives every token its trajectory's number [G] or its segment's [G, K]{hint}"
    )
