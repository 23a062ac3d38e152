"""Lifts a function of one prompt's group, or of a batch, to an estimator: vmap, masks, precision, checked arguments, no gradient."""

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
    """Metadata of an estimator, which the catalogue, the laws and the trainer read."""

    name: str
    summary: str = ""
    scope: Literal["group", "batch"] = (
        "group"  # "group": a prompt's credit ignores other prompts; "batch": statistics over the batch
    )
    paper: str = ""  # arXiv number
    fidelity: Fidelity = "ours"  # "paper", "code" (the authors' release) or "ours" (our design where sources are silent)
    granularity: Granularity = "trajectory"
    family: str = ""  # in the library the name of the estimator's folder
    needs: Mapping[str, str] = {}  # signals by name, with their axes for one group
    cost: str = (
        ""  # what collecting its signals takes beside the group's own answers; "" is nothing
    )
    min_group_size: int = (
        2  # the least group size that means anything; 1 where no group statistic is taken
    )
    affine: bool = False  # unchanged by r -> a r + b, a > 0
    zero_sum: bool = False  # one number a trajectory, summing to 0 over the group
    reduces_to: str = ""  # another method, and the conditions under which the estimator equals it


class Metadata(TypedDict, total=False):
    """Keywords of `per_group` and `per_batch`. See `Method` for their meaning and defaults."""

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
    """A lifted function: a `Credit` with metadata, whose knobs are checked before anything is traced."""

    __name__: str
    method: Method

    def __call__(self, rollout: Rollout, /, *args: Knobs.args, **knobs: Knobs.kwargs) -> Any:
        """Credit of every token, [N, R, T], or a dict of such columns. No gradient flows through it."""
        ...

    def unlifted(self, rollout: FilledRollout, /, *args: Knobs.args, **knobs: Knobs.kwargs) -> Any:
        """The function as written: of one group ([R, T]; of the batch after `per_batch`), differentiable and not masked."""
        ...


Function = Callable[Concatenate[FilledRollout, Knobs], Any]


@overload
def per_group(fn: Function[Knobs], /) -> Estimator[Knobs]: ...
@overload
def per_group(**metadata: Unpack[Metadata]) -> Callable[[Function[Knobs]], Estimator[Knobs]]: ...
def per_group(fn: Callable | None = None, /, **metadata: Unpack[Metadata]) -> Any:
    """Decorator that makes an estimator of a function of one prompt's group: `fn(group, *, knobs) -> [R, T]` or a dict of columns.

    The function runs under `jax.vmap` over the prompts. No prompt sees another, so sharded prompts need no communication.

    Args:
        fn: the function. Without it, a decorator that knows the metadata is returned.
        **metadata: fields of `Method`. `needs` are names in `jaxcredit.SIGNALS`, or {name: axes} for signals of your own.

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
    """Decorator that makes an estimator of a function of the whole batch: `fn(batch, *, knobs) -> [N, R, T]` or a dict of columns.

    The function may take statistics over all prompts.

    Args:
        fn: the function. Without it, a decorator that knows the metadata is returned.
        **metadata: fields of `Method`, as for `per_group`.

    Returns:
        An `Estimator`: `estimator(rollout, **knobs)` is [N, R, T], or a dict of such columns.
    """
    return _estimator(fn, "batch", metadata)


def method_of(credit: Credit) -> Method:
    """The metadata of a credit, through any `functools.partial`."""
    while isinstance(credit, functools.partial):
        credit = credit.func
    return getattr(credit, "method", Method(getattr(credit, "__name__", type(credit).__name__)))


def check_knobs(credit: Callable[..., Any]) -> None:
    """Raise on a wrong knob in the `functools.partial`s around an estimator, before anything is traced.

    Args:
        credit: an estimator, or a partial of one; estimators among its knobs (`base`) are checked too.

    Raises:
        TypeError: an unknown knob; the message lists the estimator's knobs.
        ValueError: a value that its knob does not list; the message lists the right ones.
    """
    knobs: dict[str, Any] = {}
    while isinstance(credit, functools.partial):
        knobs = {**credit.keywords, **knobs}
        credit = credit.func
    fn = getattr(getattr(credit, "unlifted", None), "__wrapped__", None)
    if fn is not None and fn is getattr(
        credit, "__wrapped__", None
    ):  # not a wrapper of an estimator, whose knobs may be others
        _check_knobs(method_of(credit).name, fn, knobs)
    for base in filter(callable, knobs.values()):
        check_knobs(base)


def columns(credit: Float[Array, "N R T"] | Columns, rollout: Rollout) -> Columns:
    """Credit's answer with the defaults written out: `weight` is the mask, `clip` is 1."""
    given = credit if isinstance(credit, dict) else {"advantage": credit}
    dtype = given["advantage"].dtype
    return {
        "weight": rollout.action_mask.astype(dtype),
        "clip": jnp.ones(rollout.action_mask.shape, dtype),
        **given,
    }


