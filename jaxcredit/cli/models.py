"""What `jaxcredit models` prints: the published models this decoder computes, counted from their shapes."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from jaxcredit.parallel import params
from jaxcredit.policy import presets
from jaxcredit.policy.config import Config, specs
from jaxcredit.utils.tables import Column, Sheet


def rows(words: Sequence[str] = ()) -> list[dict]:
    """One dict a model whose name or hub id holds all `words`."""
    found = {
        name: p
        for name, p in presets.ALL.items()
        if all(w.lower() in f"{name} {p.hub}".lower() for w in words)
    }
    if not found:
        raise ValueError(
            f"no model is called {' '.join(words)}; there are: {', '.join(presets.ALL)}"
        )
    return [row(name, preset.hub, preset()) for name, preset in found.items()]


def row(name: str, hub: str, cfg: Config) -> dict:
    tree = specs(cfg)
    size = params.count(tree)
    kv = 2 * cfg.layers * cfg.kv_heads * cfg.head_dim * jnp.dtype("bfloat16").itemsize
    return {
        "name": name,
        "hub": hub,
        "parameters": size,
        "active": size - idle(tree, cfg),
        "layers": cfg.layers,
        "width": cfg.width,
        "heads": f"{cfg.heads}/{cfg.kv_heads} x {cfg.head_dim}",
        "features": features(cfg),
        "bf16_bytes": 2 * size,
        "cache_bytes_per_token": kv,
    }


def idle(tree: PyTree, cfg: Config) -> int:
    """Parameters of the experts that a token does not take."""
    shared = [p for p in jax.tree.leaves(tree) if "expert" in p.axes]
    return sum(
        params.count(p) // cfg.experts * (cfg.experts - cfg.experts_per_token) for p in shared
    )


def features(cfg: Config) -> list[str]:
    """What sets it apart from a plain Llama."""
    local = [w for w in cfg.windows if w]
    some = f" in {len(local)} of {len(cfg.windows)} layers" if 0 in cfg.windows else ""
    told = {
        f"window {'/'.join(map(str, sorted(set(local))))}{some}": local,
        f"{cfg.experts_per_token} of {cfg.experts} experts": cfg.experts,
        "q/k norm": cfg.qk_norm,
        "q, k, v biases": cfg.qkv_bias,
        "post-norms": cfg.post_norm,
        "soft caps": cfg.score_cap or cfg.logit_cap,
        "tied": cfg.tied,
    }
    return [text for text, here in told.items() if here]


def table(found: list[dict]) -> Sheet:
    """The rows; in a narrow terminal what tells models apart."""
    cells: dict[Column, Callable[[dict], str]] = {
        Column("name"): lambda r: r["name"],
        Column("weights", spare=4): lambda r: r["hub"],
        Column("parameters", right=True): lambda r: f"{r['parameters']:,}",
        Column("active", right=True, spare=3): lambda r: (
            f"{r['active']:,}" if r["active"] < r["parameters"] else ""
        ),
        Column("layers x width", right=True): lambda r: f"{r['layers']} x {r['width']}",
        Column("heads/kv x size", right=True, spare=1): lambda r: r["heads"],
        Column("bf16 GB", right=True): lambda r: f"{r['bf16_bytes'] / 1e9:.1f}",
        Column("cache kB a token", right=True, spare=2): lambda r: (
            f"{r['cache_bytes_per_token'] / 1e3:.0f}"
        ),
        Column("features", wraps=True, least=16): lambda r: ", ".join(r["features"]),
    }
    out = Sheet(*cells, how="--json")
    for r in found:
        out.add_row(*(cell(r) for cell in cells.values()))
    return out
