"""Loading and export of Hugging Face checkpoints (config.json and safetensors), without torch.

The host holds one shard of one parameter at a time: each is read and moved to its device before the
next is read.
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
from jaxcredit.policy.formats.hf_names import (
    NAMES,
    expected,
    from_stored,
    key_of,
    names,
    sizes,
    to_stored,
)
from jaxcredit.policy.formats.shards import Tensor, check_dtypes, few, open_folder
from jaxcredit.policy.lora import merged, split
from jaxcredit.policy.tokenizer import Tokenizer
from jaxcredit.utils.files import write_atomic

UNREAD = "rotary_emb.inv_freq"  # RoPE frequencies in old files; config.json determines them


def load(
    folder: str | os.PathLike, *, shardings: PyTree = None, **overrides: Any
) -> tuple[Config, PyTree]:
    """Config and parameters of a checkpoint.

    Args:
        folder: folder, or id on the Hugging Face hub.
        shardings: tree of shardings of the parameters, from `mesh.shardings`; None: the default
            device.
        overrides: fields of Config that replace those of config.json, e.g. dtype, forbidden.

    Returns:
        The Config, and the parameters in `param_dtype`.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged, not supported, or contradicts another.
    """
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
    """Config of a checkpoint, from config.json alone. Arguments as for `load`."""
    path, c = _described(hub.folder(folder))
    return Config(**hf_config.parse(c, path) | overrides)


def _described(folder: Path) -> tuple[Path, dict[str, Any]]:
    """Path and content of config.json."""
    path = folder / "config.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"{folder} has no config.json: give the folder of a Hugging Face checkpoint (did the "
            "download finish?)"
        )
    return path, load_json(path)


def assemble(
    cfg: Config,
    get: Callable[[str], Any],
    shardings: PyTree = None,
    source: Callable[[str], Any] = lambda name: "the checkpoint",
) -> PyTree:
    """Parameters of a policy in `cfg.param_dtype`, from the tensors of a checkpoint.

    Args:
        cfg: the policy's Config.
        get: name in the checkpoint -> array or lazily sliced tensor.
        shardings: tree of shardings of the parameters; None: the default device.
        source: name in the checkpoint -> file, for error messages.

    Raises:
        ValueError: a tensor holds NaN or infinity.
    """
    dtype, table = jnp.dtype(cfg.param_dtype), names(cfg)

    def leaf(path, param, sharding):
        key = key_of(path)
        stack = table[key].count("{}")

        def read(index) -> np.ndarray:
            part = [slice(*s.indices(n)[:2]) for s, n in zip(index, param.shape, strict=True)]
            x = np.empty([s.stop - s.start for s in part], dtype)
            for i in np.ndindex(x.shape[:stack]):
                name = table[key].format(*(s.start + j for s, j in zip(part, i, strict=False)))
                with np.errstate(over="ignore", invalid="ignore"):  # checked below
                    x[i] = from_stored(key, get(name), part[stack:], param.shape[stack:])
                if bad := _not_finite(x[i]):
                    raise ValueError(
                        f"{source(name)}: {name} holds {bad} numbers of {x[i].size} that are NaN "
                        f"or infinite as {dtype}: "
                        "the checkpoint is damaged, or was saved by a training that had diverged"
                    )
            return x

        if sharding is None:
            return jnp.asarray(read([slice(None)] * len(param.shape)))
        return _sharded(param.shape, sharding, read)

    tree = specs(cfg)
    shardings = jax.tree.map(lambda _: None, tree) if shardings is None else shardings
    return jax.tree_util.tree_map_with_path(
        leaf, tree, shardings, is_leaf=lambda p: isinstance(p, Param)
    )


def _not_finite(x: np.ndarray) -> int:
    """Number of NaN or infinite values, by their bits: numpy has no fast test for bfloat16."""
    unsigned = np.dtype(f"u{x.dtype.itemsize}")
    infinite = np.array(np.inf, x.dtype).view(unsigned) << 1  # without the sign bit
    return int(np.count_nonzero((x.view(unsigned) << 1) >= infinite))


def _sharded(
    shape, sharding: jax.sharding.Sharding, read: Callable[[tuple[slice, ...]], np.ndarray]
) -> Array:
    """Array whose shards are read one by one, each once for all devices of this process."""
    devices: dict[tuple, list] = {}
    for device, index in sharding.addressable_devices_indices_map(shape).items():
        devices.setdefault(
            tuple(s.indices(n)[:2] for s, n in zip(index or (), shape, strict=True)), []
        ).append(device)
    parts = []
    for index, holders in devices.items():
        x = read(tuple(slice(*s) for s in index))
        parts += jax.block_until_ready([jax.device_put(x, device) for device in holders])
    return jax.make_array_from_single_device_arrays(shape, sharding, parts)


def export(
    params: PyTree,
    cfg: Config,
    folder: str | os.PathLike,
    *,
    tokenizer: Tokenizer | None = None,
    source=None,
    shard_bytes: int = 5 * 10**9,
) -> None:
    """Write a checkpoint that transformers loads, with LoRA adapters merged into their matrices.

    Every process of a job must call it; process 0 writes.

    Args:
        params: parameters of the policy.
        cfg: the policy's Config.
        folder: new or empty folder.
        tokenizer: written into the folder.
        source: folder or hub id of the original checkpoint, whose tokenizer and other settings are
            copied.
        shard_bytes: largest size of a safetensors file in bytes, unless one tensor is larger.

    Raises:
        FileExistsError: the folder holds files.
        ValueError: no Hugging Face architecture computes this Config.
    """
    folder = Path(folder)
    if folder.is_dir() and (old := sorted(folder.iterdir())):
        raise FileExistsError(
            f"{folder} already holds files ({old[0].name}): export to a new folder, or delete them "
            "first"
        )
    source = None if source is None else hub.folder(source)
    carried = load_json(source / "config.json") if source else {}
    described = carried | hf_config.describe(
        cfg, str(params["embed"].dtype), carried
    )  # raises before anything is written
    writer = jax.process_index() == 0
    if writer:
        folder.mkdir(parents=True, exist_ok=True)
    frozen, trainable = split(params)
    adapters = (
        {f"layers/{name}": pair for name, pair in trainable["lora"].items()} if frozen else {}
    )
    base = frozen or trainable
    leaves = {key_of(path): x for path, x in jax.tree_util.tree_leaves_with_path(base)}
    table = names(cfg)
    shards = _plan(leaves, table, shard_bytes)
    file_of = {}
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
            tensors[table[key].format(*i)] = np.ascontiguousarray(to_stored(key, x))
        file_of |= dict.fromkeys(tensors, file)
        if writer:
            from safetensors.numpy import save_file

            save_file(tensors, folder / f"{file}.partial", metadata={"format": "pt"})
            os.replace(folder / f"{file}.partial", folder / file)
    if not writer:
        return
    if len(shards) > 1:
        size = sum(x.size * x.dtype.itemsize for x in leaves.values())
        index = {"metadata": {"total_size": size}, "weight_map": file_of}
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
    """Raise unless every id of the tokenizer has a row in the embedding.

    Checkpoints may pad their embedding, so that it has more rows than the tokenizer ids.

    Args:
        tokenizer: the tokenizer.
        cfg: Config of the checkpoint.

    Raises:
        ValueError: the tokenizer has more ids.
    """
    if tokenizer.vocab_size > cfg.vocab:
        raise ValueError(
            f"the tokenizer has {tokenizer.vocab_size} ids, but the checkpoint embeds {cfg.vocab}: "
            "they do not belong together; "
            "take the tokenizer from the checkpoint's own folder"
        )


def _text(files: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Tensors of the language model inside a multimodal one (Gemma 3), under its own names."""
    for inside, standalone in (("language_model.", ""), ("model.language_model.", "model.")):
        if part := {
            standalone + name.removeprefix(inside): x
            for name, x in files.items()
            if name.startswith(inside)
        }:
            return part | {name: x for name, x in files.items() if name == NAMES["unembed"]}
    return dict(files)


