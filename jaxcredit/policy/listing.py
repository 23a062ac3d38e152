"""What `jaxcredit models` prints: the published models this decoder computes, counted from their shapes."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from jaxcredit import params
from jaxcredit.policy import presets
from jaxcredit.policy.config import Config, specs


def rows(words: Sequence[str] = ()) -> list[dict]:
    """One dict a model whose name or hub id holds all `words`."""
    found = {name: p for name, p in presets.ALL.items() if all(w.lower() in f"{name} {p.hub}".lower() for w in words)}
    if not found:
        raise ValueError(f"no model is called {' '.join(words)}; there are: {', '.join(presets.ALL)}")
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
    return sum(params.count(p) // cfg.experts * (cfg.experts - cfg.experts_per_token) for p in shared)


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


def table(found: list[dict], width: int):
    """The rows, to read in a terminal of this width: a narrow one gets what tells models apart."""
    from rich.table import Table

    cells: dict[str, Callable[[dict], str]] = {
        "name": lambda r: r["name"],
        "weights": lambda r: r["hub"],
        "parameters": lambda r: f"{r['parameters']:,}",
        "active": lambda r: f"{r['active']:,}" if r["active"] < r["parameters"] else "",
        "layers x width": lambda r: f"{r['layers']} x {r['width']}",
        "heads/kv x size": lambda r: r["heads"],
        "bf16 GB": lambda r: f"{r['bf16_bytes'] / 1e9:.1f}",
        "cache kB a token": lambda r: f"{r['cache_bytes_per_token'] / 1e3:.0f}",
        "features": lambda r: ", ".join(r["features"]),
    }
    wide = ("weights", "active", "heads/kv x size", "cache kB a token")
    chosen = {title: cell for title, cell in cells.items() if width >= 180 or title not in wide}
    out = Table()
    for title in chosen:
        words = title in ("name", "weights", "features")
        out.add_column(title, justify="left" if words else "right", no_wrap=title in ("name", "parameters"))
    for r in found:
        out.add_row(*(cell(r) for cell in chosen.values()))
    return out
