"""Loading of what the command line names: the experiment of a config file, an estimator, a run."""

import dataclasses
import difflib
import functools
import hashlib
import importlib.machinery
import importlib.util
import inspect
import json
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jaxcredit.train.runs import config_copies, file_names, old_names, storage
from jaxcredit.train.runs import source as run_source
from jaxcredit.train.runs.masking import mask_arguments, unmask_arguments

PREFIX = "jaxcredit_config_"  # of the module names of configs
FILES: dict[str, tuple[str, str]] = {}  # {module name: (file, original path)} of loaded configs
FOLDERS: set[str] = set()  # folders of loaded configs, which were added to sys.path


def experiment(
    path: str,
    rest: Sequence[str] = (),
    credit: str | None = None,
    *,
    origin: str | None = None,
    credit_origin: str | None = None,
    prog: str = "jaxcredit train",
):
    """Experiment of a config file, whose function `experiment` is called with options.

    Args:
        path: the config file.
        rest: options for the function `experiment(...)`, as on the command line. With --help among
            them, the head of the config and its options are printed and the process exits.
        credit: estimator that replaces the config's, as for `estimator`.
        origin: path of the config when the run began, if `path` is the run's copy. Files beside it
            are still found.
        credit_origin: the same for the file of `credit`.
        prog: command for the usage line of --help.

    Returns:
        The Experiment, and what is needed to make it again: config, args, credit and the values of
        all options.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file has no function `experiment`, or `credit` is unknown.
        TypeError: the function does not return an Experiment.
    """
    import tyro

    from jaxcredit.train.experiment import Experiment
    from jaxcredit.train.runs.json_values import to_json

    make = getattr(module(path, origin), "experiment", None)
    if not callable(make):
        raise ValueError(
            f"{path} has no function `experiment(...)`, which returns a jaxcredit.train.Experiment"
        )
    if {"-h", "--help"} & set(rest):
        _print_head(inspect.getdoc(sys.modules.get(make.__module__)) or "")
        _join_continuation_lines(inspect.unwrap(make))
    options: dict[str, Any] = {}
    exp = tyro.cli(
        _recording(make, options), args=list(rest), prog=f"{prog} {path}", description=""
    )
    if not isinstance(exp, Experiment):
        raise TypeError(
            f"experiment(...) of {path} returned {exp!r:.80}: "
            "it must return a jaxcredit.train.Experiment"
        )
    if credit is not None:
        exp = dataclasses.replace(exp, credit=estimator(credit, credit_origin))
    source = {
        "config": str(Path(path).resolve()),
        "args": mask_arguments(rest),
        "credit": credit,
        "options": to_json(options),
    }
    if credit and ".py" in credit:
        source["credit_file"] = str(Path(credit_origin or credit.partition(":")[0]).resolve())
    return exp, source


def _recording(make: Callable, options: dict[str, Any]) -> Callable:
    """Wrapper of `make` that records its arguments, defaults included, in `options`."""

    @functools.wraps(make)
    def recorded(*args, **kwargs):
        bound = inspect.signature(make).bind(*args, **kwargs)
        bound.apply_defaults()
        options.update(bound.arguments)
        return make(*args, **kwargs)

    return recorded


def _print_head(text: str) -> None:
    """Print a text, with lines wrapped to the terminal at their own indentation."""
    width = shutil.get_terminal_size().columns
    for line in text.splitlines():
        indent = " " * (len(line) - len(line.lstrip()))
        print(
            textwrap.fill(
                line,
                width,
                subsequent_indent=indent,
                break_long_words=False,
                break_on_hyphens=False,
            )
        )
    print()


def _join_continuation_lines(function: Callable) -> None:
    """Put each entry of Args in a function's docstring on one line; tyro keeps line breaks."""
    doc = inspect.getdoc(function) or ""
    entry = re.search(r"^Args:\n( +)", doc, re.M)
    if entry and inspect.isfunction(function):
        # A blank line, or an item of a list, begins a new line.
        function.__doc__ = re.sub(rf"(?<=\S)\n{entry[1]} +(?=\S)(?![-*] )", " ", doc)


