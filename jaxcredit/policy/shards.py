"""The tensors in the safetensors files of a checkpoint folder. Headers are checked at once, a weight is read when it is sliced."""

import contextlib
import dataclasses
from pathlib import Path
from typing import Any

from jaxcredit.plain_text import one_line
from jaxcredit.policy.hf_keys import load_json, shown

FLOATS = ("F64", "F32", "F16", "BF16")  # the dtypes of weights that are read


@dataclasses.dataclass(frozen=True)
class Tensor:
    """A tensor in a file: `tensor[rows, columns]` reads that part."""

    file: Path
    view: Any
    shape: tuple[int, ...]
    dtype: str  # as safetensors names it

    def __getitem__(self, cut):
        try:
            return self.view[cut]
        except Exception as error:  # SafetensorError, OSError: the file has changed since it was opened, or cannot be read
            raise ValueError(f"{self.file} cannot be read ({one_line(error, 200)}): download it again") from error


def open_folder(folder: Path, stack: contextlib.ExitStack) -> dict[str, Tensor]:
    """Every tensor of the folder by name. Headers that do not fit their file are refused."""
    from safetensors import SafetensorError, safe_open

    index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if index.is_file():
        where = _index(index)
    elif single.is_file():
        where = None
    else:
        pickled = " It holds pickled .bin weights, which are not read: convert them to safetensors." if any(folder.glob("*.bin")) else ""
        raise FileNotFoundError(
            f"{folder} has neither model.safetensors nor model.safetensors.index.json.{pickled} Did the download finish?"
        )
    tensors = {}
    for file in [single] if where is None else [folder / name for name in sorted(set(where.values()))]:
        if not file.is_file():
            raise FileNotFoundError(f"{file} is missing, but {index.name} lists it: download it again")
        try:
            f = stack.enter_context(safe_open(file, framework="numpy"))
            views = {name: f.get_slice(name) for name in f.keys()}  # noqa: SIM118
            found = {name: Tensor(file, view, tuple(view.get_shape()), str(view.get_dtype())) for name, view in views.items()}
        except (SafetensorError, OSError, ValueError) as error:
            raise ValueError(
                f"{file} ({file.stat().st_size} bytes) is truncated or damaged ({one_line(error, 200)}): download it again"
            ) from error
        # A name that stands in several files is read from the one that the index says.
        tensors |= {name: x for name, x in found.items() if where is None or where.get(name, file.name) == file.name}
    if where is not None and (lost := sorted(set(where) - set(tensors))):
        raise ValueError(f"{index.name} in {folder} lists {few(lost)}, which the files do not hold: index and files do not belong together")
    return tensors


def _index(path: Path) -> dict[str, str]:
    """The file of each tensor. A name that leads out of the folder is refused."""
    try:
        where = load_json(path)["weight_map"]
        if not isinstance(where, dict) or not where:
            raise ValueError(f"weight_map = {shown(where)} is no object of names")
    except (ValueError, KeyError) as error:
        raise ValueError(f"{path} cannot be read ({error}): download it again") from error
    for name, file in where.items():
        if not isinstance(file, str) or not file.endswith(".safetensors") or file != Path(file).name or "\0" in file or "\\" in file:
            raise ValueError(
                f"{path} says that {few([name])} is in {shown(file)}, expected the name of a .safetensors file in the same folder: "
                "download it again"
            )
    return where


def check_dtypes(folder: Path, tensors: dict[str, Tensor]) -> None:
    """Raise where a tensor is no plain float: an integer is a quantised weight or a mistake."""
    odd = {name: x for name, x in tensors.items() if x.dtype not in FLOATS}
    for name, x in sorted(odd.items()):
        raise ValueError(
            f"{x.file}: {few([name])} has dtype {x.dtype} ({len(odd)} such tensors), weights are read from {', '.join(FLOATS)}: "
            "take a checkpoint that is not quantised, or save it in one of these"
        )


def few(names: list[str], show: int = 3) -> str:
    """The first of many names, safe to print."""
    text = ", ".join(name if name.isprintable() else shown(name) for name in names[:show])
    return text + (f" and {len(names) - show} more" if len(names) > show else "")
