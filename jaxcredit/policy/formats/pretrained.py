"""Hugging Face checkpoints in and out, without torch: a folder of config.json and safetensors is a `Config` and a tree of arrays.

What one device holds of one array is read, slice by slice, and placed before the next is: the host never holds more.
"""

import contextlib
import json
import math
import os
import shutil
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, PyTree

from jaxcredit.parallel import processes
from jaxcredit.parallel.params import Param
from jaxcredit.policy import hub
from jaxcredit.policy.config import Config, specs
from jaxcredit.policy.formats import hf_config
from jaxcredit.policy.formats.hf_keys import load_json
from jaxcredit.policy.formats.hf_names import NAMES, expected, key_of, names, ours, sizes, theirs
from jaxcredit.policy.formats.shards import Tensor, check_dtypes, few, open_folder
from jaxcredit.policy.lora import merged, split
from jaxcredit.policy.tokenizer import Tokenizer
from jaxcredit.utils.files import write_atomic

UNREAD = "rotary_emb.inv_freq"  # RoPE frequencies in old files; config.json determines them


def load(
    folder: str | os.PathLike, *, shardings: PyTree = None, **overrides: Any
) -> tuple[Config, PyTree]:
    """The config and the parameters of a checkpoint, a folder or hub id. `overrides`: fields of Config (dtype, param_dtype, forbidden)."""
    folder = hub.folder(folder)
    path, c = _described(folder)
    with contextlib.ExitStack() as stack:
        files = open_folder(folder, stack)
        text = _text(files)
        cfg = Config(
            **hf_config.parse(c, path, sizes({name: x.shape for name, x in text.items()}))
            | overrides
        )
        _compare(path, text, cfg)
        _warn_of_unread(path, files, text, cfg)
        return cfg, assemble(cfg, text.__getitem__, shardings, lambda name: text[name].file)


def config(folder: str | os.PathLike, **overrides: Any) -> Config:
    """The Config that config.json describes; reads no weights."""
    path, c = _described(hub.folder(folder))
    return Config(**hf_config.parse(c, path) | overrides)


def _described(folder: Path) -> tuple[Path, dict[str, Any]]:
    """Path and content of config.json."""
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} has no config.json: give the folder of a Hugging Face checkpoint (did the download finish?)"
        )
    return path, load_json(path)


def assemble(
    cfg: Config,
    get: Callable[[str], Any],
    shardings: PyTree = None,
    source: Callable[[str], Any] = lambda name: "the checkpoint",
) -> PyTree:
    """The parameters, cast to cfg.param_dtype, from `get(Hugging Face name)`, an array or a lazily sliced tensor.

    NaN and infinity are refused, with the file that `source(Hugging Face name)` says.
    """
    dtype, table = jnp.dtype(cfg.param_dtype), names(cfg)

    def leaf(path, param, where):
        key = key_of(path)
        stack = table[key].count("{}")

        def read(index) -> np.ndarray:
            cut = [slice(*s.indices(n)[:2]) for s, n in zip(index, param.shape, strict=True)]
            x = np.empty([s.stop - s.start for s in cut], dtype)
            for i in np.ndindex(x.shape[:stack]):
                name = table[key].format(*(s.start + j for s, j in zip(cut, i, strict=False)))
                with np.errstate(over="ignore", invalid="ignore"):  # judged below
                    x[i] = ours(key, get(name), cut[stack:], param.shape[stack:])
                if bad := _not_finite(x[i]):
                    raise ValueError(
                        f"{source(name)}: {name} holds {bad} numbers of {x[i].size} that are NaN or infinite as {dtype}: "
                        "the checkpoint is damaged, or was saved by a training that had diverged"
                    )
            return x

        if where is None:
            return jnp.asarray(read([slice(None)] * len(param.shape)))
        return _placed(param.shape, where, read)

    tree = specs(cfg)
    shardings = jax.tree.map(lambda _: None, tree) if shardings is None else shardings
    return jax.tree_util.tree_map_with_path(
        leaf, tree, shardings, is_leaf=lambda p: isinstance(p, Param)
    )