def _estimator(fn, scope, metadata) -> Any:
    if fn is None:
        return functools.partial(_estimator, scope=scope, metadata=metadata)
    summary = (fn.__doc__ or "").strip().partition("\n")[0]
    needs = metadata.get("needs", ())
    needs = needs if isinstance(needs, Mapping) else {name: SIGNALS[name].axes for name in needs}
    method = Method(
        **{**metadata, "name": fn.__name__, "summary": summary, "scope": scope, "needs": needs}
    )

    @functools.wraps(fn)
    def unlifted(rollout: FilledRollout, **knobs):
        _check_knobs(method.name, fn, knobs)
        return fn(rollout, **knobs)

    @functools.wraps(fn)
    def lifted(rollout: Rollout, **knobs):
        _check_knobs(method.name, fn, knobs)
        rollout.check_shapes()
        _require(method, rollout)
        rollout = _clean(rollout.filled())
        body = functools.partial(fn, **knobs)
        answer = body(rollout) if scope == "batch" else jax.vmap(body)(rollout)
        return jax.tree.map(jax.lax.stop_gradient, _finish(method, answer, rollout.action_mask))

    credit: Any = lifted
    credit.method, credit.unlifted = method, unlifted
    return credit


@functools.cache
def knobs_of(fn: Callable) -> Mapping[str, inspect.Parameter]:
    """Parameters of an estimator after the rollout, by name, with annotations evaluated."""
    try:
        signature = inspect.signature(fn, eval_str=True)
    except NameError:  # annotations in quotes, of names that only a type checker imports
        signature = inspect.signature(fn)
    return dict(list(signature.parameters.items())[1:])


def _check_knobs(name, fn, knobs):
    """Raises on an unknown knob, and on a value that a knob's `Literal` annotation does not list."""
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
    for name in method.needs:
        try:
            rollout[name]
        except KeyError as error:
            raise KeyError(f"{method.name}: {error.args[0]}") from None
    G = rollout.reward.shape[-2]
    if G < method.min_group_size:
        raise ValueError(
            f"{method.name} compares the trajectories of a group, and the group has {G}: "
            f"sample at least {method.min_group_size} per prompt (--group {max(8, method.min_group_size)}), "
            "or take an estimator that needs no peers (ppo, remax)"
        )


def _clean(rollout):
    """At least float32, and nothing but zero where nothing took place, so that sums need no mask."""

    def wide(x):
        return (
            x.astype(jnp.promote_types(x.dtype, jnp.float32))
            if jnp.issubdtype(x.dtype, jnp.floating)
            else x
        )

    rollout = jax.tree.map(wide, rollout)
    reward = (
        rollout.reward
        if jnp.issubdtype(rollout.reward.dtype, jnp.floating)
        else rollout.reward.astype(jnp.float32)
    )
    return dataclasses.replace(rollout, reward=jnp.where(rollout.segment_mask, reward, 0))


def _finish(method, answer, mask):
    for name, x in answer.items() if isinstance(answer, dict) else [("advantage", answer)]:
        _fit(method, name, jnp.shape(x), mask.shape)
    if not isinstance(answer, dict):
        return jnp.where(mask, answer, 0)
    off = {"clip": 1.0}
    return {name: jnp.where(mask, x, off.get(name, 0.0)) for name, x in answer.items()}


def _fit(method, name, got, want):
    """A number for each token and nothing else: what could be broadcast, as [G] to [R, T] where G = T, would mean something else."""
    if got == want:
        return
    axes, first, once = (
        ("R, T", 1, "")
        if method.scope == "group"
        else ("N, R, T", 0, ", one prompt at a time (jax.vmap)")
    )
    raise ValueError(
        f"{method.name}: {name} has shape {list(got[first:])}, expected [{axes}] = {list(want[first:])}. "
        f"jaxcredit.kernels.to_tokens(x, group) gives every token its trajectory's number [G] or its segment's [G, K]{once}"
    )
