"""Low-rank adapters, LoRA (2106.09685): y = x W + (x A) B, with B = 0 at the start.

Adapters are stored beside the policy's parameters as `params["lora"]`. Only adapters are trained:
the base parameters have neither gradients nor optimizer moments. The paper's scale alpha / r is 1
here, because it only rescales the learning rate.
"""

import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree

from jaxcredit.parallel.params import Param
from jaxcredit.policy.transformer import input_axes

Table = Mapping[str, int]  # rank by matrix, {"wq": 16, "wv": 16}; empty: train all parameters

ATTENTION = ("wq", "wk", "wv", "wo")
MLP = ("w_gate", "w_up", "w_down")


def table(rank: int, names: tuple[str, ...] = ATTENTION + MLP) -> Table:
    """Table with the same rank for every matrix in `names`; rank 0: no adapters.

    >>> table(16, ("wq", "wv"))
    {'wq': 16, 'wv': 16}
    """
    return dict.fromkeys(names, rank) if rank else {}


def specs(base: PyTree, ranks: Table) -> PyTree:
    """Declarations of the adapters, sharded like their matrices.

    Args:
        base: declarations of the policy, from `config.specs`.
        ranks: rank r by name of a matrix.

    Returns:
        {name: {"a": `[L, input axes, r]`, "b": `[L, r, output axes]`}} of `Param`.

    Raises:
        ValueError: a matrix that takes no adapter, or a rank below 1.
    """
    adaptable = [
        name
        for name, p in base["layers"].items()
        if name.startswith("w") and "expert" not in p.axes and name != "w_router"
    ]
    if wrong := [name for name in ranks if name not in adaptable]:
        raise ValueError(
            f"no adapter can stand beside {', '.join(wrong)}: the matrices of this policy that "
            "take "
            f"one are {', '.join(adaptable)}"
        )
    if wrong := [f"{name}: {rank}" for name, rank in ranks.items() if rank < 1]:
        raise ValueError(f"an adapter's rank must be at least 1, got {', '.join(wrong)}")

    def pair(name: str, rank: int) -> dict[str, Param]:
        p, n = base["layers"][name], 1 + input_axes(name)
        fan_in = math.prod(p.shape[1:n])
        return {
            "a": Param(
                (*p.shape[:n], rank),
                (*p.axes[:n], None),
                jax.nn.initializers.normal(1 / math.sqrt(fan_in)),
            ),
            "b": Param(
                (p.shape[0], rank, *p.shape[n:]),
                (None, None, *p.axes[n:]),
                jax.nn.initializers.zeros,
            ),
        }

    return {name: pair(name, rank) for name, rank in ranks.items()}


def split(params: PyTree) -> tuple[dict, PyTree]:
    """Frozen and trainable parameters.

    Returns:
        The base parameters and {"lora": adapters}; without adapters {} and `params`.
    """
    if not isinstance(params, dict) or "lora" not in params:
        return {}, params
    return {name: x for name, x in params.items() if name != "lora"}, {"lora": params["lora"]}


def join(frozen: dict, trainable: PyTree) -> PyTree:
    """Inverse of `split`."""
    return {**frozen, **trainable} if frozen else trainable


def merge(params: PyTree) -> PyTree:
    """Parameters with W + A B in place of every adapted matrix W, without adapters."""
    frozen, trainable = split(params)
    if not frozen:
        return trainable
    layers = {
        name: jax.vmap(merged)(w, trainable["lora"][name]) if name in trainable["lora"] else w
        for name, w in frozen["layers"].items()
    }
    return frozen | {"layers": layers}


def merged(w: Array, adapter: PyTree) -> Array:
    """W + A B of one layer, summed in float32, in the dtype of W.

    Args:
        w: matrix `[input axes, output axes]`.
        adapter: {"a": `[input axes, r]`, "b": `[r, output axes]`}.
    """
    a, b = (adapter[name].astype(jnp.float32) for name in "ab")
    return (w.astype(jnp.float32) + jnp.tensordot(a, b, 1)).astype(w.dtype)
