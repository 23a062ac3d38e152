"""Masking of credentials (API keys, tokens, passwords) in the files of a run."""

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

HIDDEN = "***"
WORDS = {
    "key",
    "keys",
    "apikey",
    "apikeys",
    "token",
    "secret",
    "secrets",
    "password",
    "passwords",
    "passwd",
    "passphrase",
    "pwd",
}
WORDS |= {"credential", "credentials", "auth", "authorization", "bearer"}
TEXT = {
    "pad",
    "bos",
    "eos",
    "stop",
    "unk",
    "sep",
    "mask",
    "cls",
    "start",
    "end",
    "begin",
    "image",
    "special",
    "per",
}  # words before "token" that make it a token of text


def is_secret(name: str) -> bool:
    """Whether a name is that of a credential: `api_key` and `hfToken` are; `tokenizer`, `tokens` and `pad_token` are not."""
    words = re.sub("([a-z0-9])([A-Z])", r"\1 \2", name)
    words = re.findall("[a-z0-9]+", words.lower())
    return any(
        word in WORDS and not (word == "token" and i and words[i - 1] in TEXT)
        for i, word in enumerate(words)
    )


def masked(value: Any) -> Any:
    """Copy of a value in which every non-empty string is replaced by HIDDEN; numbers, booleans and None are kept."""
    if isinstance(value, str | bytes):
        return HIDDEN if value else value
    if isinstance(value, Mapping):
        return {k: masked(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [masked(v) for v in value]
    return value


def mask_arguments(words: Sequence[str]) -> list[str]:
    """Command-line words in which the values of secret options (`--api-key X`, `--api-key=X`) are replaced by HIDDEN."""
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
    """Inverse of `mask_arguments`: masked values are read from the environment (`--api-key` from API_KEY).

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
            f"{run} was made with {option}, whose value is not kept in its files: set {variable} in the environment to open the run"
        )
    return os.environ[variable]


def _harmless(word: str) -> bool:
    """Whether a word is a number, a boolean or None."""
    return bool(
        re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?|True|False|true|false|None", word)
    )
