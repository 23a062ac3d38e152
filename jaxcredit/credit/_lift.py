"""Estimators are written for one prompt's group; what they all share is added here, once: vmap, mask, precision, no gradient, errors."""

import functools
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxcredit.rollout import SIGNALS, Rollout

Columns = dict[str, Float[Array, "N R T"]]
Credit = Callable[..., Float[Array, "N R T"] | Columns]


class Method(NamedTuple):
    """What the catalogue, the laws and the trainer know about an estimator."""

    name: str
    summary: str = ""
    scope: str = "group"  # "group": a prompt's credit ignores other prompts; "batch": statistics over the batch
    paper: str = ""  # arXiv number
    fidelity: str = "ours"  # "paper", "code" (the authors' release) or "ours" (our design where sources are silent)
    granularity: str = "trajectory"  # token, segment, step, turn, trajectory, agent
    family: str = "MC"
    needs: Mapping[str, str] = {}  # signals by name, with their axes for one group
    cost: str = ""  # what collecting its signals takes beside the group's own answers; "" is nothing
    peers: int = 2  # the least group size that means anything; 1 where no group statistic is taken
    affine: bool = False  # unchanged by r -> a r + b, a > 0
    zero_sum: bool = False  # one number a trajectory, summing to 0 over the group
    reduces: str = ""  # the conditions under which it is another method


def per_group(fn: Callable | None = None, /, **meta: Any) -> Any:
    """Lift `fn(group, *, knobs) -> [R, T]` (or a dict of columns) over the prompts to a Credit: none sees another, no collective over N."""
    return _credit(fn, "group", meta)


def per_batch(fn: Callable | None = None, /, **meta: Any) -> Any:
    """Lift `fn(batch, *, knobs) -> [N, R, T]` (or a dict of columns) to a Credit, which may take statistics over all prompts."""
    return _credit(fn, "batch", meta)


def method_of(credit: Credit) -> Method:
    """The metadata of a credit, through any `functools.partial`."""
    while isinstance(credit, functools.partial):
        credit = credit.func
    return getattr(credit, "method", Method(getattr(credit, "__name__", type(credit).__name__)))


def columns(credit: Float[Array, "N R T"] | Columns, rollout: Rollout) -> Columns:
    """Credit's answer with the defaults written out: `weight` is the mask, `clip` is 1."""
    given = credit if isinstance(credit, dict) else {"advantage": credit}
    dtype = given["advantage"].dtype
    return {"weight": rollout.mask.astype(dtype), "clip": jnp.ones(rollout.mask.shape, dtype), **given}


def _credit(fn, scope, meta) -> Any:
    if fn is None:
        return functools.partial(_credit, scope=scope, meta=meta)
    doc = (fn.__doc__ or "").strip().partition("\n")[0]
    needs = meta.pop("needs", {})
    needs = needs if isinstance(needs, Mapping) else {name: SIGNALS[name].axes for name in needs}
    method = Method(name=fn.__name__, summary=doc, scope=scope, needs=needs, **meta)

    @functools.wraps(fn)
    def lifted(rollout: Rollout, **knobs):
        rollout.check_shapes()
        _require(method, rollout)
        rollout = _clean(rollout.filled())
        body = functools.partial(fn, **knobs)
        answer = body(rollout) if scope == "batch" else jax.vmap(body)(rollout)
        return jax.tree.map(jax.lax.stop_gradient, _finish(method, answer, rollout.mask))

    credit: Any = lifted
    credit.method, credit.one = method, fn  # `one`: the bare function of a single group, differentiable and unmasked
    return credit


def _require(method, rollout):
    for name in method.needs:
        try:
            rollout[name]
        except KeyError as error:
            raise KeyError(f"{method.name}: {error.args[0]}") from None
    G = rollout.reward.shape[-2]
    if G < method.peers:
        raise ValueError(
            f"{method.name} compares the trajectories of a group, and the group has {G}: "
            f"sample at least {method.peers} per prompt (--group {max(8, method.peers)}), "
            "or take an estimator that needs no peers (ppo, remax)"
        )


def _clean(rollout):
    """At least float32, and nothing but zero where nothing took place, so that sums need no mask."""

    def wide(x):
        return x.astype(jnp.promote_types(x.dtype, jnp.float32)) if jnp.issubdtype(x.dtype, jnp.floating) else x

    rollout = jax.tree.map(wide, rollout)
    reward = rollout.reward if jnp.issubdtype(rollout.reward.dtype, jnp.floating) else rollout.reward.astype(jnp.float32)
    return Rollout(**{**vars(rollout), "reward": jnp.where(rollout.real, reward, 0)})


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
    axes, first, once = ("R, T", 1, "") if method.scope == "group" else ("N, R, T", 0, ", one prompt at a time (jax.vmap)")
    raise ValueError(
        f"{method.name}: {name} has shape {list(got[first:])}, expected [{axes}] = {list(want[first:])}. "
        f"jaxcredit.kernels.spread(x, group) gives every token its trajectory's number [G] or its segment's [G, K]{once}"
    )