def _not_finite(x: np.ndarray) -> int:
    """Number of NaN or infinite values, from their bits, since numpy has no fast test for bfloat16."""
    unsigned = np.dtype(f"u{x.dtype.itemsize}")
    infinite = np.array(np.inf, x.dtype).view(unsigned) << 1  # without the sign bit
    return int(np.count_nonzero((x.view(unsigned) << 1) >= infinite))


def _placed(
    shape, where: jax.sharding.Sharding, read: Callable[[tuple[slice, ...]], np.ndarray]
) -> Array:
    """The array whose parts are read one after the other, each once, for all devices of this process that hold it."""
    devices: dict[tuple, list] = {}
    for device, index in where.addressable_devices_indices_map(shape).items():
        devices.setdefault(
            tuple(s.indices(n)[:2] for s, n in zip(index or (), shape, strict=True)), []
        ).append(device)
    parts = []
    for index, those in devices.items():
        x = read(tuple(slice(*s) for s in index))
        parts += jax.block_until_ready([jax.device_put(x, device) for device in those])
    return jax.make_array_from_single_device_arrays(shape, where, parts)


def export(
    params: PyTree,
    cfg: Config,
    folder: str | os.PathLike,
    *,
    tokenizer: Tokenizer | None = None,
    source=None,
    shard_bytes: int = 5 * 10**9,
) -> None:
    """Write a folder that transformers loads, adapters merged. `source`: where it came from; its tokenizer and settings go along."""
    folder = Path(folder)
    if folder.is_dir() and (
        old := sorted(folder.iterdir())
    ):  # of any kind: files of others are not overwritten
        raise FileExistsError(
            f"{folder} already holds files ({old[0].name}): export to a new folder, or delete them first"
        )
    source = None if source is None else hub.folder(source)
    carried = load_json(source / "config.json") if source else {}
    described = carried | hf_config.describe(
        cfg, str(params["embed"].dtype), carried
    )  # raises before anything is written
    writer = jax.process_index() == 0
    if writer:
        folder.mkdir(parents=True, exist_ok=True)
    still, trained = split(params)
    adapters = {f"layers/{name}": pair for name, pair in trained["lora"].items()} if still else {}
    leaves = {key_of(path): x for path, x in jax.tree_util.tree_leaves_with_path(still or trained)}
    table = names(cfg)
    shards = _plan(leaves, table, shard_bytes)
    where = {}
    for number, parts in enumerate(shards, 1):
        file = (
            "model.safetensors"
            if len(shards) == 1
            else f"model-{number:05}-of-{len(shards):05}.safetensors"
        )
        tensors = {}
        for key, i in parts:
            x = leaves[key][i]  # one tensor at a time
            x = _host(
                merged(x, jax.tree.map(lambda w, i=i: w[i], adapters[key]))
                if key in adapters
                else x
            )
            tensors[table[key].format(*i)] = np.ascontiguousarray(theirs(key, x))
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
        write_atomic(folder / "model.safetensors.index.json", json.dumps(index, indent=2))
    if source is not None:
        for file in source.iterdir():
            if (
                file.is_file()
                and file.suffix in (".json", ".jinja", ".model", ".txt")
                and "safetensors" not in file.name
            ):
                shutil.copy(file, folder)
    write_atomic(folder / "config.json", json.dumps(described, indent=2) + "\n")
    if tokenizer is not None:
        tokenizer.save(folder)


def check_tokenizer(tokenizer: Tokenizer, cfg: Config) -> None:
    """A tokenizer may have fewer ids than the checkpoint has rows (they are padded), never more."""
    if tokenizer.vocab_size > cfg.vocab:
        raise ValueError(
            f"the tokenizer has {tokenizer.vocab_size} ids, but the checkpoint embeds {cfg.vocab}: they do not belong together; "
            "take the tokenizer from the checkpoint's own folder"
        )


