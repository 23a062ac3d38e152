"""Conversion of configuration values to JSON."""

import inspect
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from jaxcredit.train.runs.masking import is_secret, masked


def to_json(x: Any) -> Any:
    """JSON value that describes a configuration value.

    Functions and classes become their name, partials {name: arguments}, dataclasses a mapping of
    their fields, arrays dtype and shape, numbers that are not finite a string, and other objects
    the name of their class. Strings whose names are those of credentials are masked.

    >>> from functools import partial
    >>> to_json({"lr": 0.1, "load": partial(max, 1, api_key="sk-1")})
    {'lr': 0.1, 'load': {'builtins.max': {'0': 1, 'api_key': '***'}}}
    """
    if isinstance(x, float):
        return x if np.isfinite(x) else str(x)
    if x is None or isinstance(x, bool | int | str):
        return x
    if isinstance(x, Mapping):
        return {str(name): _named(str(name), value) for name, value in x.items()}
    if isinstance(x, list | tuple | set | frozenset):
        return [to_json(value) for value in x]
    if isinstance(x, np.generic) or (hasattr(x, "shape") and x.shape == ()):
        return to_json(x.item())
    if hasattr(x, "shape"):
        return f"{x.dtype}{list(x.shape)}"
    if hasattr(x, "func") and hasattr(x, "keywords"):
        return _partial(x)
    if hasattr(x, "__dataclass_fields__") and not isinstance(x, type):
        return to_json({name: getattr(x, name) for name in x.__dataclass_fields__})
    if hasattr(x, "__qualname__"):
        return _qualified_name(x)
    return str(x) if isinstance(x, Path) else type(x).__qualname__


def _named(name: str, value: Any) -> Any:
    """JSON value of an argument or field, masked if its name is that of a credential."""
    return to_json(masked(value) if is_secret(name) else value)


def _partial(x: Any) -> dict[str, Any]:
    """{function: arguments} of a functools.partial, positional arguments by their index."""
    names = _positional(x.func, len(x.args))
    arguments = {
        str(i): _named(name, value)
        for i, (name, value) in enumerate(zip(names, x.args, strict=True))
    }
    arguments |= to_json(x.keywords)
    function = to_json(x.func)
    if isinstance(function, str):
        return {function: arguments}
    return {**function, "with": arguments}  # a partial of a partial


def _qualified_name(x: Any) -> str:
    """Name of a function or class; its module precedes it unless the module is one of jaxcredit."""
    module = str(x.__module__)
    if module.startswith("jaxcredit."):
        return x.__qualname__  # stays the same when a module moves
    module = re.sub("^jaxcredit_config_[0-9a-f]+_", "", module)  # a config by its file's name
    return f"{module}.{x.__qualname__}"


def _positional(function: Any, count: int) -> list[str]:
    """Names of the first `count` parameters of a function, padded with ""."""
    try:
        names = list(inspect.signature(function).parameters)
    except (TypeError, ValueError):
        names = []
    return [*names, *[""] * count][:count]
