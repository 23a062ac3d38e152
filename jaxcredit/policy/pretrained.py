"""Hugging Face checkpoints in and out, without torch: a folder of config.json and safetensors is a `Config` and a tree of arrays.

The tree is made one stacked array at a time, each placed where it belongs before the next is read.
"""

import contextlib
import json
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from jaxcredit.params import Param, abstract
from jaxcredit.policy import hf_config
from jaxcredit.policy.transformer import Config, specs
from jaxcredit.tokenize import Tokenizer, not_a_folder

# Where each parameter lies in a Hugging Face file, `{}` the number of its layer. There a matrix is [out, in], heads folded into one axis.
NAMES = {
    "embed": "model.embed_tokens.weight",
    "final_norm": "model.norm.weight",
    "unembed": "lm_head.weight",
    "layers/attn_norm": "model.layers.{}.input_layernorm.weight",
    "layers/wq": "model.layers.{}.self_attn.q_proj.weight",
    "layers/wk": "model.layers.{}.self_attn.k_proj.weight",
    "layers/wv": "model.layers.{}.self_attn.v_proj.weight",
    "layers/wo": "model.layers.{}.self_attn.o_proj.weight",
    "layers/bq": "model.layers.{}.self_attn.q_proj.bias",
    "layers/bk": "model.layers.{}.self_attn.k_proj.bias",
    "layers/bv": "model.layers.{}.self_attn.v_proj.bias",
    "layers/q_norm": "model.layers.{}.self_attn.q_norm.weight",
    "layers/k_norm": "model.layers.{}.self_attn.k_norm.weight",
    "layers/mlp_norm": "model.layers.{}.post_attention_layernorm.weight",
    "layers/w_gate": "model.layers.{}.mlp.gate_proj.weight",
    "layers/w_up": "model.layers.{}.mlp.up_proj.weight",
    "layers/w_down": "model.layers.{}.mlp.down_proj.weight",
}


def load(folder: str | os.PathLike, *, shardings: PyTree = None, **overrides: Any) -> tuple[Config, PyTree]:
    """The config and the parameters of a checkpoint. `overrides` are fields of Config: dtype, param_dtype, remat, forbidden."""
    folder = Path(folder)
    cfg = config(folder, **overrides)
    with contextlib.ExitStack() as stack:
        files = _open(folder, stack)
        _compare(folder, {name: tuple(s.get_shape()) for name, s in files.items()}, cfg)
        return cfg, assemble(cfg, lambda name: files[name][...], shardings)


def config(folder: str | os.PathLike, **overrides: Any) -> Config:
    """The Config that config.json describes; reads no weights."""
    path = Path(folder) / "config.json"
    if not Path(folder).is_dir():
        raise not_a_folder(folder)
    if not path.is_file():
        raise FileNotFoundError(f"{folder} has no config.json: give the folder of a Hugging Face checkpoint (did the download finish?)")
    try:
        c = json.loads(path.read_text())
    except ValueError as error:
        raise ValueError(f"{path} is not JSON ({error}): download it again") from error
    return Config(**hf_config.parse(c, path) | overrides)


def assemble(cfg: Config, get: Callable[[str], np.ndarray], shardings: PyTree = None) -> PyTree:
    """The parameters from `get(Hugging Face name)`, cast to cfg.param_dtype; on the host at once: one stacked array, and no more."""
    dtype = jnp.dtype(cfg.param_dtype)

    def leaf(path, param, where):
        name, stacked = NAMES[_key(path)], len(path) > 1
        x = np.empty(param.shape, dtype)
        for i, part in enumerate(x) if stacked else [(0, x)]:
            part[...] = _ours(_key(path), get(name.format(i)), part.shape)
        if where is None:
            return jnp.asarray(x)
        return jax.make_array_from_callback(x.shape, where, lambda index: x[index])

    tree = specs(cfg)
    shardings = jax.tree.map(lambda _: None, tree) if shardings is None else shardings
    return jax.tree_util.tree_map_with_path(leaf, tree, shardings, is_leaf=lambda p: isinstance(p, Param))


