"""Source of a run: config file, option values and estimator, kept in the run folder and compared when the run is resumed."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxcredit.train.runs import config_copies
from jaxcredit.train.runs.folder import local_path
from jaxcredit.utils import files

CREDIT = "credit"  # the folder with the copy of an estimator's file


def save(source: Mapping[str, Any], folder: Path, step: int) -> None:
    """Copy the config file, the files it imports from its folder, and the file of `--credit` into the run folder, and write source.json.

    Args:
        source: "config" (path), "options" (name to value) and "credit" (estimator or None).
        folder: the run folder.
        step: the step from which the run is resumed, 0 for a new run. Options that differ from those kept before are listed with this step
            under "changes".
    """
    changes = _read(folder).get("changes")
    changes = changes if isinstance(changes, list) else []
    if (differs := changed_options(folder, source)) and step:
        changes = [
            *changes,
            {"step": step, "options": {name: list(pair) for name, pair in differs.items()}},
        ]
    config = Path(source["config"])
    config_copies.save_copies(config, folder)
    if credit := estimator_file(source):
        (folder / CREDIT).mkdir(exist_ok=True)
        files.write_atomic(folder / CREDIT / credit.name, credit.read_bytes())
        config_copies.save_copies(credit, folder / CREDIT)
    files.write_atomic(folder / "config.py", config.read_bytes())
    written = {**source, **({"changes": changes} if changes else {})}
    files.write_atomic(folder / "source.json", json.dumps(written, indent=2) + "\n")


def estimator_file(source: Mapping[str, Any]) -> Path | None:
    """File of `--credit FILE.py[:function]`; None if the option is an estimator's name or absent."""
    path = Path(source.get("credit_file") or (source["credit"] or "").partition(":")[0])
    return path.resolve() if path.suffix == ".py" and path.is_file() else None


def saved_estimator(source: Mapping[str, Any], folder: Path) -> tuple[str | None, str | None]:
    """Value for `--credit` with the run folder's copy of its file, and the original path; without a copy the unchanged value and None."""
    path, colon, function = (source["credit"] or "").partition(":")
    copy = folder / CREDIT / Path(path).name
    if not (path.endswith(".py") and copy.is_file()):
        return source["credit"], None
    return f"{copy}{colon}{function}", str(source.get("credit_file") or path)


def options(folder: str | Path) -> dict[str, Any]:
    """Options of a run with their values, defaults included, and `--credit` if it was given.

    Runs made before values were recorded give only the options on their command line, as strings.
    """
    recorded = _read(local_path(folder))
    values = recorded.get("options")
    return (dict(values) if isinstance(values, dict) else _typed(recorded.get("args"))) | (
        {"--credit": recorded["credit"]} if recorded.get("credit") else {}
    )


def changed_options(folder: Path, source: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Options of `source` whose values differ from those recorded in a run folder: {name: (old, new)}.

    For runs made before values were recorded, only the options on their command line are compared.
    """
    recorded = _read(folder)
    if not recorded:
        return {}
    old = options(folder)
    new = dict(source.get("options") or {}) | (
        {"--credit": source["credit"]} if source.get("credit") else {}
    )
    names = {**old, **new} if isinstance(recorded.get("options"), dict) else {**old, "--credit": 0}
    absent = None
    pairs = {name: (old.get(name, absent), new.get(name, absent)) for name in names}
    return {name: pair for name, pair in pairs.items() if not _alike(*pair)}


def differing_options(folders: Sequence[str | Path]) -> dict[str, list[Any]]:
    """Options in which runs differ: {name: [value of each run]}, None for a run without that option."""
    every = [options(folder) for folder in folders]
    names = dict.fromkeys(name for one in every for name in one)
    rows = {name: [one.get(name) for one in every] for name in names}
    return {name: row for name, row in rows.items() if not all(_alike(row[0], x) for x in row[1:])}


def _read(folder: Path) -> dict[str, Any]:
    try:
        recorded = json.loads((folder / "source.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return recorded if isinstance(recorded, dict) else {}


def _typed(words: Any) -> dict[str, str]:
    """Options of a command line as a mapping: `--lr 1 --on` gives {"lr": "1", "on": "True"}."""
    values, name = {}, ""
    for word in words if isinstance(words, list) else []:
        if str(word).startswith("--"):
            name, equals, value = str(word)[2:].partition("=")
            name = name.replace("-", "_")
            values[name] = value if equals else "True"
        elif name:
            values[name] = str(word) if values[name] == "True" else f"{values[name]} {word}"
    return values


def _alike(a: Any, b: Any) -> bool:
    if a == b:
        return True
    if a is None or b is None or isinstance(a, bool) or isinstance(b, bool):
        return str(a) == str(b)
    try:
        return float(a) == float(b)
    except (TypeError, ValueError):
        return str(a) == str(b)
