"""Masking of credentials (API keys, tokens, passwords) in the files of a run."""

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

HIDDEN = "***"
WORDS = set(
    "key keys apikey apikeys token secret secrets password passwords passwd passphrase pwd "
    "credential credentials auth authorization bearer".split()
)
# Words before "token" that make it a token of text.
TEXT = set("pad bos eos stop unk sep mask cls start end begin image special per".split())


def is_secret(name: str) -> bool:
    """Whether a name is that of a credential.

    >>> [is_secret(name) for name in ("api_key", "hfToken", "tokenizer", "pad_token")]
    [True, True, False, False]
    """
    words = re.sub("([a-z0-9])([A-Z])", r"\1 \2", name)
    words = re.findall("[a-z0-9]+", words.lower())
    return any(
        word in WORDS and not (word == "token" and i and words[i - 1] in TEXT)
        for i, word in enumerate(words)
    )


def masked(value: Any) -> Any:
    """Copy of a value with HIDDEN in place of every non-empty string."""
    if isinstance(value, str | bytes):
        return HIDDEN if value else value
    if isinstance(value, Mapping):
        return {k: masked(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [masked(v) for v in value]
    return value


def mask_arguments(words: Sequence[str]) -> list[str]:
    """Command-line words with HIDDEN in place of the values of secret options.

    >>> mask_arguments(["--lr", "1", "--api-key", "sk-1", "--password=x"])
    ['--lr', '1', '--api-key', '***', '--password=***']
    """
    out, secret = [], False
    for word in words:
        if word.startswith("--"):
            name, equals, value = word.partition("=")
            secret = is_secret(name)
            word = f"{name}={HIDDEN}" if secret and equals and not _harmless(value) else word
            secret = secret and not equals
        elif secret and not _harmless(word):
            word = HIDDEN
        out.append(word)
    return out


def unmask_arguments(words: Sequence[str], run: str) -> list[str]:
    """Command-line words with masked values read from the environment (`--api-key` from API_KEY).

    Args:
        words: command-line words with HIDDEN values.
        run: name of the run, for the error message.

    Raises:
        ValueError: an environment variable is not set.
    """
    out, name = [], ""
    for word in words:
        if word.startswith("--"):
            name, equals, value = word.partition("=")
            word = f"{name}={_from_environment(name, run)}" if equals and value == HIDDEN else word
        elif word == HIDDEN:
            word = _from_environment(name, run)
        out.append(word)
    return out


def _from_environment(option: str, run: str) -> str:
    variable = re.sub("[^0-9A-Za-z]+", "_", option.lstrip("-")).upper()
    if variable not in os.environ:
        raise ValueError(
            f"{run} was made with {option}, whose value is not kept in its files: "
            f"set {variable} in the environment to open the run"
        )
    return os.environ[variable]


def _harmless(word: str) -> bool:
    """Whether a word is a number, a boolean or None."""
    return bool(
        re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?|True|False|true|false|None", word)
    )