def module(path: str, origin: str | None = None) -> Any:
    """Module loaded from a Python file under a unique name: numpy.py does not replace numpy.

    A process that unpickles one of the module's functions must first call
    `module(*FILES[function.__module__])`.

    Args:
        path: the file.
        origin: the original path of a copied file: it is the module's `__file__`, and its folder is
            the one that it imports from.

    Raises:
        FileNotFoundError: there is no such file; the message lists ./configs.
        ValueError: the file's name does not end in .py.
        RuntimeError: the file called sys.exit.
        ImportError: the file imports a name that jaxcredit does not have; the message has the new
            one of an old name.
    """
    file = Path(path)
    if not file.is_file():
        configs = ", ".join(sorted(map(str, Path("configs").glob("*.py")))) or "none in ./configs"
        raise FileNotFoundError(f"no config file {path}; there are: {configs}")
    if file.suffix != ".py":
        raise ValueError(f"{path} is not a Python file: its name must end in .py")
    original = Path(origin or file).resolve()
    spec = importlib.util.spec_from_file_location(name(path, origin), file.resolve())
    assert spec is not None and isinstance(spec.loader, importlib.machinery.SourceFileLoader)
    loaded = importlib.util.module_from_spec(spec)
    loaded.__file__ = str(original)
    sys.modules[spec.name] = loaded  # where dataclasses and pickle look for it
    FILES[spec.name] = (str(file.resolve()), str(original))
    _add_folder(str(original.parent))
    config_copies.redirect_imports(file.resolve(), original)
    # Compiled here: the import system would write a __pycache__ into run folders, and would use one
    # that is as old as the file.
    try:
        exec(spec.loader.source_to_code(file.read_bytes(), str(file.resolve())), vars(loaded))
    except SystemExit as stop:
        raise RuntimeError(
            f"{path} called sys.exit while it was loaded (SystemExit: {stop}): "
            "a config may only define functions and values"
        ) from stop
    except ImportError as error:
        if hint := old_names.hint(error):
            raise ImportError(f"{path}: {error}. {hint}", name=error.name) from error
        raise
    return loaded


def name(path: str, origin: str | None = None) -> str:
    """Unique module name of a config, the same in every process."""
    original = Path(origin or path).resolve()
    digest = hashlib.sha256(f"{Path(path).resolve()}:{original}".encode()).hexdigest()[:8]
    return f"{PREFIX}{digest}_{re.sub(r'[^0-9A-Za-z_]', '_', original.stem)}"


def _add_folder(folder: str) -> None:
    """Add a config's folder to sys.path.

    It comes after installed packages and before the folders of other configs.
    """
    if folder in sys.path and folder not in FOLDERS:
        return  # added by the user
    others = [other for other in sys.path if other in FOLDERS and other != folder]
    # Forget modules that were imported from the folders of other configs and have the name of a
    # file in this one.
    for file in Path(folder).iterdir() if Path(folder).is_dir() else ():
        imported = sys.modules.get(file.stem)
        paths = getattr(imported, "__path__", None) or [getattr(imported, "__file__", None) or ""]
        if str(Path(next(iter(paths))).parent) in others:
            for stale in [n for n in sys.modules if n.partition(".")[0] == file.stem]:
                del sys.modules[stale]
    if folder in FOLDERS:
        sys.path.remove(folder)
    sys.path.insert(sys.path.index(others[0]) if others else len(sys.path), folder)
    FOLDERS.add(folder)


