"""Tokenizers: `Chars` for small models and `HF` around a Hugging Face tokenizer.

Only `HF` with an id of the hub may use the network.
"""

import functools
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

from jaxcredit.policy import chat_template, hub
from jaxcredit.utils import plain_text

Messages = Sequence[dict[str, str]]  # [{"role": "user", "content": "..."}]
# Tokens that end a turn or a document, if a vocabulary has them.
ENDS = ("<|im_end|>", "<|endoftext|>", "<|eot_id|>", "<|end_of_text|>")


class Tokenizer(Protocol):
    """Interface of a tokenizer.

    `vocab_size`: number of ids, 0 .. vocab_size - 1. `pad_id`: id of padding. `stop_ids`: ids that
    end a response; `decode` drops them.
    """

    vocab_size: int
    pad_id: int
    stop_ids: tuple[int, ...]

    def encode(self, text: str) -> list[int]:
        """Ids of a text, without special tokens."""
        ...

    def decode(self, ids: Iterable[int]) -> str:
        """Text of the ids, without special tokens."""
        ...

    def chat(self, messages: str | Messages) -> list[int]:
        """Ids of a conversation, including the generation prompt. A string is one user turn."""
        ...

    def save(self, folder: str | os.PathLike) -> None:
        """Write a Hugging Face tokenizer into a folder."""
        ...


class Chars:
    """Tokenizer with one id per character: 0 is padding, 1 ends a text, then the alphabet in order.

    Args:
        alphabet: characters; repetitions are ignored.

    >>> Chars("ab").encode("ba")
    [3, 2]
    """

    pad_id, eos_id, stop_ids = 0, 1, (1,)

    def __init__(self, alphabet: str):
        self.alphabet = "".join(dict.fromkeys(alphabet))
        self.vocab_size = 2 + len(self.alphabet)
        self._ids = {c: i for i, c in enumerate(self.alphabet, 2)}

    def encode(self, text: str) -> list[int]:
        """Id of each character. A character outside the alphabet raises a ValueError."""
        try:
            return [self._ids[c] for c in text]
        except KeyError as error:
            char = error.args[0]
            raise ValueError(
                f"character {char!r} (U+{ord(char):04X}) at position {text.index(char)} of "
                f"{_short(text)} is not in the alphabet "
                f"{self.alphabet!r}: add it to Chars(alphabet), or clean the text"
            ) from None

    def decode(self, ids: Iterable[int]) -> str:
        """Text of the ids, without padding and end. Raises a ValueError for an unknown id."""
        return "".join(self.alphabet[i - 2] for i in _checked(ids, self.vocab_size) if i >= 2)

    def chat(self, messages: str | Messages) -> list[int]:
        """Ids of the texts of all messages, concatenated without roles."""
        return self.encode(
            messages if isinstance(messages, str) else "".join(m["content"] for m in messages)
        )

    def save(self, folder: str | os.PathLike) -> None:
        """Write a Hugging Face tokenizer with one word per character into a folder."""
        from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers

        words = {"<pad>": 0, "<eos>": 1, **self._ids}
        tok = Tokenizer(models.WordLevel(words, unk_token=None))
        tok.pre_tokenizer = pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated")
        tok.decoder = decoders.Fuse()
        fast(tok, pad_token="<pad>", eos_token="<eos>").save_pretrained(folder)

    def __repr__(self) -> str:
        return f"Chars({self.alphabet!r})"

    def __eq__(self, other) -> bool:
        return isinstance(other, Chars) and other.alphabet == self.alphabet

    def __hash__(self) -> int:
        return hash(self.alphabet)


class PlaceholderTokenizer:
    """Tokenizer without a vocabulary file, for planning a run from shapes alone.

    Every use of it raises a ValueError.

    Args:
        vocab_size: number of token ids.
        why: message of the error: what to give instead.
    """

    def __init__(self, vocab_size: int, why: str):
        self.vocab_size, self.why, self.pad_id, self.stop_ids = (
            vocab_size,
            why,
            0,
            (vocab_size - 1,),
        )

    def encode(self, text):
        """Raise the ValueError."""
        raise ValueError(self.why)

    decode = chat = save = encode


