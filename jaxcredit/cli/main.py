"""Entry point of the command line: parses the arguments, runs a command, and reports errors."""

import argparse
import sys

from jaxcredit.cli import compilation_cache, errors, estimators, models, runs, training
from jaxcredit.cli.parser import HelpFormatter, check_unknown
from jaxcredit.utils import terminal

# Every file with commands has a function `add_parsers(subparsers)`.
COMMAND_FILES = (training, runs, estimators, models)

EXAMPLES = """examples:
  jaxcredit train configs/quickstart.py
      train; metrics, plots and checkpoints are in runs/quickstart
  jaxcredit train configs/quickstart.py --help
      the options of this config
  jaxcredit train configs/quickstart.py --credit grpo --run grpo
      train with another estimator, in runs/grpo
  jaxcredit compare runs/quickstart runs/grpo
      a table and a plot of both runs
  jaxcredit eval runs/quickstart
      accuracy, mean@k and pass@k of the newest checkpoint
  jaxcredit methods tempo
      an estimator's formula and the signals it needs

`jaxcredit COMMAND --help` shows a command's options and more examples.

A config is a Python file with a function `experiment(...)`, whose arguments are \
options. Opening a run executes its config.py: open only runs that you trust.

environment variables:
  JAXCREDIT_TRACE=1        show the Python traceback of an error
  JAXCREDIT_CACHE=FOLDER   folder of compiled programs (off: no cache);
                           default ~/.cache/jaxcredit/programs, at most 2 GiB
"""


def main(argv: list[str] | None = None) -> None:
    """Run `jaxcredit COMMAND ...`.

    An error is printed as one message with its cause and a fix, without a traceback, and the
    process exits with 1. With JAXCREDIT_TRACE=1 it is raised instead.

    Args:
        argv: the arguments; None: those of the process.
    """
    terminal.open_closed_streams()
    errors.escape_unencodable(sys.stdout, sys.stderr)
    arguments = list(sys.argv[1:] if argv is None else argv)
    try:
        with errors.plain_warnings():
            _command(arguments)
        sys.stdout.flush()
    except KeyboardInterrupt:
        sys.exit("interrupted; continue from the last checkpoint with --resume auto")
    except Exception as error:
        if errors.traced():
            raise
        if not (isinstance(error, BrokenPipeError) and errors.reader_gone(sys.stdout)):
            errors.show(error, arguments)
        terminal.discard_unwritable(sys.stdout)
        sys.exit(1)


def build_parser() -> tuple[argparse.ArgumentParser, dict[str, argparse.ArgumentParser]]:
    """The parser of the whole command line, and the parser of each command by name."""
    parser = argparse.ArgumentParser(
        prog="jaxcredit",
        description="Credit assignment for reinforcement learning of language models: "
        "train, evaluate and compare estimators.",
        epilog=EXAMPLES,
        formatter_class=HelpFormatter,
    )
    subparsers = parser.add_subparsers(dest="command", metavar="COMMAND", title="commands")
    for file in COMMAND_FILES:
        file.add_parsers(subparsers)
    return parser, subparsers.choices


def _command(arguments: list[str]) -> None:
    """Parse the arguments and run the command."""
    parser, commands = build_parser()
    args, rest = parser.parse_known_args(arguments)
    args.arguments = arguments
    if args.command is None:
        if rest:
            raise ValueError(
                f"unknown option {rest[0]}: a command comes first ({', '.join(sorted(commands))})"
            )
        parser.print_help()
        return
    check_unknown(rest, args.parser, takes_config=args.takes_config)
    compilation_cache.begin()
    args.function(args, rest)
