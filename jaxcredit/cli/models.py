"""Command `models`: list of published models that the decoder computes."""

import json
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import PyTree

from jaxcredit.cli.parser import add_json, command, nonblank
from jaxcredit.parallel import params
from jaxcredit.policy import presets
from jaxcredit.policy.config import Config, specs


def add_parsers(subparsers) -> None:
    """Add the command of this file."""
    parser = command(
        subparsers,
        "models",
        "List published models that jaxcredit can load, with sizes and memory.",
        run,
        details="Parameters are counted from the shapes; nothing is downloaded.",
        examples="""
            jaxcredit models
            jaxcredit models qwen3 8b
                models whose name or hub id has both words
        """,
    )
    parser.add_argument(
        "words",
        nargs="*",
        type=nonblank,
        help="only models whose name or hub id has every word",
    )
    add_json(parser, "an array, one object for each model")


def run(args, _) -> None:
    """Run `jaxcredit models`."""
    from rich.console import Console

    models = rows(args.words)
    if args.json:
        print(json.dumps(models))
    else:
        Console().print(table(models))


def rows(words: Sequence[str] = ()) -> list[dict]:
    """Description of every model whose name or hub id has all `words`, one dict each.

    Args:
        words: compared without regard to case.

    Returns:
        Dicts with the keys name, hub, parameters, active (parameters used for one token), layers,
        width, heads, features, bf16_bytes (of the weights) and cache_bytes_per_token (of the KV
        cache, bfloat16).

    Raises:
        ValueError: no model has all words; the message lists all names.
    """
    matches = {
        name: preset
        for name, preset in presets.ALL.items()
        if all(word.lower() in f"{name} {preset.hub}".lower() for word in words)
    }
    if not matches:
        raise ValueError(f"unknown model {' '.join(words)}; known: {', '.join(presets.ALL)}")
    return [row(name, preset.hub, preset()) for name, preset in matches.items()]


def row(name: str, hub: str, cfg: Config) -> dict:
    """Description of one model; keys as in `rows`."""
    tree = specs(cfg)
    size = params.count(tree)
    cache = 2 * cfg.layers * cfg.kv_heads * cfg.head_dim * jnp.dtype("bfloat16").itemsize
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
        "cache_bytes_per_token": cache,
    }


def idle(tree: PyTree, cfg: Config) -> int:
    """Number of parameters in the experts that a token is not routed to."""
    experts = [p for p in jax.tree.leaves(tree) if "expert" in p.axes]
    return sum(
        params.count(p) // cfg.experts * (cfg.experts - cfg.experts_per_token) for p in experts
    )


def features(cfg: Config) -> list[str]:
    """Differences from a plain Llama architecture, in words."""
    windows = [w for w in cfg.windows if w]
    layers = f" in {len(windows)} of {len(cfg.windows)} layers" if 0 in cfg.windows else ""
    present = {
        f"window {'/'.join(map(str, sorted(set(windows))))}{layers}": windows,
        f"{cfg.experts_per_token} of {cfg.experts} experts": cfg.experts,
        "q/k norm": cfg.qk_norm,
        "q, k, v biases": cfg.qkv_bias,
        "post-norms": cfg.post_norm,
        "soft caps": cfg.score_cap or cfg.logit_cap,
        "tied": cfg.tied,
    }
    return [text for text, value in present.items() if value]


def table(models: list[dict]):
    """`Sheet` of the dicts from `rows`. A narrow terminal shows fewer columns."""
    from jaxcredit.utils.tables import Column, Sheet

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
    sheet = Sheet(*cells, how="--json")
    for model in models:
        sheet.add_row(*(cell(model) for cell in cells.values()))
    return sheet
