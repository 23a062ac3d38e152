"""Checkpoint folders by path, or by id on the Hugging Face hub (`owner/name[@revision]`)."""

import os
import re
from pathlib import Path

FILES = ("*.json", "*.safetensors", "*.jinja", "*.model", "merges.txt")


def folder(source: str | os.PathLike) -> Path:
    """Folder that holds config.json, *.safetensors and the tokenizer of a model.

    An id is looked up in the hub's cache (HF_HOME) and downloaded if it is not there. In a job of
    several processes, each one does so.

    Args:
        source: path of a folder, or an id on the hub, `owner/name` or `owner/name@revision`.

    Raises:
        FileNotFoundError: not a folder, and not an id that the hub or its cache has.
    """
    if Path(source).is_dir():
        return Path(source)
    name = str(source)
    if not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+(@[\w.-]+)?", name):
        raise FileNotFoundError(
            f"{name!r} is not a directory: give the folder that holds config.json, *.safetensors "
            "and tokenizer.json"
        )
    from huggingface_hub import snapshot_download

    model, _, revision = name.partition("@")
    try:
        return Path(snapshot_download(model, revision=revision or None, allow_patterns=list(FILES)))
    except Exception as error:
        cause = str(error).strip().split("\n")[0]
        raise FileNotFoundError(
            f"{name!r} is not a directory, and the hub did not provide it ({type(error).__name__}: "
            f"{cause}). On a machine with network access run "
            f"`hf download {model} --local-dir {model.split('/')[1]}`, then pass that folder"
        ) from error
