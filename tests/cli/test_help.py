"""Help of every command: its width, its examples, and the errors for options that were renamed."""

import re
import shlex

import pytest

from jaxcredit.cli.main import build_parser, main
from jaxcredit.cli.parser import RENAMED

PARSER, COMMANDS = build_parser()


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_help_fits_eighty_columns(name, monkeypatch):
    monkeypatch.setenv("COLUMNS", "80")
    text = (COMMANDS[name] if name else PARSER).format_help()
    assert [line for line in text.splitlines() if len(line) > 79] == []


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_help_splits_no_word_at_a_hyphen(name, monkeypatch):
    parser = COMMANDS[name] if name else PARSER
    for columns in range(60, 100):
        monkeypatch.setenv("COLUMNS", str(columns))
        lines = parser.format_help().splitlines()
        assert [line for line in lines if re.search(r"\S-$", line)] == [], columns


@pytest.mark.parametrize("name", ["train", "plan"])
def test_usage_of_a_command_with_a_config(name):
    usage = COMMANDS[name].format_usage()
    assert "[-h]" in usage and usage.split()[-1] == "CONFIG"
    assert re.search(r"^  -h, --help  +show this help", COMMANDS[name].format_help(), re.M)


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_examples_in_help_are_commands(name):
    epilog = (COMMANDS[name] if name else PARSER).epilog
    examples = re.findall(r"^  (jaxcredit .*)$", epilog, re.M)
    assert examples
    for example in examples:
        args, rest = PARSER.parse_known_args(shlex.split(example)[1:])
        assert args.command == (name or args.command)
        assert not rest or args.takes_config, example


@pytest.mark.parametrize("old", RENAMED)
def test_an_old_spelling_is_told_the_new_one(old, capsys):
    owners = [
        name for name, parser in COMMANDS.items() if RENAMED[old] in parser._option_string_actions
    ]
    assert owners and not any(old in parser._option_string_actions for parser in COMMANDS.values())
    for name in owners:
        with pytest.raises(SystemExit):
            main([name, old, "runs/a"])
        message = capsys.readouterr().err
        assert message == f"ValueError: unknown option {old}: it is called {RENAMED[old]} now\n"
