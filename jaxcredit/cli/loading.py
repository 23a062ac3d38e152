"""What a person names: the config of an experiment, an estimator, a run."""

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

from jaxcredit.train.runs import config_copies, old_names, storage
from jaxcredit.train.runs import source as run_source
from jaxcredit.train.runs.masking import mask_arguments, unmask_arguments

NAMED = "jaxcredit_config_"  # prefix of the module names of configs
FILES: dict[str, tuple[str, str]] = {}  # {module name: (file, original path)} of loaded configs
FOLDERS: set[str] = set()  # their folders, which were added to sys.path


def experiment(
    path: str,
    rest: Sequence[str] = (),
    credit: str | None = None,
    *,
    origin: str | None = None,
    credit_origin: str | None = None,
    prog: str = "jaxcredit train",
):
    """The experiment of a config file, with the options given to its function; and what to write down to make it again.

    `origin` and `credit_origin`: where the files of the config and of `credit` were when the run began, so that what they read beside
    themselves is still found. With --help in `rest` the config's head is printed as it stands, then its options with what the docstring of
    its function says of each, and the process ends.
    """
    import tyro

    from jaxcredit.train.experiment import Experiment
    from jaxcredit.train.runs.metrics import plain

    make = getattr(module(path, origin), "experiment", None)
    if not callable(make):
        raise ValueError(
            f"{path} has no function `experiment(...)`: a config returns a jaxcredit.train.experiment.Experiment from it"
        )
    if {"-h", "--help"} & set(rest):
        _print_head(inspect.getdoc(sys.modules.get(make.__module__)) or "")
    given: dict[str, Any] = {}
    exp = tyro.cli(_noting(make, given), args=list(rest), prog=f"{prog} {path}", description="")
    if not isinstance(exp, Experiment):
        raise TypeError(
            f"experiment(...) of {path} returned {exp!r:.80}: it must return a jaxcredit.train.experiment.Experiment"
        )
    if credit is not None:
        exp = dataclasses.replace(exp, credit=estimator(credit, credit_origin))
    made = {
        "config": str(Path(path).resolve()),
        "args": mask_arguments(rest),
        "credit": credit,
        "options": plain(given),
    }
    if credit and ".py" in credit:
        made["credit_file"] = str(Path(credit_origin or credit.partition(":")[0]).resolve())
    return exp, made


def _noting(make: Callable, given: dict[str, Any]) -> Callable:
    """Wrapper of `make` that records its arguments, defaults included, in `given`."""

    @functools.wraps(make)
    def noted(*args, **kwargs):
        bound = inspect.signature(make).bind(*args, **kwargs)
        bound.apply_defaults()
        given.update(bound.arguments)
        return make(*args, **kwargs)

    return noted


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


def module(path: str, origin: str | None = None) -> Any:
    """Module loaded from a Python file under a unique name, so that a config called numpy.py does not shadow numpy.

    A process that unpickles one of its functions must first call `module(*FILES[function.__module__])`.

    Args:
        path: the file.
        origin: the original path of a copied file: its `__file__`, and the folder from which it imports.
    """
    file = Path(path)
    if not file.is_file():
        known = (
            ", ".join(sorted(str(p) for p in Path("configs").glob("*.py"))) or "none in ./configs"
        )
        raise FileNotFoundError(f"no config file {path}; there are: {known}")
    if file.suffix != ".py":
        raise ValueError(f"{path} is not a Python file: its name must end in .py")
    seen = Path(origin or file).resolve()
    spec = importlib.util.spec_from_file_location(name(path, origin), file.resolve())
    assert spec is not None and isinstance(spec.loader, importlib.machinery.SourceFileLoader)
    mod = importlib.util.module_from_spec(spec)
    mod.__file__ = str(seen)
    sys.modules[spec.name], FILES[spec.name] = (
        mod,
        (str(file.resolve()), str(seen)),
    )  # dataclasses and pickle look modules up there
    _beside(str(seen.parent))
    config_copies.redirect_imports(file.resolve(), seen)
    # Not compiled by the import system, which would write a __pycache__ into run folders and trust one of the same second.
    try:
        exec(spec.loader.source_to_code(file.read_bytes(), str(file.resolve())), vars(mod))
    except SystemExit as stop:
        raise RuntimeError(
            f"{path} called sys.exit while it was loaded (SystemExit: {stop}): a config may only define things"
        ) from stop
    except ImportError as error:
        if hint := old_names.hint(error):
            raise ImportError(f"{path}: {error}. {hint}", name=error.name) from error
        raise
    return mod