def export(
    params: PyTree, cfg: Config, folder: str | os.PathLike, *, tokenizer: Tokenizer | None = None, source=None, shard_bytes: int = 5 * 10**9
) -> None:
    """Write a folder that transformers loads. `source`: the folder it came from, whose tokenizer and further settings are carried over."""
    folder = Path(folder)
    if folder.is_dir() and (old := sorted(folder.glob("*.safetensors*"))):
        raise FileExistsError(f"{folder} already holds weights ({old[0].name}): export to a new folder, or delete them first")
    writer = jax.process_index() == 0
    if writer:
        folder.mkdir(parents=True, exist_ok=True)
    leaves = {_key(path): x for path, x in jax.tree_util.tree_leaves_with_path(params)}
    shards = _plan(leaves, shard_bytes)
    where, last = {}, (None, None)
    for number, names in enumerate(shards, 1):
        file = "model.safetensors" if len(shards) == 1 else f"model-{number:05}-of-{len(shards):05}.safetensors"
        tensors = {}
        for key, i in names:
            if last[0] != key:
                last = key, _host(leaves[key])
            x = last[1][i] if key.startswith("layers/") else last[1]
            tensors[NAMES[key].format(i)] = np.ascontiguousarray(_theirs(key, x))
        where |= dict.fromkeys(tensors, file)
        if writer:
            from safetensors.numpy import save_file

            save_file(tensors, folder / f"{file}.partial", metadata={"format": "pt"})
            os.replace(folder / f"{file}.partial", folder / file)
    if not writer:
        return
    if len(shards) > 1:
        size = sum(x.size * x.dtype.itemsize for x in leaves.values())
        index = {"metadata": {"total_size": size}, "weight_map": where}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    if source is not None:
        for file in Path(source).iterdir():
            if file.is_file() and file.suffix in (".json", ".jinja", ".model", ".txt") and "safetensors" not in file.name:
                shutil.copy(file, folder)
    carried = json.loads((folder / "config.json").read_text()) if source is not None else {}
    (folder / "config.json").write_text(json.dumps(carried | hf_config.describe(cfg, str(leaves["embed"].dtype), carried), indent=2) + "\n")
    if tokenizer is not None:
        tokenizer.save(folder)


def check_tokenizer(tokenizer: Tokenizer, cfg: Config) -> None:
    """A tokenizer may have fewer ids than the checkpoint has rows (they are padded), never more."""
    if tokenizer.vocab_size > cfg.vocab:
        raise ValueError(
            f"the tokenizer has {tokenizer.vocab_size} ids, but the checkpoint embeds {cfg.vocab}: they do not belong together; "
            "take the tokenizer from the checkpoint's own folder"
        )


def _open(folder: Path, stack: contextlib.ExitStack) -> dict[str, Any]:
    """Every tensor of the folder by name, as a slice that reads when it is indexed. Headers are checked here, before any weight is read."""
    from safetensors import SafetensorError, safe_open

    index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if index.is_file():
        try:
            where = json.loads(index.read_text())["weight_map"]
        except (ValueError, KeyError) as error:
            raise ValueError(f"{index} cannot be read ({error!r}): download it again") from error
    elif single.is_file():
        where = None
    else:
        pickled = " It holds pickled .bin weights, which are not read: convert them to safetensors." if any(folder.glob("*.bin")) else ""
        raise FileNotFoundError(
            f"{folder} has neither model.safetensors nor model.safetensors.index.json.{pickled} Did the download finish?"
        )
    files = {}
    for file in [single] if where is None else [folder / name for name in sorted(set(where.values()))]:
        if not file.is_file():
            raise FileNotFoundError(f"{file} is missing, but {index.name} lists it: download it again")
        try:
            f = stack.enter_context(safe_open(file, framework="numpy"))
        except (SafetensorError, OSError) as error:
            raise ValueError(f"{file} ({file.stat().st_size} bytes) is truncated or damaged ({error}): download it again") from error
        files |= {name: f.get_slice(name) for name in f.keys()}  # noqa: SIM118
    if where is not None and (lost := sorted(set(where) - set(files))):
        raise ValueError(
            f"{index.name} in {folder} lists {_few(lost)}, which the files do not hold: index and files do not belong together"
        )
    return files


