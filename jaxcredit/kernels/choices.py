"""Check of arguments that select by name."""

from collections.abc import Sequence
from typing import Any


def check_choice(owner: str, name: str, value: Any, choices: Sequence[Any]) -> None:
    """Raise a ValueError that lists the choices unless `value` is one of them.

    Args:
        owner: function that has the argument, for the message.
        name: name of the argument.
        value: its value.
        choices: the allowed values, such as `typing.get_args` of a `Literal`.

    Raises:
        ValueError: the message has the owner, the argument, its value and the choices.
    """
    if not any(isinstance(value, type(choice)) and value == choice for choice in choices):
        raise ValueError(
            f"{owner}: {name}={value!r:.80} is unknown; choose from {', '.join(map(repr, choices))}"
        )
