"""A model by the name of its folder, or by its id on the Hugging Face hub (`owner/name`, `owner/name@revision`)."""

import os
import re
from pathlib import Path

FILES = ("*.json", "*.safetensors", "*.jinja", "*.model", "merges.txt")


def folder(source: str | os.PathLike) -> Path:
    """The folder that holds config.json, *.safetensors and the tokenizer. An id is looked up in the hub's cache (HF_HOME) and fetched where
    that lacks it and the network is there; every process of a job looks for itself."""
    if Path(source).is_dir():
        return Path(source)
    name = str(source)
    if not re.fullmatch(r"[\w-][\w.-]*/[\w.-]+(@[\w.-]+)?", name):
        raise FileNotFoundError(
            f"{name!r} is no folder: give the folder that holds config.json, *.safetensors and tokenizer.json"
        )
    from huggingface_hub import snapshot_download

    model, _, revision = name.partition("@")
    try:
        return Path(snapshot_download(model, revision=revision or None, allow_patterns=list(FILES)))
    except Exception as error:
        cause = str(error).strip().split("\n")[0]
        raise FileNotFoundError(
            f"{name!r} is no folder here, and the hub did not give it ({type(error).__name__}: {cause}). Where there is a network: "
            f"`hf download {model} --local-dir {model.split('/')[1]}`, then pass that folder"
        ) from error
