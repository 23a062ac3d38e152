"""What made a run: its config file, the options with their values, and the estimator. Kept in the run folder, compared at a resume."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from jaxcredit import kept_modules, store
from jaxcredit.home import here

CREDIT = "credit"  # the folder with the copy of an estimator's file


def keep(source: Mapping[str, Any], folder: Path, step: int) -> None:
    """Copy the config file, the files it imports from its folder, and the file of `--credit` into the run folder, and write source.json.

    Options that differ from those kept before are listed under "changes" with the step at which the run went on.
    """
    changes = _read(folder).get("changes")
    changes = changes if isinstance(changes, list) else []
    if (differs := changed(folder, source)) and step:
        changes = [*changes, {"step": step, "options": {name: list(pair) for name, pair in differs.items()}}]
    config = Path(source["config"])
    kept_modules.keep(config, folder)
    if credit := estimator_file(source):
        (folder / CREDIT).mkdir(exist_ok=True)
        store.write_atomic(folder / CREDIT / credit.name, credit.read_bytes())
        kept_modules.keep(credit, folder / CREDIT)
    store.write_atomic(folder / "config.py", config.read_bytes())
    written = {**source, **({"changes": changes} if changes else {})}
    store.write_atomic(folder / "source.json", json.dumps(written, indent=2) + "\n")


def estimator_file(source: Mapping[str, Any]) -> Path | None:
    """The file of `--credit FILE.py[:function]`; None where an estimator is named, or none is given."""
    path = Path(source.get("credit_file") or (source["credit"] or "").partition(":")[0])
    return path.resolve() if path.suffix == ".py" and path.is_file() else None


def kept_estimator(source: Mapping[str, Any], folder: Path) -> tuple[str | None, str | None]:
    """What to load in place of `--credit`: the copy in the run folder, if there is one, and the path of the original."""
    path, colon, function = (source["credit"] or "").partition(":")
    copy = folder / CREDIT / Path(path).name
    if not (path.endswith(".py") and copy.is_file()):
        return source["credit"], None
    return f"{copy}{colon}{function}", str(source.get("credit_file") or path)


def options(folder: str | Path) -> dict[str, Any]:
    """Every option of a run with its value, defaults included, and its estimator if `--credit` gave one. Of runs made before values were
    kept: the options that were typed, as text."""
    made = _read(here(folder))
    kept = made.get("options")
    return (dict(kept) if isinstance(kept, dict) else _typed(made.get("args"))) | (
        {"--credit": made["credit"]} if made.get("credit") else {}
    )


def changed(folder: Path, source: Mapping[str, Any]) -> dict[str, tuple[Any, Any]]:
    """Options whose values differ from those kept in the folder: (old, new). Of an older run only options that were typed then count."""
    made = _read(folder)
    if not made:
        return {}
    old = options(folder)
    new = dict(source.get("options") or {}) | ({"--credit": source["credit"]} if source.get("credit") else {})
    names = {**old, **new} if isinstance(made.get("options"), dict) else {**old, "--credit": 0}
    absent = None
    pairs = {name: (old.get(name, absent), new.get(name, absent)) for name in names}
    return {name: pair for name, pair in pairs.items() if not _alike(*pair)}


def differing(folders: Sequence[str | Path]) -> dict[str, list[Any]]:
    """Options in which runs differ: a value for each run, None where a run has no such option."""
    every = [options(folder) for folder in folders]
    names = dict.fromkeys(name for one in every for name in one)
    rows = {name: [one.get(name) for one in every] for name in names}
    return {name: row for name, row in rows.items() if not all(_alike(row[0], x) for x in row[1:])}


def _read(folder: Path) -> dict[str, Any]:
    try:
        made = json.loads((folder / "source.json").read_bytes())
    except (OSError, ValueError, RecursionError):
        return {}
    return made if isinstance(made, dict) else {}


def _typed(words: Any) -> dict[str, str]:
    """`--lr 1 --on` as {"lr": "1", "on": "True"}."""
    found, name = {}, ""
    for word in words if isinstance(words, list) else []:
        if str(word).startswith("--"):
            name, equals, value = str(word)[2:].partition("=")
            name = name.replace("-", "_")
            found[name] = value if equals else "True"
        elif name:
            found[name] = str(word) if found[name] == "True" else f"{found[name]} {word}"
    return found


def _alike(a: Any, b: Any) -> bool:
    if a == b:
        return True
    if a is None or b is None or isinstance(a, bool) or isinstance(b, bool):
        return str(a) == str(b)
    try:
        return float(a) == float(b)
    except (TypeError, ValueError):
        return str(a) == str(b)
