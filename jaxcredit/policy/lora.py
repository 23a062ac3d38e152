"""Low-rank adapters, LoRA (2106.09685): a table from logical names of matrices to ranks.  y = x W + (x A) B,  B = 0 at first.

Adapters lie beside the policy as `params["lora"]` and are all that is trained: what is below them has neither gradient nor moments. The
paper's scale alpha / r is 1 here; a learning rate says the same.
"""

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from jaxcredit.parallel.params import Param
from jaxcredit.policy.transformer import inputs

Table = Mapping[str, int]  # {"wq": 16, "wv": 16}; empty: all parameters are trained

ATTENTION = ("wq", "wk", "wv", "wo")
MLP = ("w_gate", "w_up", "w_down")


def table(rank: int, names: tuple[str, ...] = ATTENTION + MLP) -> Table:
    """The same rank for every name; rank 0 is no adapter at all."""
    return dict.fromkeys(names, rank) if rank else {}


def specs(base: PyTree, ranks: Table) -> PyTree:
    """The adapters `{name: {"a": [L, in, r], "b": [L, r, out]}}` of a policy's `transformer.specs`, cut as the matrices beside them."""
    able = [
        name
        for name, p in base["layers"].items()
        if name.startswith("w") and "expert" not in p.axes and name != "w_router"
    ]
    if wrong := [name for name in ranks if name not in able]:
        raise ValueError(
            f"no adapter can stand beside {', '.join(wrong)}: the matrices of this policy that take one are {', '.join(able)}"
        )
    if wrong := [f"{name}: {rank}" for name, rank in ranks.items() if rank < 1]:
        raise ValueError(f"an adapter's rank must be at least 1, got {', '.join(wrong)}")

    def pair(name: str, rank: int) -> dict[str, Param]:
        p, n = base["layers"][name], 1 + inputs(name)
        fan = math.prod(p.shape[1:n])
        return {
            "a": Param(
                (*p.shape[:n], rank),
                (*p.axes[:n], None),
                jax.nn.initializers.normal(1 / math.sqrt(fan)),
            ),
            "b": Param(
                (p.shape[0], rank, *p.shape[n:]),
                (None, None, *p.axes[n:]),
                jax.nn.initializers.zeros,
            ),
        }

    return {name: pair(name, rank) for name, rank in ranks.items()}


def split(params: PyTree) -> tuple[dict, PyTree]:
    """What stays as it is, and what is trained: the adapters, or without any all of it."""
    if not isinstance(params, dict) or "lora" not in params:
        return {}, params
    return {name: x for name, x in params.items() if name != "lora"}, {"lora": params["lora"]}


def join(still: dict, trained: PyTree) -> PyTree:
    """The inverse of `split`."""
    return {**still, **trained} if still else trained


def merge(params: PyTree) -> PyTree:
    """The policy with its adapters added to its matrices: W + A B, without params["lora"]."""
    still, trained = split(params)
    if not still:
        return trained
    layers = {
        name: jax.vmap(merged)(w, trained["lora"][name]) if name in trained["lora"] else w
        for name, w in still["layers"].items()
    }
    return still | {"layers": layers}


def merged(w: Array, adapter: PyTree) -> Array:
    """W + A B of one layer, summed in float32."""
    a, b = (adapter[name].astype(jnp.float32) for name in "ab")
    return (w.astype(jnp.float32) + jnp.tensordot(a, b, 1)).astype(w.dtype)