def estimator(name: str, origin: str | None = None) -> Callable:
    """Estimator by name or from a file.

    Args:
        name: a name in jaxcredit.credit.estimators(), `my.py:credit`, or `my.py` if the file
            defines exactly one estimator.
        origin: the original path of a copied file.

    Raises:
        ValueError: the name is unknown, or the file has no such function, or not exactly one
            estimator.
    """
    from jaxcredit import credit

    if ".py" not in name:
        known = credit.estimators()
        if name not in known:
            similar = difflib.get_close_matches(name, known, 3)
            hint = f"did you mean {' or '.join(similar)}? " if similar else ""
            raise ValueError(
                f"unknown estimator {name!r}; {hint}known: {', '.join(known)}; "
                "or give FILE.py:function"
            )
        return known[name]
    path, _, attribute = name.partition(":")
    file = module(path, origin)
    own = {
        n: f
        for n, f in vars(file).items()
        if hasattr(f, "method") and getattr(f, "__module__", "") == file.__name__
    }
    if attribute:
        function = getattr(file, attribute, None)
        problem = f"no function {attribute}"
    else:
        function = next(iter(own.values())) if len(own) == 1 else None
        problem = "not exactly one lifted function (@per_group or @per_batch)"
    if function is None:
        raise ValueError(f"{path} has {problem}; those in it: {', '.join(own) or 'none'}")
    return function


def experiment_of_run(run: str):
    """Experiment of a run folder, from the copies of its config and estimator. Executes them.

    Raises:
        FileNotFoundError: the folder does not hold a run.
        ValueError: the run's source.json is damaged.
    """
    from jaxcredit.train.runs.folder import local_path

    folder = local_path(run)
    path = folder / file_names.SOURCE
    if not path.is_file():
        raise FileNotFoundError(
            f"{run} is not a run folder (it has no source.json): "
            "give one that `jaxcredit train` made"
        )
    source = _source(path, run)
    if reason := _foreign(run, path):
        print(f"{run} {reason}: its config.py is executed on this machine now", file=sys.stderr)
    old_names.install()  # the copy of the config may be older than this version
    credit, credit_origin = run_source.saved_estimator(source, folder)
    args = unmask_arguments(source["args"], run)
    return experiment(
        str(folder / file_names.CONFIG_COPY),
        args,
        credit,
        origin=source["config"],
        credit_origin=credit_origin,
    )[0]


def _foreign(run: str, path: Path) -> str:
    """Reason to suspect that a run was made by somebody else; "" if there is none."""
    if storage.bucket_address(run):
        return "is in a bucket"
    own = not hasattr(os, "getuid") or path.stat().st_uid == os.getuid()
    return "" if own else "belongs to another user"


def _source(path: Path, run: str) -> dict[str, Any]:
    """Content of a run's source.json: path of its config, its options, and its --credit."""
    try:
        source = json.loads(path.read_bytes())
        valid = isinstance(source["config"], str) and isinstance(source["credit"], str | None)
        valid &= isinstance(source["args"], list)
        if not (valid and all(isinstance(word, str) for word in source["args"])):
            raise ValueError("its values have other types")
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f"{path} is damaged ({type(error).__name__}: {error}): write "
            '{"config": the config\'s path, "args": [its options], '
            '"credit": null or the name given with --credit} '
            f"into it, as {run} was trained; `jaxcredit compare {run}` works without it"
        ) from error
    return source


def load_run(source: str, step: int | None = None):
    """Experiment, compiled programs, parameters and step of a run's checkpoint.

    For a config the parameters are those before any training.

    Args:
        source: run folder, or config file.
        step: step of the checkpoint; None: the newest.

    Raises:
        ValueError: `step` is given with a config, which has no checkpoints.
    """
    import jax

    from jaxcredit.train.programs import build
    from jaxcredit.train.restore import restore_params

    if not source.endswith(".py"):
        exp = experiment_of_run(source)
        return exp, *restore_params(exp, source, step=step)
    if step is not None:
        raise ValueError(
            f"--step {step} names a checkpoint, and {source} is a config, which has none: "
            "give a run folder"
        )
    exp = experiment(source)[0].check()
    programs = build(exp)
    return exp, programs, programs.init(jax.random.key(exp.seed)).params, 0
