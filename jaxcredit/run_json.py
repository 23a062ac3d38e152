"""The JSON files that describe a run, for those who read its folder: config.json and source.json."""

import json
import warnings
from pathlib import Path
from typing import Any


def read_json(path: Path) -> dict[str, Any]:
    """The mapping in a file of a run folder; empty where it is absent, or damaged, which is a warning: numbers are read without it."""
    if not path.exists():
        return {}
    try:
        told = json.loads(path.read_bytes())
        if not isinstance(told, dict):
            raise ValueError(f"it holds a {type(told).__name__} and not a mapping")
    except (ValueError, RecursionError) as error:
        warnings.warn(
            f"{path} is damaged ({error}): what it says of the run is unknown; go on with the run by --resume auto, which writes it anew",
            stacklevel=2,
        )
        return {}
    return told


def part(told: dict[str, Any], name: str, kind: type) -> Any:
    """A value of such a mapping; an empty one where it is absent or of another kind."""
    value = told.get(name)
    return value if isinstance(value, kind) else kind()


def config_of(folder: Path) -> dict[str, Any]:
    """The fields of a run's experiment, as config.json has them."""
    return part(read_json(folder / "config.json"), "config", dict)
