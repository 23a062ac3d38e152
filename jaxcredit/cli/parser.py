"""What can be typed after `jaxcredit`: its commands, their options, and the help that they print."""

import argparse
import difflib
from pathlib import Path

from jaxcredit.utils.ranges import COUNT, FROM_0, NOT_NEGATIVE, SEED, Range

EPILOG = """examples:
  jaxcredit train configs/quickstart.py                          train; everything it says lies in runs/quickstart
  jaxcredit train configs/quickstart.py --help                   what this config lets you change
  jaxcredit train configs/quickstart.py --credit grpo --run b    the same with another estimator
  jaxcredit train configs/quickstart.py --resume auto            go on where a run was stopped
  jaxcredit compare runs/quickstart runs/b                       a table and one plot
  jaxcredit eval runs/quickstart --k 8                           greedy accuracy, mean@k and pass@k with intervals
  jaxcredit sample runs/quickstart --n 4 --k 2                   what it answers
  jaxcredit export runs/quickstart exported                      a folder that transformers loads
  jaxcredit methods --granularity turn --needs none              list estimators and their signals
  jaxcredit methods tempo                                        one method in full
  jaxcredit check configs/my_estimator.py                        check an estimator of yours against the laws
  jaxcredit advise runs/quickstart                               recommend estimators for its answers
  jaxcredit report runs/quickstart                               the reporting checklist, filled in as far as it goes
  jaxcredit report runs/quickstart --numbers-only                its numbers, without running its config.py
  jaxcredit arena --quick                                        error of each estimator where the true credit is known
  jaxcredit arena configs/my_estimator.py                        an estimator of yours among them
  jaxcredit arena --html arena.html                              the same as a web page with plots
  jaxcredit claims                                               claims of papers: conditions under which each holds or reverses

A run is opened by executing its config.py: open only runs that you trust (compare, and report --numbers-only, execute nothing).
A config is a Python file with a function `experiment(...)`; its keywords are options. JAXCREDIT_TRACE=1 shows the trace of an error.
Compiled programs are cached in ~/.cache/jaxcredit/programs, at most 2 GiB (JAXCREDIT_CACHE=FOLDER sets another folder, =off disables).
"""

# Warning in the help of commands that open a run.
EXECUTES = (
    "Opening a run executes its config.py on this machine: open only runs that you trust. `jaxcredit compare` and "
    "`jaxcredit report --numbers-only` read a run's numbers without executing anything."
)