def name(path: str, origin: str | None = None) -> str:
    """Unique module name of a config, the same in every process."""
    seen = Path(origin or path).resolve()
    which = hashlib.sha256(f"{Path(path).resolve()}:{seen}".encode()).hexdigest()[:8]
    return f"{NAMED}{which}_{re.sub(r'[^0-9A-Za-z_]', '_', seen.stem)}"


def _beside(folder: str) -> None:
    """Add a config's folder to sys.path, after installed packages and before the folders of other configs."""
    if folder in sys.path and folder not in FOLDERS:
        return  # added by the user
    others = [other for other in sys.path if other in FOLDERS and other != folder]
    for file in (
        Path(folder).iterdir() if Path(folder).is_dir() else ()
    ):  # forget modules of the same name beside other configs
        there = sys.modules.get(file.stem)
        found = getattr(there, "__path__", None) or [getattr(there, "__file__", None) or ""]
        if str(Path(next(iter(found))).parent) in others:
            for known in [n for n in sys.modules if n.partition(".")[0] == file.stem]:
                del sys.modules[known]
    if folder in FOLDERS:
        sys.path.remove(folder)
    sys.path.insert(sys.path.index(others[0]) if others else len(sys.path), folder)
    FOLDERS.add(folder)


def estimator(name: str, origin: str | None = None) -> Callable:
    """Estimator by name or from a file.

    Args:
        name: a name in jaxcredit.credit.estimators(), `my.py:credit`, or `my.py` if the file defines exactly one estimator.
        origin: the original path of a copied file.
    """
    from jaxcredit import credit

    if ".py" not in name:
        known = credit.estimators()
        if name not in known:
            near = difflib.get_close_matches(name, known, 3)
            hint = f"did you mean {' or '.join(near)}? " if near else ""
            raise ValueError(
                f"unknown estimator {name!r}; {hint}known: {', '.join(known)}; or give FILE.py:function"
            )
        return known[name]
    path, _, attribute = name.partition(":")
    mod = module(path, origin)
    own = {
        n: f
        for n, f in vars(mod).items()
        if hasattr(f, "method") and getattr(f, "__module__", "") == mod.__name__
    }
    if attribute:
        found = getattr(mod, attribute, None)
    else:
        found = next(iter(own.values())) if len(own) == 1 else None
    if found is None:
        what = (
            f"no function {attribute}"
            if attribute
            else "not exactly one lifted function (@per_group or @per_batch)"
        )
        raise ValueError(f"{path} has {what}; those in it: {', '.join(own) or 'none'}")
    return found


def of_run(run: str):
    """The experiment of a run folder."""
    from jaxcredit.train.runs.folder import local_path

    folder = local_path(run)
    path = folder / "source.json"
    if not path.is_file():
        raise FileNotFoundError(
            f"{run} is no run folder (it has no source.json): give one that `jaxcredit train` made"
        )
    made = _source(path, run)
    if there := _strange(run, path):
        print(f"{run} {there}: its config.py is executed on this machine now", file=sys.stderr)
    old_names.install()  # the copy of the config may be older than this version
    credit, credit_origin = run_source.saved_estimator(made, folder)
    args = unmask_arguments(made["args"], run)
    return experiment(
        str(folder / "config.py"), args, credit, origin=made["config"], credit_origin=credit_origin
    )[0]


def _strange(run: str, path: Path) -> str:
    """Why a run may be of somebody else."""
    if storage.bucket_address(run):
        return "is in a bucket"
    return (
        ""
        if not hasattr(os, "getuid") or path.stat().st_uid == os.getuid()
        else "belongs to another user"
    )


def _source(path: Path, run: str) -> dict[str, Any]:
    """What made a run: its config's path, the options given to it, and the estimator put in its place."""
    try:
        made = json.loads(path.read_bytes())
        fine = isinstance(made["config"], str) and all(
            isinstance(word, str) for word in made["args"]
        )
        if not (fine and isinstance(made["args"], list) and isinstance(made["credit"], str | None)):
            raise ValueError("its values are of other kinds")
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(
            f'{path} is damaged ({type(error).__name__}: {error}): write {{"config": the config\'s path, "args": [its options], '
            f'"credit": null or the name given with --credit}} into it, as {run} was trained; `jaxcredit compare {run}` works without'
        ) from error
    return made


def opened(source: str, step: int | None = None):
    """Experiment, programs, parameters and step of a run folder's checkpoint; of a config, the weights before any training."""
    import jax

    from jaxcredit.train.run import build, reopen

    if not source.endswith(".py"):
        exp = of_run(source)
        return exp, *reopen(exp, source, step=step)
    if step is not None:
        raise ValueError(
            f"--step {step} names a checkpoint, and {source} is a config, which has none: give a run folder"
        )
    exp = experiment(source)[0].check()
    programs = build(exp)
    return exp, programs, programs.init(jax.random.key(exp.seed)).params, 0
