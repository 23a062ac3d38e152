"""Reading of the JSON files of a run folder: config.json and source.json."""

import json
import warnings
from pathlib import Path
from typing import Any

from jaxcredit.train.runs import file_names


def read_json(path: Path) -> dict[str, Any]:
    """Mapping in a JSON file. An absent file gives {}, a damaged one {} and a warning."""
    if not path.exists():
        return {}
    try:
        content = json.loads(path.read_bytes())
        if not isinstance(content, dict):
            raise ValueError(f"it holds a {type(content).__name__} and not a mapping")
    except (ValueError, RecursionError) as error:
        warnings.warn(
            f"{path} is damaged ({error}) and ignored; --resume auto writes it again",
            stacklevel=2,
        )
        return {}
    return content


def typed_value(content: dict[str, Any], name: str, kind: type) -> Any:
    """Value of a key of a mapping, if its type is `kind`; otherwise an empty `kind()`.

    >>> typed_value({"args": ["--lr", "1"]}, "args", list), typed_value({}, "args", list)
    (['--lr', '1'], [])
    """
    value = content.get(name)
    return value if isinstance(value, kind) else kind()


def read_config(folder: Path) -> dict[str, Any]:
    """Fields of a run's Experiment, as its config.json has them."""
    return typed_value(read_json(folder / file_names.CONFIG), "config", dict)