class HF:
    """A Hugging Face fast tokenizer.

    Args:
        source: folder, id on the hub, or a transformers tokenizer.
        template: variables of the chat template, such as `enable_thinking=False`, or `tools`.

    Raises:
        FileNotFoundError: the folder holds no tokenizer.
        ValueError: its files are damaged.
    """

    def __init__(self, source, **template: Any):
        self.tokenizer = tok = (
            source if hasattr(source, "apply_chat_template") else _load(hub.folder(source))
        )
        self.template = template
        self._origin = str(tok.name_or_path or "this tokenizer")
        vocab = tok.get_vocab()
        self.vocab_size = 1 + max(vocab.values(), default=-1)
        ends = [
            tok.eos_token_id,
            *(vocab.get(name) for name in ENDS),
            *_generation_ends(Path(self._origin)),
        ]
        self.stop_ids = tuple(sorted({int(i) for i in ends if i is not None}))
        self.pad_id = (
            tok.pad_token_id if tok.pad_token_id is not None else (self.stop_ids or (0,))[0]
        )

    def encode(self, text: str) -> list[int]:
        """Ids of the text, without begin and end tokens."""
        try:
            return self.tokenizer.encode(text, add_special_tokens=False)
        except Exception as error:
            raise ValueError(
                f"the tokenizer of {self._origin} cannot encode {_short(text)}: "
                f"{plain_text.one_line(error, 200)}"
            ) from error

    def decode(self, ids: Iterable[int]) -> str:
        """Text of the ids without special tokens; white space is preserved."""
        ids = [int(i) for i in ids]
        return self.tokenizer.decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )

    def chat(self, messages: str | Messages) -> list[int]:
        """Ids of a conversation in the model's chat format, including the generation prompt.

        A chat template is untrusted code of the checkpoint's author. It runs in a separate process
        with limits on time and memory (policy.chat_template).

        Args:
            messages: mappings with "role" and "content", or a string: one user turn.

        Raises:
            ValueError: the template fails, or there is none and `messages` is not a string.
        """
        if self.tokenizer.chat_template is None:
            if isinstance(messages, str):
                return self.encode(messages)
            raise ValueError(
                f"the tokenizer of {self._origin} has no chat template (a base model?): pass a "
                "plain "
                "string, or set tokenizer.chat_template"
            )
        messages = (
            [{"role": "user", "content": messages}] if isinstance(messages, str) else list(messages)
        )
        special = self.tokenizer.special_tokens_map.items()
        values = {
            key: [str(t) for t in x] if isinstance(x, list) else str(x) for key, x in special
        } | self.template
        if tools := values.get("tools"):
            from transformers.utils.chat_template_utils import get_json_schema

            values["tools"] = [get_json_schema(tool) if callable(tool) else tool for tool in tools]
        file = _template_file(self._origin)
        try:
            template = self.tokenizer.get_chat_template(values.pop("chat_template", None), tools)
        except Exception as error:
            raise ValueError(
                f"{file} has no chat template for this use: {plain_text.one_line(error, 200)}"
            ) from error
        if not isinstance(template, str):
            raise ValueError(
                f"the chat template of {file} is {type(template).__name__}, expected a string"
            )
        return self.encode(chat_template.render(template, messages, file, **values))

    def save(self, folder: str | os.PathLike) -> None:
        """Write the tokenizer into a folder."""
        self.tokenizer.save_pretrained(folder)


def fast(tokenizer, **special: Any):
    """transformers tokenizer around a `tokenizers.Tokenizer`.

    Args:
        tokenizer: the `tokenizers.Tokenizer`.
        special: special tokens by name ("eos_token"), and "chat_template".
    """
    return _transformers().PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **special
    )


def _load(folder: Path):
    """transformers tokenizer of a folder."""
    names = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")
    if not any((folder / name).is_file() for name in names):
        raise FileNotFoundError(
            f"{folder} holds no tokenizer ({', '.join(names)}): copy the files of the model's "
            "tokenizer into it"
        )
    transformers = _transformers()
    # tokenizer.json defines the whole tokenizer, whatever class tokenizer_config.json names.
    cls = (
        transformers.PreTrainedTokenizerFast
        if (folder / "tokenizer.json").is_file()
        else transformers.AutoTokenizer
    )
    try:
        return cls.from_pretrained(str(folder), local_files_only=True)
    except Exception as error:
        cause = plain_text.one_line(error, 300)
        raise ValueError(
            f"the tokenizer in {folder} cannot be read ({cause}): download or export it again"
        ) from error


@functools.cache
def _transformers():
    """transformers, imported on first use and without its warning that PyTorch is absent."""
    key = "TRANSFORMERS_NO_ADVISORY_WARNINGS"
    before = os.environ.get(key)
    os.environ[key] = "1"
    try:
        import transformers
    finally:
        os.environ.pop(key) if before is None else os.environ.update({key: before})
    return transformers


def _generation_ends(folder: Path) -> list[int]:
    """End tokens in generation_config.json, if the folder of the tokenizer has one."""
    path = folder / "generation_config.json"
    try:
        ends = json.loads(path.read_bytes()).get("eos_token_id")
    except OSError:
        return []
    except (ValueError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"{path} is not a JSON object ({plain_text.one_line(error, 200)}): download it again, "
            "or delete it"
        ) from error
    ends = ends if isinstance(ends, list) else [] if ends is None else [ends]
    if bad := [i for i in ends if type(i) is not int or not 0 <= i < 2**31]:
        raise ValueError(
            f"{path}: eos_token_id holds {_short(str(bad[0]))}, expected ids of tokens: download "
            "it again"
        )
    return ends


def _template_file(origin: str) -> str:
    """Path of a tokenizer's chat template, for error messages."""
    files = [Path(origin) / name for name in ("chat_template.jinja", "tokenizer_config.json")]
    return next((str(file) for file in files if file.is_file()), origin)


def _checked(ids: Iterable[int], size: int) -> list[int]:
    """ids as a list. An id outside 0 .. size - 1 raises a ValueError."""
    ids = [int(i) for i in ids]
    if bad := [i for i in ids if not 0 <= i < size]:
        raise ValueError(
            f"id {bad[0]} is outside the vocabulary of {size}: tokenizer and model disagree"
        )
    return ids


def _short(text: str, width: int = 60) -> str:
    """Repr of a text for messages, shortened to about `width` characters."""
    return repr(text if len(text) <= width else text[: width - 3] + "...")
