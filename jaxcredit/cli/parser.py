"""Parts of the commands' parsers: help formatting, shared options, and argparse types.

Each command is declared and run in one file of this package: see `command`.
"""

import argparse
import difflib
import textwrap
from collections.abc import Callable
from pathlib import Path

from jaxcredit.utils.ranges import COUNT, FROM_0, SEED, Range

# Warning in the help of commands that open a run.
OPENS_RUN = (
    "Opening a run executes its config.py on this machine: open only runs that you trust. "
    "`jaxcredit compare` and `jaxcredit report --numbers-only` read a run's numbers without "
    "executing anything."
)
CONFIG = "CONFIG"  # metavar of a config file
# Options that were renamed, by their old name.
RENAMED = {
    "--beside": "--compare-to",
    "--here": "--implemented",
    "--keys": "--describe-format",
    "--only": "--family",
}


class HelpFormatter(argparse.HelpFormatter):
    """Help that wraps paragraphs at the terminal's width and keeps indented lines (examples).

    Words with hyphens, such as names of options, are not split.
    """

    def _fill_text(self, text: str, width: int, indent: str) -> str:
        return "\n".join(
            line if line.startswith(" ") else textwrap.fill(line, width, break_on_hyphens=False)
            for line in text.splitlines()
        )

    def _split_lines(self, text: str, width: int) -> list[str]:
        return textwrap.wrap(" ".join(text.split()), width, break_on_hyphens=False)

    def _format_args(self, action: argparse.Action, default_metavar: str) -> str:
        # Without brackets: only the help can be had without a config.
        return CONFIG if action.metavar == CONFIG else super()._format_args(action, default_metavar)


def command(
    subparsers,
    name: str,
    summary: str,
    function: Callable,
    *,
    details: str = "",
    examples: str = "",
    takes_config: bool = False,
) -> argparse.ArgumentParser:
    """Add a command to the command line.

    Args:
        subparsers: result of `ArgumentParser.add_subparsers`.
        name: the command's name.
        summary: one sentence for the list of commands and the head of the command's help.
        function: called as `function(args, rest)` with the parsed and the unknown arguments.
        details: further paragraphs of the command's help.
        examples: command lines with explanations, at most 76 characters wide.
        takes_config: unknown options belong to the function of a config file, which the command
            loads. Such a command has the argument `help` and prints its help itself.

    Returns:
        The command's parser, to which the caller adds options.
    """
    parser = subparsers.add_parser(
        name,
        help=summary,
        description=f"{summary}\n\n{details}".strip(),
        epilog=f"examples:\n{textwrap.indent(textwrap.dedent(examples).strip(), '  ')}"
        if examples
        else None,
        formatter_class=HelpFormatter,
        add_help=not takes_config,
        allow_abbrev=False,  # an option of the config could begin like one of the command's
    )
    if takes_config:  # argparse's own action would exit before the config is loaded
        parser.add_argument(
            "-h",
            "--help",
            action="store_true",
            help="show this help message and exit; after a config, its options too",
        )
    parser.set_defaults(function=function, takes_config=takes_config, parser=parser)
    return parser


def check_unknown(rest: list[str], parser: argparse.ArgumentParser, *, takes_config: bool) -> None:
    """Check the arguments that a command's parser does not know.

    Args:
        rest: the unknown arguments.
        parser: the command's parser.
        takes_config: unknown options belong to the config. Only renamed and misspelt options of the
            command are errors.

    Raises:
        ValueError: an argument is unknown. The message names the option that it resembles, or all
            options.
    """
    known = [name for name in parser._option_string_actions if name.startswith("--")]
    for argument in rest:
        name = argument.partition("=")[0]
        if RENAMED.get(name) in known:
            raise ValueError(f"unknown option {name}: it is called {RENAMED[name]} now")
        is_option = argument.startswith("--")
        similar = difflib.get_close_matches(name, known, 1, 0.85) if is_option else []
        if similar and name != similar[0]:
            raise ValueError(f"unknown option {name}; did you mean {similar[0]}?")
        if not takes_config:
            kind = "option" if argument.startswith("-") else "argument"
            raise ValueError(
                f"unknown {kind} {argument}: {parser.prog} has the options {', '.join(known)}"
            )


