"""Validated reading of checkpoint metadata (config.json or GGUF keys).

A value of the wrong type or out of range raises a ValueError with file, key, value and expected
value.
"""

import json
from collections.abc import Collection, Mapping
from pathlib import Path
from typing import Any

from jaxcredit.utils.plain_text import one_line

REQUIRED: Any = object()  # default of keys that must be present
MOST = 2**31 - 1  # largest int32, the integer type of JAX


def load_json(path: Path) -> dict[str, Any]:
    """Mapping in a JSON file, in UTF-8, UTF-16 or UTF-32. Other content raises a ValueError."""
    try:
        c = json.loads(path.read_bytes())
    except (ValueError, RecursionError) as error:
        raise ValueError(
            f"{path} is not JSON ({one_line(error, 200)}): download it again"
        ) from error
    if not isinstance(c, dict):
        raise ValueError(
            f"{path} holds {shown(c)}, not an object of keys and values: download it again"
        )
    return c


def shown(value: Any, most: int = 80) -> str:
    """Repr of a value for messages, cut to `most` characters."""
    try:
        text = repr(value[:100] if isinstance(value, str | list) else value)
    except (ValueError, RecursionError):  # an integer of thousands of digits has no decimal repr
        text = f"a {type(value).__name__} too large to print"
    return text if len(text) <= most else text[: most - 3] + "..."


class Keys:
    """Validated reader of one mapping.

    Absent and null keys give the default. Without a default they raise a ValueError.

    Args:
        values: the mapping.
        path: its file, for error messages.
        held: sizes of the weights, {key: (size, tensor)}, with which `values` must agree.
        inside: prefix of the keys in error messages, for a nested mapping.
    """

    def __init__(
        self,
        values: Mapping[str, Any],
        path: Path,
        held: Mapping[str, tuple[int, str]] | None = None,
        inside: str = "",
    ):
        self.values, self.path, self.held, self.inside = values, path, held or {}, inside

    def wrong(self, key: str, expected: str) -> ValueError:
        """Error for a key whose value is not `expected`."""
        known = [self.held[name] for name in (key, f"rows of {key}") if name in self.held]
        weights = f". The weights hold {known[0][0]} ({known[0][1]})" if known else ""
        return ValueError(
            f"{self.path}: {self.inside}{key} = {shown(self.values.get(key))}, expected "
            f"{expected}{weights}"
        )

    def _value(self, key: str, default: Any) -> tuple[Any, bool]:
        """Value of a key and whether it is present. null counts as absent."""
        if (value := self.values.get(key)) is not None:
            return value, True
        if default is REQUIRED:
            raise ValueError(
                f"{self.path} lacks {self.inside + key!r}: it does not describe a whole "
                "checkpoint; download it again"
            )
        return default, False

    def size(self, key: str, default: Any = REQUIRED, *, least: int = 1, most: int = MOST) -> Any:
        """Integer from `least` to `most`, equal to the size of the weights if that is known."""
        value, given = self._value(key, default)
        if given:
            if type(value) is not int or not least <= value <= most:
                raise self.wrong(key, f"a whole number from {least} to {most}")
            if key in self.held and value != self.held[key][0]:
                raise self.wrong(
                    key,
                    "the size of the weights: config and weights do not belong together; download "
                    "both again",
                )
        return value

    def number(
        self, key: str, default: Any = REQUIRED, *, above: float = 0.0, zero: bool = False
    ) -> Any:
        """Finite number greater than `above` as a float; with `zero`, 0 is allowed too."""
        value, given = self._value(key, default)
        if given:
            if type(value) not in (int, float) or not (
                above < value < 1e30 or (zero and value == 0)
            ):
                raise self.wrong(key, f"a number greater than {above:g}" + " or 0" * zero)
            value = float(value)
        return value

    def flag(self, key: str, default: Any = REQUIRED) -> Any:
        """Boolean."""
        value, given = self._value(key, default)
        if given and type(value) is not bool:
            raise self.wrong(key, "true or false")
        return value

    def text(self, key: str, default: Any = REQUIRED, options: Collection[str] = ()) -> Any:
        """String; if `options` is not empty, one of them."""
        value, given = self._value(key, default)
        if given and not isinstance(value, str):
            raise self.wrong(key, "a string")
        if given and options and value not in options:
            raise ValueError(
                f"{self.path}: {self.inside}{key} = {shown(value)} is not supported, only "
                f"{' or '.join(options)}"
            )
        return value

    def texts(
        self,
        key: str,
        default: Any = REQUIRED,
        length: int | None = None,
        options: Collection[str] = (),
    ) -> Any:
        """List of strings, of the given length; if `options` is not empty, each is one of them."""
        value, given = self._value(key, default)
        if given:
            if not isinstance(value, list) or not all(isinstance(x, str) for x in value):
                raise self.wrong(key, "a list of strings")
            if length is not None and len(value) != length:
                raise self.wrong(key, f"a list of {length} strings, not of {len(value)}")
            if other := next((x for x in value if options and x not in options), None):
                raise ValueError(
                    f"{self.path}: {self.inside}{key} holds {shown(other)}, which is not "
                    f"supported, only {' or '.join(options)}"
                )
        return value

    def numbers(self, key: str, length: int) -> tuple[float, ...]:
        """Tuple of `length` finite positive numbers, from a list."""
        value, _ = self._value(key, REQUIRED)
        fine = isinstance(value, list) and all(
            type(x) in (int, float) and 0 < x < 1e30 for x in value
        )
        if not fine or len(value) != length:
            raise self.wrong(key, f"a list of {length} numbers greater than 0")
        return tuple(float(x) for x in value)

    def mapping(self, key: str) -> "Keys | None":
        """Reader of a nested mapping; None if it is absent or empty."""
        value, _ = self._value(key, None)
        if value is not None and not isinstance(value, dict):
            raise self.wrong(key, "an object of keys and values, or null")
        return Keys(value, self.path, inside=f"{self.inside}{key}.") if value else None