def parser():
    """The parser of everything, and the parser of each command by name."""
    everything = argparse.ArgumentParser(
        prog="jaxcredit",
        description="Credit assignment for reinforcement learning of language models: train, judge and compare estimators.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    sub = everything.add_subparsers(dest="command", metavar="COMMAND")
    commands = {}

    def command(
        name: str, text: str, *, config: bool = False, opens: bool = False
    ) -> argparse.ArgumentParser:
        # No abbreviations: a config's own option could be the beginning of one of ours.
        commands[name] = sub.add_parser(
            name,
            help=text,
            description=f"{text} {EXECUTES}" if opens else text,
            add_help=not config,
            allow_abbrev=False,
        )
        commands[name].set_defaults(takes_config=config)
        return commands[name]

    train = command(
        "train",
        "Train the experiment of a config file; every keyword of its function is an option.",
        config=True,
    )
    train.add_argument(
        "config",
        nargs="?",
        type=word,
        help="a Python file with a function `experiment(...) -> Experiment`",
    )
    train.add_argument(
        "--run",
        type=word,
        help="name of the run, without slashes: its folder is runs/NAME (default: the experiment's name)",
    )
    train.add_argument(
        "--runs",
        default="runs",
        type=word,
        help="parent of run folders: a folder, or gs://BUCKET/... (default: runs)",
    )
    train.add_argument(
        "--resume",
        choices=["no", "auto"],
        default="no",
        help="auto: continue from the newest usable checkpoint, or start if there is none; seed, batch and architecture must not change",
    )
    train.add_argument(
        "--overwrite",
        action="store_true",
        help="delete a run of this name first; refuse a folder that is not a run",
    )
    train.add_argument(
        "--profile",
        metavar="FIRST:LAST",
        type=word,
        help="trace these steps (10:13, both included) into RUN/profile",
    )
    credit_option(train)
    train.add_argument(
        "--processes",
        type=number(COUNT),
        metavar="N",
        help="number of processes of the job (jax.distributed)",
    )
    train.add_argument(
        "--process", type=number(FROM_0), metavar="N", help="index of this process, from 0"
    )
    train.add_argument(
        "--coordinator", type=address, metavar="ADDRESS", help="ADDRESS:PORT of process 0"
    )

    plan = command(
        "plan",
        "Compile the real programs from shapes alone and say whether they fit; check data and tokenizer.",
        config=True,
    )
    plan.add_argument("config", nargs="?", type=word, help="a config file")
    plan.add_argument(
        "--topology",
        type=word,
        help="TPUs that need not be here: v5e:16x16, v5p:4x4x8; 2xv5e:16x16 is two slices (needs pip install 'jaxcredit[tpu]')",
    )
    plan.add_argument(
        "--largest",
        action="store_true",
        help="look for the largest batch that fits: three compilations a program more",
    )
    credit_option(plan)

    ev = command(
        "eval",
        "Greedy accuracy, mean@k and pass@k of a run on its held-out problems, with intervals.",
        opens=True,
    )
    ev.add_argument(
        "run", type=word, help="a run folder, or a config: its weights before any training"
    )
    ev.add_argument(
        "--k", type=number(COUNT), default=8, help="answers to each problem (default 8)"
    )
    ev.add_argument(
        "--prompts",
        type=number(COUNT),
        help="how many held-out problems (default: as in the config)",
    )
    ev.add_argument(
        "--step", type=number(FROM_0), help="the checkpoint of this step (default: the newest)"
    )
    ev.add_argument(
        "--seed", type=number(SEED), default=0, help="of the random numbers (default 0)"
    )
    ev.add_argument("--json", action="store_true", help="print JSON instead of a table")

    sample = command(
        "sample", "Answers of a run to its held-out problems, or to a prompt of yours.", opens=True
    )
    sample.add_argument(
        "run", type=word, help="a run folder, or a config: its weights before any training"
    )
    sample.add_argument(
        "--prompt", type=word, help="your own prompt (default: the first held-out problems)"
    )
    sample.add_argument(
        "--n", type=number(COUNT), default=4, help="held-out problems to show (default 4)"
    )
    sample.add_argument("--k", type=number(COUNT), default=4, help="answers to each (default 4)")
    sample.add_argument(
        "--temperature", type=number(NOT_NEGATIVE), help="default: as in the config; 0 is greedy"
    )
    sample.add_argument(
        "--step", type=number(FROM_0), help="the checkpoint of this step (default: the newest)"
    )
    sample.add_argument(
        "--seed", type=number(SEED), default=0, help="of the random numbers (default 0)"
    )

    export = command(
        "export",
        "Write a run's policy as a Hugging Face folder that transformers loads.",
        opens=True,
    )
    export.add_argument("run", type=word, help="a run folder")
    export.add_argument(
        "folder", type=new_folder, help="where to write it: a new or an empty folder"
    )
    export.add_argument(
        "--step", type=number(FROM_0), help="the checkpoint of this step (default: the newest)"
    )
    export.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])

    compare = command("compare", "A table and one plot of several runs.")
    compare.add_argument("runs", nargs="+", type=word, help="run folders")
    compare.add_argument(
        "--out",
        default="compare.png",
        type=written(".png", ".pdf", ".svg"),
        help="the plot (default compare.png)",
    )

    methods = command(
        "methods",
        "The catalogue: every estimator, what it needs, and what of the field is not here.",
    )
    methods.add_argument(
        "name",
        nargs="?",
        type=word,
        help="one method in full: formula, what it needs and how to provide that (tempo)",
    )
    methods.add_argument(
        "--granularity", type=word, help="token, segment, step, turn, trajectory or agent"
    )
    methods.add_argument(
        "--needs",
        type=word,
        help="a signal it needs (state); none: nothing but the group's own answers",
    )
    methods.add_argument(
        "--family", type=word, help="baselines, critics, trees, tokens, steps, turns or agents"
    )
    methods.add_argument(
        "--fidelity", type=word, help="paper, code, or ours where sources are silent"
    )
    methods.add_argument("--here", action="store_true", help="leave out what is not implemented")
    methods.add_argument("--json", action="store_true", help="print an array, one object a method")

    arena = command(
        "arena",
        "Hold estimators against exact credit: every one in every family of worlds, a number or a reason.",
    )
    arena.add_argument(
        "file",
        nargs="?",
        type=word,
        help="an estimator of yours, FILE.py[:function], among those of the quick list",
    )
    arena.add_argument(
        "--family",
        action="append",
        default=[],
        type=word,
        help="only this family (KeyBranch); may be given again",
    )
    arena.add_argument(
        "--estimator",
        action="append",
        default=[],
        type=word,
        help="only this one: a name, or FILE.py[:function]; may be given again",
    )
    arena.add_argument(
        "--quick", action="store_true", help="the 81 cells in which something is to be seen"
    )
    arena.add_argument(
        "--prompts",
        type=number(Range(True, 2)),
        default=256,
        help="groups in each family (default 256)",
    )
    arena.add_argument(
        "--group", type=number(Range(True, 2)), default=16, help="answers in each (default 16)"
    )
    arena.add_argument(
        "--seed", type=number(SEED), default=0, help="of the random numbers (default 0)"
    )
    arena.add_argument(
        "--json",
        action="store_true",
        help="print an array, one object a cell, all numbers with 95 %% intervals",
    )
    arena.add_argument(
        "--html",
        metavar="FILE",
        type=written(".html", ".htm"),
        help="write a report: the matrix, and each family's sweep of the knob that flips the order",
    )

    claims = command(
        "claims",
        "Headlines of papers held against small worlds: where each holds, and where it reverses.",
    )
    claims.add_argument("--only", type=word, help="claims about this family (Strata)")
    claims.add_argument(
        "--seeds", type=number(Range(True, 3)), default=8, help="seeds of the learners (default 8)"
    )
    claims.add_argument("--markdown", action="store_true", help="print Markdown instead of a table")

    advise = command(
        "advise",
        "Measure a run's rollouts, or your own, and say which estimators suit them, with reasons and numbers.",
        opens=True,
    )
    advise.add_argument(
        "source",
        type=word,
        help="a run folder (its newest checkpoint is asked), or a .npz of rollouts (see --keys)",
        nargs="?",
    )
    advise.add_argument(
        "--prompts",
        type=number(COUNT),
        default=64,
        help="training problems a run is asked, at least (default 64)",
    )
    advise.add_argument(
        "--step", type=number(FROM_0), help="the checkpoint of this step (default: the newest)"
    )
    advise.add_argument(
        "--seed", type=number(SEED), default=0, help="of the random numbers (default 0)"
    )
    advise.add_argument(
        "--save", type=written(".npz"), help="write the rollouts sampled from a run to this .npz"
    )
    advise.add_argument(
        "--keys", action="store_true", help="say which arrays a .npz of rollouts holds"
    )
    advise.add_argument("--json", action="store_true", help="print JSON instead of a table")

    report = command(
        "report",
        "Write the reporting checklist of a run to RUN/report.md: filled in where the run tells, else asked.",
        opens=True,
    )
    report.add_argument("run", type=word, help="a run folder")
    report.add_argument(
        "--beside",
        nargs="+",
        default=[],
        type=word,
        help="other runs: more seeds of the same config, and baselines",
    )
    report.add_argument(
        "--prompts",
        type=number(FROM_0),
        default=64,
        help="training problems to sample afresh for credit and lengths; 0: none",
    )
    report.add_argument(
        "--step", type=number(FROM_0), help="the checkpoint of this step (default: the newest)"
    )
    report.add_argument(
        "--seed", type=number(SEED), default=0, help="of the random numbers (default 0)"
    )

    report.add_argument(
        "--numbers-only",
        action="store_true",
        help="print metrics and options; nothing of the run is executed or written",
    )

    models = command(
        "models",
        "The published models this decoder computes, their parameters counted from the shapes.",
    )
    models.add_argument(
        "words",
        nargs="*",
        type=word,
        help="only those whose name or hub id holds every word (qwen3 8b)",
    )
    models.add_argument("--json", action="store_true", help="print an array, one object a model")

    check = command("check", "Hold an estimator against the laws that every estimator obeys.")
    check.add_argument("credit", type=word, help="a name (tempo), or FILE.py[:function]")
    return everything, commands