# Options that several commands share


def add_config(parser: argparse.ArgumentParser, text: str) -> None:
    """Add the argument `config`, which is None if only the command's help is wanted."""
    parser.add_argument("config", nargs="?", type=nonblank, metavar=CONFIG, help=text)


def add_credit(parser: argparse.ArgumentParser) -> None:
    """Add the option --credit."""
    parser.add_argument(
        "--credit",
        type=nonblank,
        metavar="NAME",
        help="estimator that replaces the one of the config: a name in jaxcredit.credit (grpo), "
        "or FILE.py[:function]",
    )


def add_run(parser: argparse.ArgumentParser, *, or_config: bool = False) -> None:
    """Add the argument `run`: a run folder, or with `or_config` also a config file."""
    parser.add_argument(
        "run",
        type=nonblank,
        help="a run folder, or a config file: the weights before training"
        if or_config
        else "a run folder",
    )


def add_step(parser: argparse.ArgumentParser) -> None:
    """Add the option --step: which checkpoint of a run."""
    parser.add_argument(
        "--step",
        type=number(FROM_0),
        metavar="N",
        help="training step of the checkpoint to read (default: the newest checkpoint)",
    )


def add_seed(parser: argparse.ArgumentParser) -> None:
    """Add the option --seed."""
    parser.add_argument(
        "--seed",
        type=number(SEED),
        default=0,
        metavar="N",
        help="seed of the random numbers (default 0)",
    )


def add_prompts(parser: argparse.ArgumentParser, text: str, *, allowed: Range = COUNT) -> None:
    """Add the option --prompts of commands that sample 64 training problems by default."""
    parser.add_argument("--prompts", type=number(allowed), default=64, metavar="N", help=text)


def add_json(parser: argparse.ArgumentParser, text: str = "one object") -> None:
    """Add the option --json."""
    parser.add_argument(
        "--json", action="store_true", help=f"print JSON ({text}) instead of a table"
    )


# Argparse types


def number(allowed: Range):
    """Argparse type: a number in a range."""

    def read(text: str):
        try:
            value = int(text) if allowed.whole else float(text)
        except ValueError:
            value = None
        if value is None or not allowed.holds(value):
            raise argparse.ArgumentTypeError(f"{text!r} is not {allowed}")
        return value

    return read


def nonblank(text: str) -> str:
    """Argparse type: a string that is not blank."""
    if not text.strip():
        raise argparse.ArgumentTypeError(
            f"{text!r} is empty: leave the option out, or give it a value"
        )
    return text


def output_file(*endings: str):
    """Argparse type: path of an output file with one of these suffixes, in a folder that exists."""

    def read(text: str) -> str:
        file = Path(_local(text))
        if file.is_dir():
            raise argparse.ArgumentTypeError(
                f"{text} is a folder: name a file in it, such as {file / ('name' + endings[0])}"
            )
        if file.suffix.lower() not in endings:
            raise argparse.ArgumentTypeError(f"{text} must end in {' or '.join(endings)}")
        if not file.parent.is_dir():
            raise argparse.ArgumentTypeError(f"{text}: there is no folder {file.parent}")
        return text

    return read


def new_folder(text: str) -> str:
    """Argparse type: path of a new or empty folder."""
    folder = Path(_local(text))
    if folder.exists() and not (folder.is_dir() and not any(folder.iterdir())):
        raise argparse.ArgumentTypeError(
            f"{text} is {'not empty' if folder.is_dir() else 'a file'}: "
            "name a folder that is new or empty"
        )
    return text


def address(text: str) -> str:
    """Argparse type: ADDRESS:PORT of a host."""
    host, _, port = text.rpartition(":")
    if not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 2**16:
        raise argparse.ArgumentTypeError(f"{text!r} is not ADDRESS:PORT, such as 10.0.0.1:8482")
    return text


def _local(text: str) -> str:
    """Path of a local file, not an address such as gs://BUCKET/FILE."""
    if "://" in nonblank(text):
        raise argparse.ArgumentTypeError(
            f"{text} is not a local path: write to a local one and copy the result"
        )
    return text
