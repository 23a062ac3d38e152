"""Typed reading of a mapping that came with a checkpoint: config.json, or the metadata of a GGUF file.

A value of another type or out of range is a ValueError that names the file, the key, the value and what belongs there.
"""

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from jaxcredit.plain_text import one_line

REQUIRED: Any = object()  # default of a key that has none
MOST = 2**31 - 1  # JAX counts in int32


def load_json(path: Path) -> dict[str, Any]:
    """The object in a JSON file, in UTF-8, UTF-16 or UTF-32, with or without a byte-order mark."""
    try:
        c = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not JSON ({one_line(error, 200)}): download it again") from error
    if not isinstance(c, dict):
        raise ValueError(f"{path} holds {shown(c)}, not an object of keys and values: download it again")
    return c


def shown(value: Any, most: int = 80) -> str:
    """A value as a message shows it: its repr, cut to `most` characters."""
    try:
        text = repr(value[:100] if isinstance(value, str | list) else value)
    except (ValueError, RecursionError):  # an integer of thousands of digits has no decimal repr
        text = f"a {type(value).__name__} too large to print"
    return text if len(text) <= most else text[: most - 3] + "..."


class Keys:
    """Reader of one mapping. `held`: key -> (number, its source), the sizes that the weights themselves have."""

    def __init__(self, values: Mapping[str, Any], path: Path, held: Mapping[str, tuple[int, str]] | None = None, inside: str = ""):
        self.values, self.path, self.held, self.inside = values, path, held or {}, inside

    def wrong(self, key: str, expected: str) -> ValueError:
        """The error for a value that is not what `expected` says."""
        known = [self.held[name] for name in (key, f"rows of {key}") if name in self.held]
        there = f". The weights hold {known[0][0]} ({known[0][1]})" if known else ""
        return ValueError(f"{self.path}: {self.inside}{key} = {shown(self.values.get(key))}, expected {expected}{there}")

    def _value(self, key: str, default: Any) -> tuple[Any, bool]:
        """The value and whether it stands in the file. null is as if absent."""
        if (value := self.values.get(key)) is not None:
            return value, True
        if default is REQUIRED:
            raise ValueError(f"{self.path} lacks {self.inside + key!r}: it does not describe a whole checkpoint; download it again")
        return default, False

    def size(self, key: str, default: Any = REQUIRED, *, least: int = 1, most: int = MOST) -> Any:
        """A whole number, and that of the weights where they hold one."""
        value, given = self._value(key, default)
        if given:
            if type(value) is not int or not least <= value <= most:
                raise self.wrong(key, f"a whole number from {least} to {most}")
            if key in self.held and value != self.held[key][0]:
                raise self.wrong(key, "the size of the weights: config and weights do not belong together; download both again")
        return value

    def number(self, key: str, default: Any = REQUIRED, *, above: float = 0.0, zero: bool = False) -> Any:
        """A finite number greater than `above`, or 0 where `zero`, as a float."""
        value, given = self._value(key, default)
        if given:
            if type(value) not in (int, float) or not (above < value < 1e30 or (zero and value == 0)):
                raise self.wrong(key, f"a number greater than {above:g}" + " or 0" * zero)
            value = float(value)
        return value

    def flag(self, key: str, default: Any = REQUIRED) -> Any:
        value, given = self._value(key, default)
        if given and type(value) is not bool:
            raise self.wrong(key, "true or false")
        return value

    def text(self, key: str, default: Any = REQUIRED, options: Collection[str] = ()) -> Any:
        """A string, one of `options` where they are given."""
        value, given = self._value(key, default)
        if given and not isinstance(value, str):
            raise self.wrong(key, "a string")
        if given and options and value not in options:
            raise ValueError(f"{self.path}: {self.inside}{key} = {shown(value)} is not supported, only {' or '.join(options)}")
        return value

    def texts(self, key: str, default: Any = REQUIRED, length: int | None = None, options: Collection[str] = ()) -> Any:
        """A list of strings, each one of `options` where they are given."""
        value, given = self._value(key, default)
        if given:
            if not isinstance(value, list) or not all(isinstance(x, str) for x in value):
                raise self.wrong(key, "a list of strings")
            if length is not None and len(value) != length:
                raise self.wrong(key, f"a list of {length} strings, not of {len(value)}")
            if other := next((x for x in value if options and x not in options), None):
                raise ValueError(
                    f"{self.path}: {self.inside}{key} holds {shown(other)}, which is not supported, only {' or '.join(options)}"
                )
        return value

    def numbers(self, key: str, length: int) -> tuple[float, ...]:
        """A list of finite positive numbers."""
        value, _ = self._value(key, REQUIRED)
        fine = isinstance(value, list) and all(type(x) in (int, float) and 0 < x < 1e30 for x in value)
        if not fine or len(value) != length:
            raise self.wrong(key, f"a list of {length} numbers greater than 0")
        return tuple(float(x) for x in value)

    def mapping(self, key: str) -> "Keys | None":
        """The reader of an object within this one; None where it is absent or empty."""
        value, _ = self._value(key, None)
        if value is not None and not isinstance(value, dict):
            raise self.wrong(key, "an object of keys and values, or null")
        return Keys(value, self.path, inside=f"{self.inside}{key}.") if value else None