def _compare(path: Path, files: Mapping[str, Tensor], cfg: Config) -> None:
    """Raise unless names, shapes and dtypes of the tensors are those that the Config requires."""
    folder, want = path.parent, dict(expected(cfg))
    extra = {name for name in files if name not in want and not name.endswith(UNREAD)}
    if cfg.tied:
        extra.discard(NAMES["unembed"])  # some files repeat the embedding
    if missing := sorted(set(want) - set(files)):
        fix = "set tie_word_embeddings in config.json, or " if missing == [NAMES["unembed"]] else ""
        raise ValueError(
            f"{folder}: {few(missing)} missing in the weights, expected from config.json: "
            f"{fix}download the checkpoint again"
        )
    if extra:
        raise ValueError(
            f"{folder}: the weights hold {few(sorted(extra))}, which config.json does not account "
            "for: the wrong model_type?"
        )
    for name, shape in want.items():
        if files[name].shape != shape:
            keys = {
                "hidden_size": cfg.width,
                "num_attention_heads": cfg.heads,
                "num_key_value_heads": cfg.kv_heads,
            }
            keys |= {
                "head_dim": cfg.head_dim,
                "intermediate_size": cfg.ffn,
                "vocab_size": cfg.vocab,
            }
            raise ValueError(
                f"{files[name].file}: {name} has shape {files[name].shape}, {path} says {shape} "
                f"({', '.join(f'{key} = {n}' for key, n in keys.items())}): config and weights do "
                "not belong together"
            )
    check_dtypes(folder, {name: files[name] for name in want})


def _warn_of_unread(
    path: Path, files: Mapping[str, Tensor], text: Mapping[str, Tensor], cfg: Config
) -> None:
    """Warn about tensors that are not read, and about a tied unembedding with other values."""
    read = {id(text[name]) for name, _ in expected(cfg)}
    head = text.get(NAMES["unembed"])
    unread = sorted(name for name, x in files.items() if id(x) not in read and x is not head)
    if unread:
        warnings.warn(
            f"{path.parent}: {len(unread)} tensors are not read, this policy has no parameters "
            f"for them: {few(unread)}",
            stacklevel=3,
        )
    if cfg.tied and head is not None and not _equal(head, text[NAMES["embed"]]):
        warnings.warn(
            f"{head.file}: {NAMES['unembed']} is not read, since tie_word_embeddings is true in "
            f"{path}, but its values differ from "
            f"{NAMES['embed']}: if it was trained on its own, set tie_word_embeddings to false",
            stacklevel=3,
        )


def _equal(a: Tensor, b: Tensor, rows: int = 4096) -> bool:
    """Whether two matrices are equal, compared in blocks of rows."""
    blocks = [slice(i, min(i + rows, a.shape[0])) for i in range(0, a.shape[0], rows)]
    return a.shape == b.shape and all(np.array_equal(a[block], b[block]) for block in blocks)


def _host(x: Array) -> np.ndarray:
    """Full value as numpy, also of an array sharded over several processes."""
    return np.asarray(x) if getattr(x, "is_fully_addressable", True) else processes.replicated(x)


def _plan(
    leaves: dict[str, Array], table: dict[str, str], limit: int
) -> list[list[tuple[str, tuple[int, ...]]]]:
    """Files as lists of (parameter, layer and expert), of at most `limit` bytes or one tensor."""
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
