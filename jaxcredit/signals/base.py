"""Interface of an annotator: three functions that measure or learn a signal of the rollout."""

from collections.abc import Callable
from typing import Any, NamedTuple

from jaxcredit.rollout import Rollout


class Learned(NamedTuple):
    """Annotator of rollouts with its own state `aux`: any pytree of arrays, {} if it has none.

    The trainer keeps the state in `TrainState.aux[name]`, saves it with every checkpoint and calls
    the functions once a step, in this order: annotate, the estimator, update, the policy's update.

    Fields:
        init: `init(key, params) -> aux`, the first state. key: a typed JAX random key. params: the
            policy's parameters. The call is traced (`jax.jit`, `jax.eval_shape`), so it may only
            use JAX. On a mesh every device holds the whole state.
        annotate: `annotate(aux, state, rollout, metas) -> rollout`, the rollout with the signals
            added by `rollout.with_signals`. state: the `TrainState` before the policy's update
            (`state.params` are the policy's parameters). rollout: the `Rollout` that was collected,
            with the signals of the annotators before this one. metas: for each of this process's
            prompts the dict `meta` of its problem. The call is not traced, so it may run code on
            the host.
        update: `update(aux, state, rollout, columns) -> (aux, metrics)`, the next state and a dict
            of scalars, logged as `name/key`. rollout: with all signals. columns: the estimator's
            result, a dict of arrays [N, R, T] with at least `advantage`, `weight` and `clip`. The
            call is not traced. Without it the state stays as it is.
    """

    init: Callable[..., Any]
    annotate: Callable[..., Rollout]
    update: Callable[..., tuple[Any, dict]] = lambda aux, state, rollout, columns: (aux, {})
