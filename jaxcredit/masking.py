"""Values of keys, tokens and passwords, left out of the files that a run writes."""

import os
import re
from collections.abc import Mapping, Sequence
from typing import Any

HIDDEN = "***"
WORDS = {"key", "keys", "apikey", "apikeys", "token", "secret", "secrets", "password", "passwords", "passwd", "passphrase", "pwd"}
WORDS |= {"credential", "credentials", "auth", "authorization", "bearer"}
TEXT = {"pad", "bos", "eos", "stop", "unk", "sep", "mask", "cls", "start", "end", "begin", "image", "special", "per"}  # tokens of a text


def is_secret(name: str) -> bool:
    """Whether a name, word by word, is one of a credential: `api_key` and `hfToken` are, `tokenizer`, `tokens` and `pad_token` are not."""
    words = re.sub("([a-z0-9])([A-Z])", r"\1 \2", name)
    words = re.findall("[a-z0-9]+", words.lower())
    return any(word in WORDS and not (word == "token" and i and words[i - 1] in TEXT) for i, word in enumerate(words))


def masked(value: Any) -> Any:
    """`value` with HIDDEN in place of every text in it; numbers, truth values and None stay."""
    if isinstance(value, str | bytes):
        return HIDDEN if value else value
    if isinstance(value, Mapping):
        return {k: masked(v) for k, v in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [masked(v) for v in value]
    return value


def mask_arguments(words: Sequence[str]) -> list[str]:
    """Words of a command line with HIDDEN in place of the values of secret options (`--api-key X`, `--api-key=X`)."""
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
    """The inverse: values that were masked are taken from the environment, `--api-key` from API_KEY. A ValueError names what is missing."""
    out, name = [], ""
    for word in words:
        if word.startswith("--"):
            name, equals, value = word.partition("=")
            word = f"{name}={_asked(name, run)}" if equals and value == HIDDEN else word
        elif word == HIDDEN:
            word = _asked(name, run)
        out.append(word)
    return out


def _asked(option: str, run: str) -> str:
    variable = re.sub("[^0-9A-Za-z]+", "_", option.lstrip("-")).upper()
    if variable not in os.environ:
        raise ValueError(
            f"{run} was made with {option}, whose value is not kept in its files: set {variable} in the environment to open the run"
        )
    return os.environ[variable]


def _harmless(word: str) -> bool:
    """A number, a truth value or None."""
    return bool(re.fullmatch(r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?|True|False|true|false|None", word))
