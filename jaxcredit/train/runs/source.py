"""Source of a run: its config file, options and estimator.

They are recorded in the run folder (source.json, and copies of the files), and compared when the
run is resumed.
"""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxcredit.train.runs import config_copies, file_names
from jaxcredit.train.runs.folder import local_path
from jaxcredit.utils import files


def save(source: Mapping[str, Any], folder: Path, step: int) -> None:
    """Write source.json and copies of the files that the experiment was made from.

    The copies are the config file, the modules that it imports from its folder, and the file of
    `--credit`.

    Args:
        source: "config" (path), "options" (name to value) and "credit" (estimator or None).
        folder: local run folder.
        step: step from which the run is resumed; 0 for a new run. Options that differ from the
            recorded ones are listed with this step under "changes".
    """
    changes = _read(folder).get("changes")
    changes = changes if isinstance(changes, list) else []
    if (changed := changed_options(folder, source)) and step:
        options = {name: list(pair) for name, pair in changed.items()}
        changes = [*changes, {"step": step, "options": options}]
    config = Path(source["config"])
    config_copies.save_copies(config, folder)
    if credit := estimator_file(source):
        (folder / file_names.ESTIMATOR).mkdir(exist_ok=True)
        files.write_atomic(folder / file_names.ESTIMATOR / credit.name, credit.read_bytes())
        config_copies.save_copies(credit, folder / file_names.ESTIMATOR)
    files.write_atomic(folder / file_names.CONFIG_COPY, config.read_bytes())
    written = {**source, **({"changes": changes} if changes else {})}
    files.write_atomic(folder / file_names.SOURCE, json.dumps(written, indent=2) + "\n")


def estimator_file(source: Mapping[str, Any]) -> Path | None:
    """File of `--credit FILE.py[:function]`; None without the option or with a name."""
    path = Path(source.get("credit_file") or (source["credit"] or "").partition(":")[0])
    return path.resolve() if path.suffix == ".py" and path.is_file() else None


def saved_estimator(source: Mapping[str, Any], folder: Path) -> tuple[str | None, str | None]:
    """Value for `--credit` with which a run is opened again.

    Args:
        source: content of the run's source.json.
        folder: local run folder.

    Returns:
        The value with the path of the run folder's copy, and the original path of the file. Without
        a copy: the unchanged value and None.
    """
    path, colon, function = (source["credit"] or "").partition(":")
    copy = folder / file_names.ESTIMATOR / Path(path).name
    if not (path.endswith(".py") and copy.is_file()):
        return source["credit"], None
    return f"{copy}{colon}{function}", str(source.get("credit_file") or path)


def options(folder: str | Path) -> dict[str, Any]:
    """Options of a run by name, defaults included, and `--credit` if it was given.

    Runs made before values were recorded have only the options of their command line, as strings.

    Args:
        folder: path or gs:// address of the run folder.
    """
    recorded = _read(local_path(folder))
    values = recorded.get("options")
    values = dict(values) if isinstance(values, dict) else _typed(recorded.get("args"))
    return values | _credit_option(recorded)


def changed_options(folder: Path, source: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Options whose values differ from those recorded in a run folder.

    For runs made before values were recorded, only the options of their command line are compared.

    Args:
        folder: local run folder.
        source: the new source, as `save` takes it.

    Returns:
        {name: (recorded value, new value)}, None for an absent value.
    """
    recorded = _read(folder)
    if not recorded:
        return {}
    old = options(folder)
    new = dict(source.get("options") or {}) | _credit_option(source)
    names = {**old, **new} if isinstance(recorded.get("options"), dict) else {**old, "--credit": 0}
    pairs = {name: (old.get(name), new.get(name)) for name in names}
    return {name: pair for name, pair in pairs.items() if not _equal(*pair)}


def differing_options(folders: Sequence[str | Path]) -> dict[str, list[Any]]:
    """Options in which runs differ.

    Returns:
        {name: [value of each run]}, None for a run without the option.
    """
    runs = [options(folder) for folder in folders]
    names = dict.fromkeys(name for run in runs for name in run)
    rows = {name: [run.get(name) for run in runs] for name in names}
    return {name: row for name, row in rows.items() if not all(_equal(row[0], x) for x in row[1:])}


def _credit_option(source: Mapping[str, Any]) -> dict[str, Any]:
    return {"--credit": source["credit"]} if source.get("credit") else {}


def _read(folder: Path) -> dict[str, Any]:
    try:
        recorded = json.loads((folder / file_names.SOURCE).read_bytes())
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


def _equal(a: Any, b: Any) -> bool:
    """Equality of option values, of which one may be a string of the command line."""
    if a == b:
        return True
    if a is None or b is None or isinstance(a, bool) or isinstance(b, bool):
        return str(a) == str(b)
    try:
        return float(a) == float(b)
    except (TypeError, ValueError):
        return str(a) == str(b)