def _text(files: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The tensors of the language model, named as if it stood alone, where it is a part of a model that also sees (Gemma 3)."""
    for inside, alone in (("language_model.", ""), ("model.language_model.", "model.")):
        if part := {
            alone + name.removeprefix(inside): x
            for name, x in files.items()
            if name.startswith(inside)
        }:
            return part | {name: x for name, x in files.items() if name == NAMES["unembed"]}
    return dict(files)


def _compare(path: Path, files: Mapping[str, Tensor], cfg: Config) -> None:
    """Raise unless the tensors are exactly those of the config, each of its shape and a float."""
    folder, want = path.parent, dict(expected(cfg))
    extra = {name for name in files if name not in want and not name.endswith(UNREAD)}
    if cfg.tied:
        extra.discard(NAMES["unembed"])  # some files repeat the embedding
    if missing := sorted(set(want) - set(files)):
        mend = (
            "set tie_word_embeddings in config.json, or " if missing == [NAMES["unembed"]] else ""
        )
        raise ValueError(
            f"{folder}: {few(missing)} missing in the weights, expected from config.json: {mend}download the checkpoint again"
        )
    if extra:
        raise ValueError(
            f"{folder}: the weights hold {few(sorted(extra))}, which config.json does not account for: the wrong model_type?"
        )
    for name, shape in want.items():
        if files[name].shape != shape:
            said = {
                "hidden_size": cfg.width,
                "num_attention_heads": cfg.heads,
                "num_key_value_heads": cfg.kv_heads,
            }
            said |= {
                "head_dim": cfg.head_dim,
                "intermediate_size": cfg.ffn,
                "vocab_size": cfg.vocab,
            }
            raise ValueError(
                f"{files[name].file}: {name} has shape {files[name].shape}, {path} says {shape} "
                f"({', '.join(f'{key} = {n}' for key, n in said.items())}): config and weights do not belong together"
            )
    check_dtypes(folder, {name: files[name] for name in want})


def _warn_of_unread(
    path: Path, files: Mapping[str, Tensor], text: Mapping[str, Tensor], cfg: Config
) -> None:
    """Warn about tensors that are not read, and about an unembedding that differs from the tied embedding."""
    read = {id(text[name]) for name, _ in expected(cfg)}
    head = text.get(NAMES["unembed"])
    unread = sorted(name for name, x in files.items() if id(x) not in read and x is not head)
    if unread:
        warnings.warn(
            f"{path.parent}: {len(unread)} tensors are not read, this policy has no place for them: {few(unread)}",
            stacklevel=3,
        )
    if cfg.tied and head is not None and not _equal(head, text[NAMES["embed"]]):
        warnings.warn(
            f"{head.file}: {NAMES['unembed']} is not read, since tie_word_embeddings is true in {path}, but its values differ from "
            f"{NAMES['embed']}: if it was trained on its own, set tie_word_embeddings to false",
            stacklevel=3,
        )


def _equal(a: Tensor, b: Tensor, rows: int = 4096) -> bool:
    """Whether two matrices are equal, compared in blocks of rows."""
    cuts = [slice(i, min(i + rows, a.shape[0])) for i in range(0, a.shape[0], rows)]
    return a.shape == b.shape and all(np.array_equal(a[cut], b[cut]) for cut in cuts)


def _host(x: Array) -> np.ndarray:
    """The whole array as numpy, also where its pieces lie on several processes."""
    return np.asarray(x) if getattr(x, "is_fully_addressable", True) else processes.replicated(x)


def _plan(
    leaves: dict[str, Array], table: dict[str, str], limit: int
) -> list[list[tuple[str, tuple[int, ...]]]]:
    """Files as lists of (parameter, its layer and expert), none above `limit` bytes unless one tensor alone is."""
    shards, room = [[]], limit
    for key, x in leaves.items():
        stack = x.shape[: table[key].count("{}")]
        size = x.size * x.dtype.itemsize // math.prod(stack)
        for i in np.ndindex(stack):
            if size > room and shards[-1]:
                shards, room = [*shards, []], limit
            shards[-1].append((key, i))
            room -= size
    return shards