def _compare(folder: Path, have: dict[str, tuple], cfg: Config) -> None:
    """Raise unless the tensors are exactly those of the config, each of its shape."""
    want = dict(expected(cfg))
    extra = {name for name in have if name not in want and not name.endswith("rotary_emb.inv_freq")}
    if cfg.tied:
        extra.discard(NAMES["unembed"])  # some files repeat the embedding
    if missing := sorted(set(want) - set(have)):
        mend = "set tie_word_embeddings in config.json, or " if missing == [NAMES["unembed"]] else ""
        raise ValueError(
            f"{folder}: {_few(missing)} missing in the weights, expected from config.json: {mend}download the checkpoint again"
        )
    if extra:
        raise ValueError(f"{folder}: the weights hold {_few(sorted(extra))}, which config.json does not account for: the wrong model_type?")
    for name, shape in want.items():
        if have[name] != shape:
            raise ValueError(
                f"{folder}: {name} has shape {have[name]}, config.json says {shape}: config and weights do not belong together"
            )


def expected(cfg: Config) -> Iterator[tuple[str, tuple[int, ...]]]:
    """Name and shape of every tensor in a Hugging Face file of this config."""
    for path, x in jax.tree_util.tree_leaves_with_path(abstract(specs(cfg))):
        key, stacked = _key(path), len(path) > 1
        shape = x.shape[1:] if stacked else x.shape
        for i in range(x.shape[0] if stacked else 1):
            yield NAMES[key].format(i), _theirs(key, np.broadcast_to(np.int8(0), shape)).shape


def _key(path) -> str:
    return "/".join(p.key for p in path)


def _is_matrix(key: str) -> bool:
    return "/w" in key or key == "unembed"


def _ours(key: str, x: np.ndarray, shape: tuple[int, ...]) -> np.ndarray:
    """[out, in] to [in, out] with the heads as an axis of their own; vectors and the embedding keep their order."""
    return (x.T if _is_matrix(key) else x).reshape(shape)


def _theirs(key: str, x: np.ndarray) -> np.ndarray:
    """The way back. Of an output projection the heads are the input, of any other matrix the first axis is."""
    if not _is_matrix(key):
        return x if key == "embed" else x.reshape(-1)
    return (x.reshape(-1, x.shape[-1]) if key == "layers/wo" else x.reshape(len(x), -1)).T


def _host(x: Array) -> np.ndarray:
    """The whole array as numpy, also where its pieces lie on several processes."""
    if not getattr(x, "is_fully_addressable", True):
        from jax.experimental import multihost_utils

        x = multihost_utils.process_allgather(x, tiled=True)
    return np.asarray(x)


def _plan(leaves: dict[str, Array], limit: int) -> list[list[tuple[str, int]]]:
    """Files as lists of (parameter, layer), none above `limit` bytes unless one tensor alone is."""
    shards, room = [[]], limit
    for key, x in leaves.items():
        n = x.shape[0] if key.startswith("layers/") else 1
        size = x.size * x.dtype.itemsize // n
        for i in range(n):
            if size > room and shards[-1]:
                shards, room = [*shards, []], limit
            shards[-1].append((key, i))
            room -= size
    return shards


def _few(names: list[str], show: int = 3) -> str:
    return ", ".join(names[:show]) + (f" and {len(names) - show} more" if len(names) > show else "")
