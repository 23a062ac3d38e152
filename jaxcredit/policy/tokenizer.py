"""Text to ids and back: `Chars` for micro models and `HF` around a Hugging Face tokenizer. Nothing here touches the network."""

import functools
import json
import os
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, Protocol

from jaxcredit.policy import chat_template, hub
from jaxcredit.utils import plain_text

Messages = Sequence[dict[str, str]]  # [{"role": "user", "content": "..."}]
ENDS = (
    "<|im_end|>",
    "<|endoftext|>",
    "<|eot_id|>",
    "<|end_of_text|>",
)  # what ends a turn or a document, where a vocabulary has it


class Tokenizer(Protocol):
    """What the rest of the library asks of a tokenizer."""

    vocab_size: int  # ids are 0..vocab_size-1
    pad_id: int
    stop_ids: tuple[int, ...]  # tokens that end an answer; decode drops them

    def encode(self, text: str) -> list[int]: ...
    def decode(self, ids: Iterable[int]) -> str: ...
    def chat(self, messages: str | Messages) -> list[int]: ...
    def save(self, folder: str | os.PathLike) -> None: ...


class Chars:
    """One id a character: 0 is padding, 1 ends a text, the alphabet follows in the order given."""

    pad_id, eos_id, stop_ids = 0, 1, (1,)

    def __init__(self, alphabet: str):
        self.alphabet = "".join(dict.fromkeys(alphabet))
        self.vocab_size = 2 + len(self.alphabet)
        self._ids = {c: i for i, c in enumerate(self.alphabet, 2)}

    def encode(self, text: str) -> list[int]:
        try:
            return [self._ids[c] for c in text]
        except KeyError as error:
            char = error.args[0]
            raise ValueError(
                f"character {char!r} (U+{ord(char):04X}) at position {text.index(char)} of {_short(text)} is not in the alphabet "
                f"{self.alphabet!r}: add it to Chars(alphabet), or clean the text"
            ) from None

    def decode(self, ids: Iterable[int]) -> str:
        return "".join(self.alphabet[i - 2] for i in _checked(ids, self.vocab_size) if i >= 2)

    def chat(self, messages: str | Messages) -> list[int]:
        """The characters of the messages, one after the other: a micro model knows no roles."""
        return self.encode(
            messages if isinstance(messages, str) else "".join(m["content"] for m in messages)
        )

    def save(self, folder: str | os.PathLike) -> None:
        """Write it as a Hugging Face tokenizer: one word a character."""
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
    """A Hugging Face fast tokenizer, from a folder or a hub id, or already built. `template` goes to the chat template."""

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
        """Ids of the text alone: no begin or end token is added."""
        try:
            return self.tokenizer.encode(text, add_special_tokens=False)
        except Exception as error:
            raise ValueError(
                f"the tokenizer of {self._origin} cannot encode {_short(text)}: {plain_text.one_line(error, 200)}"
            ) from error

    def decode(self, ids: Iterable[int]) -> str:
        """The text without special tokens, white space untouched."""
        ids = [int(i) for i in ids]
        return self.tokenizer.decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )

    def chat(self, messages: str | Messages) -> list[int]:
        """Token ids of a conversation in the model's chat format, including the generation prompt. A string is one user turn.

        The template runs in a process of its own, with a bound on its time and memory: it is a program of whoever made the checkpoint.
        """
        if self.tokenizer.chat_template is None:
            if isinstance(messages, str):
                return self.encode(messages)
            raise ValueError(
                f"the tokenizer of {self._origin} has no chat template (a base model?): pass a plain string, or set tokenizer.chat_template"
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
        where = _template_file(self._origin)
        try:
            template = self.tokenizer.get_chat_template(values.pop("chat_template", None), tools)
        except Exception as error:
            raise ValueError(
                f"{where} has no chat template for this use: {plain_text.one_line(error, 200)}"
            ) from error
        if not isinstance(template, str):
            raise ValueError(
                f"the chat template of {where} is {type(template).__name__}, expected a string"
            )
        return self.encode(chat_template.render(template, messages, where, **values))

    def save(self, folder: str | os.PathLike) -> None:
        self.tokenizer.save_pretrained(folder)


def fast(tokenizer, **special: Any):
    """A `tokenizers.Tokenizer` as a transformers one, with special tokens and a chat_template by keyword."""
    return _transformers().PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, clean_up_tokenization_spaces=False, **special
    )


def _load(folder: Path):
    names = ("tokenizer.json", "tokenizer.model", "vocab.json", "tokenizer_config.json")
    if not any((folder / name).is_file() for name in names):
        raise FileNotFoundError(
            f"{folder} holds no tokenizer ({', '.join(names)}): copy the files of the model's tokenizer into it"
        )
    transformers = _transformers()
    # tokenizer.json is the tokenizer itself: read as it is, whatever class the folder names.
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
    """transformers, imported late (0.8 s) and without its remark that PyTorch is absent."""
    key = "TRANSFORMERS_NO_ADVISORY_WARNINGS"
    before = os.environ.get(key)
    os.environ[key] = "1"
    try:
        import transformers
    finally:
        os.environ.pop(key) if before is None else os.environ.update({key: before})
    return transformers


def _generation_ends(folder: Path) -> list[int]:
    """The end tokens of generation_config.json, where the tokenizer came from a folder that has one."""
    path = folder / "generation_config.json"
    try:
        found = json.loads(path.read_bytes())
        ends = found.get("eos_token_id")
    except OSError:
        return []
    except (ValueError, AttributeError, RecursionError) as error:
        raise ValueError(
            f"{path} is not a JSON object ({plain_text.one_line(error, 200)}): download it again, or delete it"
        ) from error
    ends = ends if isinstance(ends, list) else [] if ends is None else [ends]
    if bad := [i for i in ends if type(i) is not int or not 0 <= i < 2**31]:
        raise ValueError(
            f"{path}: eos_token_id holds {_short(str(bad[0]))}, expected ids of tokens: download it again"
        )
    return ends


def _template_file(origin: str) -> str:
    """Path of a tokenizer's chat template, for error messages."""
    files = [Path(origin) / name for name in ("chat_template.jinja", "tokenizer_config.json")]
    return next((str(file) for file in files if file.is_file()), origin)


def _checked(ids: Iterable[int], size: int) -> list[int]:
    ids = [int(i) for i in ids]
    if bad := [i for i in ids if not 0 <= i < size]:
        raise ValueError(
            f"id {bad[0]} is outside the vocabulary of {size}: tokenizer and model disagree"
        )
    return ids


def _short(text: str, width: int = 60) -> str:
    return repr(text if len(text) <= width else text[: width - 3] + "...")
