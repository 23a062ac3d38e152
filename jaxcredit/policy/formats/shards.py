"""Lazy reading of the safetensors files of a checkpoint folder.

Headers are checked when a folder is opened. Data is read when a tensor is sliced.
"""

import contextlib
import dataclasses
from pathlib import Path
from typing import Any

from jaxcredit.policy.formats.hf_keys import load_json, shown
from jaxcredit.utils.plain_text import one_line

FLOATS = ("F64", "F32", "F16", "BF16")  # dtypes of weights that can be loaded


@dataclasses.dataclass(frozen=True)
class Tensor:
    """Tensor in a safetensors file. Slicing (`tensor[rows, columns]`) reads only that part."""

    file: Path
    view: Any
    shape: tuple[int, ...]
    dtype: str  # name in safetensors, e.g. "BF16"

    def __getitem__(self, index):
        try:
            return self.view[index]
        except Exception as error:  # SafetensorError or OSError: the file changed after opening
            raise ValueError(
                f"{self.file} cannot be read ({one_line(error, 200)}): download it again"
            ) from error


def open_folder(folder: Path, stack: contextlib.ExitStack) -> dict[str, Tensor]:
    """Tensors of a checkpoint folder by name.

    Args:
        folder: holds model.safetensors, or model.safetensors.index.json and the files that it
            lists.
        stack: closes the files.

    Raises:
        FileNotFoundError: a file is missing.
        ValueError: a file is damaged, or index and files do not belong together.
    """
    from safetensors import SafetensorError, safe_open

    index, single = folder / "model.safetensors.index.json", folder / "model.safetensors"
    if index.is_file():
        file_of = _index(index)
    elif single.is_file():
        file_of = None
    else:
        pickled = (
            " It holds pickled .bin weights, which are not read: convert them to safetensors."
            if any(folder.glob("*.bin"))
            else ""
        )
        raise FileNotFoundError(
            f"{folder} has neither model.safetensors nor model.safetensors.index.json.{pickled} "
            "Did the download finish?"
        )
    tensors = {}
    for file in (
        [single] if file_of is None else [folder / name for name in sorted(set(file_of.values()))]
    ):
        if not file.is_file():
            raise FileNotFoundError(
                f"{file} is missing, but {index.name} lists it: download it again"
            )
        try:
            f = stack.enter_context(safe_open(file, framework="numpy"))
            views = {name: f.get_slice(name) for name in f.keys()}  # noqa: SIM118
            contents = {
                name: Tensor(file, view, tuple(view.get_shape()), str(view.get_dtype()))
                for name, view in views.items()
            }
        except (SafetensorError, OSError, ValueError) as error:
            raise ValueError(
                f"{file} ({file.stat().st_size} bytes) is truncated or damaged "
                f"({one_line(error, 200)}): download it again"
            ) from error
        # A tensor that several files contain is read from the one given by the index.
        tensors |= {
            name: x
            for name, x in contents.items()
            if file_of is None or file_of.get(name, file.name) == file.name
        }
    if file_of is not None and (lost := sorted(set(file_of) - set(tensors))):
        raise ValueError(
            f"{index.name} in {folder} lists {few(lost)}, which the files do not hold: index and "
            "files do not belong together"
        )
    return tensors


def _index(path: Path) -> dict[str, str]:
    """File name of each tensor in the index. A file outside the folder raises a ValueError."""
    try:
        file_of = load_json(path)["weight_map"]
        if not isinstance(file_of, dict) or not file_of:
            raise ValueError(
                f"weight_map = {shown(file_of)} is not a mapping of tensor names to files"
            )
    except (ValueError, KeyError) as error:
        raise ValueError(f"{path} cannot be read ({error}): download it again") from error
    for name, file in file_of.items():
        if (
            not isinstance(file, str)
            or not file.endswith(".safetensors")
            or file != Path(file).name
            or "\0" in file
            or "\\" in file
        ):
            raise ValueError(
                f"{path}: by weight_map {few([name])} is in {shown(file)}, expected the name of a "
                ".safetensors file in the same folder: download it again"
            )
    return file_of


def check_dtypes(folder: Path, tensors: dict[str, Tensor]) -> None:
    """Raise a ValueError for a tensor without a floating-point dtype, e.g. a quantized weight."""
    odd = {name: x for name, x in tensors.items() if x.dtype not in FLOATS}
    for name, x in sorted(odd.items()):
        raise ValueError(
            f"{x.file}: {few([name])} has dtype {x.dtype} ({len(odd)} such tensors), weights are "
            f"read from {', '.join(FLOATS)}: "
            "use a checkpoint that is not quantized, or save it in one of these dtypes"
        )


def few(names: list[str], show: int = 3) -> str:
    """First `show` names and the number of the others, for messages."""
    text = ", ".join(name if name.isprintable() else shown(name) for name in names[:show])
    return text + (f" and {len(names) - show} more" if len(names) > show else "")