def known(rest: list[str], parser: argparse.ArgumentParser, *, partly: bool) -> None:
    """Raise a ValueError for unknown options and arguments. With `partly`, only for misspelt ones: others may be the config's."""
    ours = [name for name in parser._option_string_actions if name.startswith("--")]
    for word in rest:
        name = word.partition("=")[0]
        near = difflib.get_close_matches(name, ours, 1, 0.85) if word.startswith("--") else []
        if near and name != near[0]:
            raise ValueError(f"unknown option {name}; did you mean {near[0]}?")
        if not partly:
            what = "option" if word.startswith("-") else "argument"
            raise ValueError(
                f"unknown {what} {word}: {parser.prog} has the options {', '.join(ours)}"
            )


def number(allowed: Range):
    """Argparse type: a number in a range."""

    def read(text: str):
        try:
            x = int(text) if allowed.whole else float(text)
        except ValueError:
            x = None
        if x is None or not allowed.holds(x):
            raise argparse.ArgumentTypeError(f"{text!r} is not {allowed}")
        return x

    return read


def word(text: str) -> str:
    """Argparse type: a string that is not blank."""
    if not text.strip():
        raise argparse.ArgumentTypeError(
            f"{text!r} is empty: leave the option out, or give it a value"
        )
    return text


def written(*endings: str):
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
            f"{text} is {'not empty' if folder.is_dir() else 'a file'}: name a folder that is new or empty"
        )
    return text


def _local(text: str) -> str:
    if "://" in word(text):
        raise argparse.ArgumentTypeError(
            f"{text} is not a local path: write to a local one and copy the result"
        )
    return text


def address(text: str) -> str:
    """Argparse type of `--coordinator`: ADDRESS:PORT."""
    host, _, port = text.rpartition(":")
    if not host or not port.isascii() or not port.isdigit() or not 0 < int(port) < 2**16:
        raise argparse.ArgumentTypeError(f"{text!r} is not ADDRESS:PORT, such as 10.0.0.1:8482")
    return text


def credit_option(parser):
    parser.add_argument(
        "--credit",
        type=word,
        help="replace the estimator: a name in jaxcredit.credit (grpo), or FILE.py[:function]",
    )
