"""Tokenizers: round trips, chat templates, stop tokens, and error messages."""

import json
import os
import socket
import subprocess
import sys

import numpy as np
import pytest
from tiny_checkpoint import tiny_tokenizer

from jaxcredit.policy import chat_template
from jaxcredit.policy.tokenizer import HF, Chars

TEXTS = [
    "3 + 4 = 7",
    "  two  spaces\n\nand\ttabs ",
    "Größe 1,024 – 日本 🙂",
    "def f(x):\n    return x**2",
    "",
]


@pytest.fixture(scope="module")
def hf():
    return tiny_tokenizer()


@pytest.fixture(autouse=True)
def no_network(monkeypatch):
    def refuse(*_, **__):
        raise AssertionError("a tokenizer opened a connection")

    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)


def test_chars_give_each_character_its_place_behind_pad_and_eos():
    tok = Chars("ba ab")
    assert (tok.vocab_size, tok.pad_id, tok.stop_ids) == (5, 0, (1,))
    assert tok.encode("ab ") == [3, 2, 4]
    assert tok.decode(np.array([3, 0, 2, 1, 4], np.int32)) == "ab "
    assert (
        tok.chat("ab")
        == tok.encode("ab")
        == tok.chat([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}])
    )


def test_chars_name_the_unknown_character_and_the_id_outside():
    with pytest.raises(
        ValueError, match=r"'é' \(U\+00E9\) at position 3 of 'café' is not in the alphabet"
    ):
        Chars("cafe").encode("café")
    with pytest.raises(ValueError, match="id 6 is outside the vocabulary of 6"):
        Chars("cafe").decode([2, 6])


def test_chars_are_equal_by_alphabet():
    assert Chars("abc") == Chars("abc") != Chars("acb")
    assert len({Chars("abc"), Chars("abc"), Chars("acb")}) == 2


def test_chars_saved_are_a_hugging_face_tokenizer_with_the_same_ids(tmp_path):
    chars = Chars("0123456789+=\n .")
    chars.save(tmp_path)
    hf = HF(tmp_path)
    for text in ("12+30=42", "1 .\n\n  =", "+"):
        assert hf.encode(text) == chars.encode(text)
        assert hf.decode([*hf.encode(text), 1, 0]) == text
    assert (hf.stop_ids, hf.pad_id, hf.vocab_size) == (
        chars.stop_ids,
        chars.pad_id,
        chars.vocab_size,
    )


@pytest.mark.parametrize("text", TEXTS)
def test_hf_round_trips_any_text(hf, text):
    assert hf.decode(hf.encode(text)) == text


def test_hf_chat_is_the_template_with_the_answer_opened(hf):
    ids = hf.chat("2 + 2?")
    assert hf.tokenizer.decode(ids) == "<|im_start|>user\n2 + 2?<|im_end|>\n<|im_start|>assistant\n"
    assert ids == hf.chat([{"role": "user", "content": "2 + 2?"}])
    assert ids.count(hf.tokenizer.convert_tokens_to_ids("<|im_start|>")) == 2, (
        "special tokens are one id each"
    )


def test_hf_decode_drops_specials_and_keeps_the_rest(hf):
    im_end, end = (hf.tokenizer.convert_tokens_to_ids(t) for t in ("<|im_end|>", "<|endoftext|>"))
    assert hf.decode(np.array([*hf.encode(" 7 ."), im_end, end])) == " 7 ."
    assert set(hf.stop_ids) == {im_end, end}
    assert hf.pad_id == end


def test_hf_passes_keywords_to_the_template(hf):
    tok = tiny_tokenizer()
    tok.tokenizer.chat_template = "{{ 'deep' if thinking else 'fast' }}"
    assert tok.decode(HF(tok.tokenizer, thinking=True).chat("x")) == "deep"
    assert tok.decode(HF(tok.tokenizer).chat("x")) == "fast"


