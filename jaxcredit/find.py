"""What a person names: the config of an experiment, an estimator, a run."""

import dataclasses
import difflib
import importlib.util
import inspect
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any


def experiment(path: str, rest: Sequence[str] = (), credit: str | None = None, *, origin: str | None = None):
    """The experiment of a config file, with the options given to its function; and what to write down to make it again.

    `origin`: where the file was when its run began, so that what it reads beside itself is still found.
    """
    import tyro

    make = getattr(module(path, origin), "experiment", None)
    if make is None:
        raise ValueError(f"{path} has no function `experiment(...)`: a config returns a jaxcredit.experiment.Experiment from it")
    head = inspect.getdoc(sys.modules.get(make.__module__)) or ""
    exp = tyro.cli(make, args=list(rest), prog=f"jaxcredit train {path}", description=head)
    if credit:
        exp = dataclasses.replace(exp, credit=estimator(credit))
    return exp, {"config": str(Path(path).resolve()), "args": list(rest), "credit": credit}


def module(path: str, origin: str | None = None) -> Any:
    """A Python file, run as a module; `origin` is what it sees as its `__file__`."""
    file = Path(path)
    if not file.is_file():
        known = ", ".join(sorted(str(p) for p in Path("configs").glob("*.py"))) or "none in ./configs"
        raise FileNotFoundError(f"no config file {path}; there are: {known}")
    spec = importlib.util.spec_from_file_location(file.stem, file)
    if spec is None or spec.loader is None:
        raise ValueError(f"{path} is no Python file: its name must end in .py")
    mod = importlib.util.module_from_spec(spec)
    sys.modules[file.stem] = mod  # so that dataclasses and pickles of the file find it
    mod.__file__ = str(Path(origin or file).resolve())
    if (beside := str(Path(mod.__file__).parent)) not in sys.path:
        sys.path.append(beside)  # a config may import the files beside it
    spec.loader.exec_module(mod)
    return mod


def estimator(name: str) -> Callable:
    """An estimator of the library by name, or a function of a file: `my.py:credit`, or `my.py` if it has just one."""
    from jaxcredit import credit

    if ".py" not in name:
        if name not in credit.__all__:
            near = difflib.get_close_matches(name, credit.__all__, 3)
            hint = f"did you mean {' or '.join(near)}? " if near else ""
            raise ValueError(f"no estimator is called {name!r}; {hint}known: {', '.join(credit.__all__)}; or give FILE.py:function")
        return getattr(credit, name)
    path, _, attribute = name.partition(":")
    mod = module(path)
    own = {n: f for n, f in vars(mod).items() if hasattr(f, "method") and getattr(f, "__module__", "") == mod.__name__}
    if attribute:
        found = getattr(mod, attribute, None)
    else:
        found = next(iter(own.values())) if len(own) == 1 else None
    if found is None:
        what = f"no function {attribute}" if attribute else "not exactly one lifted function (@per_group or @per_batch)"
        raise ValueError(f"{path} has {what}; those in it: {', '.join(own) or 'none'}")
    return found


def of_run(run: str):
    """The experiment of a run folder."""
    from jaxcredit.home import here

    folder = here(run)
    path = folder / "source.json"
    if not path.is_file():
        raise FileNotFoundError(f"{run} is no run folder (it has no source.json): give one that `jaxcredit train` made")
    made = json.loads(path.read_text())
    return experiment(str(folder / "config.py"), made["args"], made["credit"], origin=made["config"])[0]


def opened(source: str, step: int | None = None):
    """Experiment, programs, parameters and step of a run folder's checkpoint; of a config, the weights before any training."""
    import jax

    from jaxcredit.run import build, reopen

    if not source.endswith(".py"):
        exp = of_run(source)
        return exp, *reopen(exp, source, step=step)
    if step is not None:
        raise ValueError(f"--step {step} names a checkpoint, and {source} is a config, which has none: give a run folder")
    exp = experiment(source)[0].check()
    programs = build(exp)
    return exp, programs, programs.init(jax.random.key(exp.seed)).params, 0