def test_hf_from_a_folder_equals_the_one_saved_and_reads_further_ends(hf, tmp_path):
    hf.save(tmp_path)
    (tmp_path / "generation_config.json").write_text(
        json.dumps({"eos_token_id": [hf.stop_ids[0], 77]})
    )
    again = HF(str(tmp_path))
    assert again.chat("Tom has 12 apples.") == hf.chat("Tom has 12 apples.")
    assert again.stop_ids == (*hf.stop_ids, 77)
    for damaged in ("[", "[]", '{"eos_token_id": "x"}', '{"eos_token_id": [true]}'):
        (tmp_path / "generation_config.json").write_text(damaged)
        with pytest.raises(ValueError, match="generation_config.json.*download it again"):
            HF(tmp_path)
    (tmp_path / "generation_config.json").unlink()
    assert again.vocab_size == hf.vocab_size == 1 + max(hf.tokenizer.get_vocab().values())


QWEN = """{%- if tools %}
{{- '<|im_start|>system\n' }}{%- for tool in tools %}{{- tool | tojson }}{%- endfor %}{{- '<|im_end|>\n' }}
{%- endif %}
{%- set ns = namespace(last=true, at=messages|length - 1) %}
{%- for message in messages[::-1] %}
    {%- if ns.last and message.role == "user" %}{%- set ns.last = false %}{%- set ns.at = loop.index0 %}{%- endif %}
{%- endfor %}
{%- for message in messages %}
    {{- '<|im_start|>' + message.role + '\n' + message.content.strip('\n') + eos_token + '\n' }}
{%- endfor %}
{%- if add_generation_prompt %}
    {{- '<|im_start|>assistant\n' }}{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>' }}{%- endif %}
{%- endif %}
"""


def test_a_conversation_is_rendered_as_transformers_does(hf):
    def look(city: str) -> str:
        """Look a city up.

        Args:
            city: The name.
        """
        return city

    tok = tiny_tokenizer()
    tok.tokenizer.chat_template = QWEN
    messages = [
        {"role": "user", "content": "\n2 + 2? \u2028 é"},
        {"role": "assistant", "content": "4", "tool_calls": None},
    ]
    for options in (
        {},
        {"enable_thinking": False},
        {"tools": [look]},
        {"chat_template": "{{ messages[0].content }}"},
    ):
        theirs = tok.tokenizer.apply_chat_template(
            messages, add_generation_prompt=True, return_dict=False, **options
        )
        assert HF(tok.tokenizer, **options).chat(messages) == theirs


HOSTILE = {
    "loops": (
        "{% for i in range(90000) %}{% for j in range(90000) %}{% endfor %}{% endfor %}",
        "more than 1 s of processor time",
    ),
    "a power": ("{{ 9 ** (9 ** 9) }}", "more than 1 s of processor time|too much memory or time"),
    "a large string": (
        "{{ 'a' * 10 ** 11 }}",
        "line 1: it takes more memory|: it takes more memory",
    ),
    "doubling": (  # either limit comes first, by how fast the machine gives memory
        "{% set n = namespace(s='ab') %}{% for i in range(60) %}{% set n.s = n.s ~ n.s %}{% endfor %}",
        "takes more memory|more than 1 s of processor time",
    ),
    "a long answer": ("{{ 'a' * 20000000 }}", "it writes 20000000 characters"),
    "recursion": (
        "{% macro f(n) %}{{ f(n + 1) }}{% endmacro %}{{ f(0) }}",
        "calls itself without end|ended with status",
    ),
    "no template": ("a\n\n{{", "line 3: TemplateSyntaxError: unexpected 'end of template'"),
    "its own error": (
        "{{ raise_exception('roles must alternate\x1b[2J') }}",
        r"line 1: TemplateError: roles must alternate\\x1b\[2J",
    ),
    "undefined": (
        "\n{{ messages[0].image.url }}",
        "line 2: UndefinedError: 'dict object' has no attribute 'image'",
    ),
    "the sandbox": ("{{ messages.__class__.__mro__ }}", "line 1: SecurityError"),
    "not a filter": (
        "{{ messages | nonesuch }}",
        "line 1: TemplateAssertionError: No filter named 'nonesuch'",
    ),
}


@pytest.mark.parametrize("case", HOSTILE)
def test_a_template_that_fails_or_never_ends_is_named(case, tmp_path):
    """The error names file and line of the template, and the next conversation is rendered."""
    template, words = HOSTILE[case]
    tok = tiny_tokenizer()
    tok.save(tmp_path)
    (tmp_path / "chat_template.jinja").write_text(template)
    with pytest.raises(ValueError, match=words) as error:
        HF(tmp_path).chat("2 + 2?")
    assert str(error.value).startswith(f"the chat template of {tmp_path / 'chat_template.jinja'}")
    assert tok.chat("2?") == tiny_tokenizer().chat("2?")


def test_a_template_that_is_no_text_is_named(tmp_path):
    tiny_tokenizer().save(tmp_path)
    (tmp_path / "chat_template.jinja").unlink()
    path = tmp_path / "tokenizer_config.json"
    for template in (3, {"tool_use": "x"}, [{"name": "a", "template": 3}]):
        path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": template}))
        with pytest.raises(ValueError, match=str(tmp_path)):
            HF(tmp_path).chat("2")


def test_values_that_are_no_json_are_named():
    tok = tiny_tokenizer()
    with pytest.raises(
        ValueError,
        match="the messages or the options of the chat template .* are not plain JSON values",
    ):
        tok.chat([{"role": "user", "content": b"bytes"}])  # pyright: ignore


def test_an_interrupt_between_question_and_answer_does_not_shift_the_answers(monkeypatch):
    """An interrupted request closes the process, whose next reply would belong to that request."""
    tok, template = tiny_tokenizer(), "{{ messages[0].content }}"
    tok.tokenizer.chat_template = template
    tok.chat("1")
    worker = chat_template._worker(os.getpid())
    first = worker._process

    class Interrupting:
        def readline(self):
            raise KeyboardInterrupt

        def close(self): ...

    reader = first.stdout
    first.stdout = Interrupting()
    with pytest.raises(KeyboardInterrupt):
        tok.chat("2")
    reader.close()
    assert first.poll() is not None
    assert tok.decode(tok.chat("3")) == "3"
    worker.close()
    worker.close()


def test_hf_without_a_template_takes_strings_only(hf):
    tok = tiny_tokenizer()
    tok.tokenizer.chat_template = None
    assert tok.chat("7") == hf.encode("7")
    with pytest.raises(ValueError, match="no chat template.*pass a plain string"):
        tok.chat([{"role": "user", "content": "7"}])


def test_a_hub_id_is_looked_up_and_without_a_network_told_how_to_get_it(tmp_path, monkeypatch):
    with pytest.raises(
        FileNotFoundError,
        match="the hub did not provide it.*hf download Qwen/Qwen3-0.6B --local-dir Qwen3-0.6B",
    ):
        HF("Qwen/Qwen3-0.6B")
    Chars("0123456789").save(tmp_path)
    asked = []
    monkeypatch.setattr(
        "huggingface_hub.snapshot_download",
        lambda *a, **kw: asked.append((a, kw["revision"])) or str(tmp_path),
    )
    assert HF("Qwen/Qwen3-0.6B@v1").encode("17") == HF(tmp_path).encode("17")
    assert asked == [(("Qwen/Qwen3-0.6B",), "v1")]


def test_missing_and_damaged_folders_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="nowhere.*is not a directory"):
        HF(tmp_path / "nowhere")
    with pytest.raises(FileNotFoundError, match="holds no tokenizer"):
        HF(tmp_path)
    (tmp_path / "tokenizer.json").write_text('{"version": "1.0", "model"')
    with pytest.raises(ValueError, match="cannot be read.*download or export it again"):
        HF(tmp_path)


def test_importing_and_loading_says_nothing(hf, tmp_path):
    hf.save(tmp_path)
    code = f"from jaxcredit.policy.tokenizer import HF; import sys; assert 'transformers' not in sys.modules; HF({str(tmp_path)!r}).chat('a')"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
