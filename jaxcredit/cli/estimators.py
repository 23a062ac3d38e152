"""Commands about estimators: `methods`, `check`, `arena` and `claims`."""

import json
import shlex
import sys

from jaxcredit.cli import loading
from jaxcredit.cli.parser import add_json, add_seed, command, nonblank, number, output_file
from jaxcredit.utils import files
from jaxcredit.utils.ranges import Range


def add_parsers(subparsers) -> None:
    """Add the commands of this file."""
    _add_methods(subparsers)
    _add_check(subparsers)
    _add_arena(subparsers)
    _add_claims(subparsers)


def _add_methods(subparsers) -> None:
    parser = command(
        subparsers,
        "methods",
        "List estimators, or show one: formula, paper, and the signals it needs.",
        methods,
        details="The list also has methods of the literature that are not implemented.",
        examples="""
            jaxcredit methods tempo
                one method in full
            jaxcredit methods --granularity turn --needs none --implemented
                estimators of turn credit that need rewards alone
        """,
    )
    parser.add_argument(
        "name", nargs="?", type=nonblank, help="a method's name or arXiv number, to show it in full"
    )
    parser.add_argument(
        "--granularity",
        type=nonblank,
        help="only methods with one advantage for each token, segment, step, turn, trajectory or "
        "agent",
    )
    parser.add_argument(
        "--needs",
        type=nonblank,
        metavar="SIGNAL",
        help="only methods that need this signal (state, value, ...); none: only those that need "
        "nothing but rewards",
    )
    parser.add_argument(
        "--family",
        type=nonblank,
        help="only this family: baselines, critics, trees, tokens, steps, turns or agents",
    )
    parser.add_argument(
        "--fidelity",
        type=nonblank,
        help="only formulas of this origin: paper, code (of the authors), or ours",
    )
    parser.add_argument(
        "--implemented", action="store_true", help="leave out methods that are not implemented"
    )
    add_json(parser, "an array, one object for each method")


def _add_check(subparsers) -> None:
    parser = command(
        subparsers,
        "check",
        "Check an estimator against the laws that every estimator obeys.",
        check,
        details="A law is a property such as independence of padding or of the order of answers. "
        "The exit code is 1 if a law is broken.",
        examples="""
            jaxcredit check tempo
            jaxcredit check configs/my_estimator.py
        """,
    )
    parser.add_argument(
        "credit", type=nonblank, help="a name in jaxcredit.credit (tempo), or FILE.py[:function]"
    )


def _add_arena(subparsers) -> None:
    parser = command(
        subparsers,
        "arena",
        "Measure estimators in small worlds whose true credit is known.",
        arena,
        details="A table is printed: for each estimator and each family of worlds the error with "
        "a 95 % confidence interval, or the reason why the estimator does not apply.",
        examples="""
            jaxcredit arena --quick
                a subset of the cells: those in which estimators differ
            jaxcredit arena configs/my_estimator.py
                your own estimator among those of --quick
            jaxcredit arena --estimator tempo --family KeyBranch
                one estimator in one family
            jaxcredit arena --html arena.html
                all cells, as a web page with plots
        """,
    )
    parser.add_argument(
        "file",
        nargs="?",
        type=nonblank,
        help="your own estimator, FILE.py[:function], to measure beside those of --quick",
    )
    parser.add_argument(
        "--family",
        action="append",
        default=[],
        type=nonblank,
        help="only this family of worlds, such as KeyBranch; can be repeated",
    )
    parser.add_argument(
        "--estimator",
        action="append",
        default=[],
        type=nonblank,
        metavar="NAME",
        help="only this estimator: a name, or FILE.py[:function]; can be repeated",
    )
    parser.add_argument(
        "--quick", action="store_true", help="only the cells in which estimators differ most"
    )
    parser.add_argument(
        "--prompts",
        type=number(Range(True, 2)),
        default=256,
        metavar="N",
        help="number of groups in each family (default 256)",
    )
    parser.add_argument(
        "--group",
        type=number(Range(True, 2)),
        default=16,
        metavar="N",
        help="number of answers in each group (default 16)",
    )
    add_seed(parser)
    add_json(parser, "an array, one object for each cell")
    parser.add_argument(
        "--html",
        metavar="FILE",
        type=output_file(".html", ".htm"),
        help="write a web page: the table, and for each family a plot over the parameter that "
        "changes the order of the estimators",
    )


def _add_claims(subparsers) -> None:
    parser = command(
        subparsers,
        "claims",
        "Test claims of papers in small worlds: where each holds and where it fails.",
        claims,
        details="For each claim, learners are trained with the estimators that it compares, over a "
        "range of worlds.",
        examples="""
            jaxcredit claims
            jaxcredit claims --family Strata --seeds 3
                claims about one family of worlds, with fewer seeds
        """,
    )
    parser.add_argument(
        "--family",
        type=nonblank,
        help="only claims about this family of worlds, such as Strata",
    )
    parser.add_argument(
        "--seeds",
        type=number(Range(True, 3)),
        default=8,
        metavar="N",
        help="number of learners with different seeds for each setting (default 8)",
    )
    parser.add_argument("--markdown", action="store_true", help="print Markdown")


def methods(args, _) -> None:
    """Run `jaxcredit methods`."""
    from rich.console import Console

    from jaxcredit.credit import catalogue, method_pages

    rows = catalogue.select(
        catalogue.methods(),
        granularity=args.granularity,
        needs=args.needs,
        family=args.family,
        fidelity=args.fidelity,
        implemented=args.implemented,
    )
    if args.name:
        rows = catalogue.by_name(rows, args.name)
    if args.json:
        print(json.dumps(rows, indent=1, ensure_ascii=False))
    elif args.name:
        print("\n\n\n".join(method_pages.page(row) for row in rows))
    else:
        Console().print(method_pages.table(rows))


def check(args, _) -> None:
    """Run `jaxcredit check`."""
    from rich.console import Console
    from rich.text import Text

    from jaxcredit.credit import laws
    from jaxcredit.utils import progress
    from jaxcredit.utils.tables import Column, Sheet

    with progress.shown("check"):
        results = laws.check(loading.estimator(args.credit))
    words = {
        True: Text("holds", style="green"),
        False: Text("broken", style="red"),
        None: Text("skipped"),
    }
    table = Sheet("law", "", Column("detail", wraps=True))
    for result in results:
        table.add_row(result.law, words[result.passed], str(result.detail or ""))
    Console().print(table)
    sys.exit(1 if any(result.passed is False for result in results) else 0)


def arena(args, _) -> None:
    """Run `jaxcredit arena`."""
    from jaxcredit.arena import matrix
    from jaxcredit.train.runs.console import wide_console
    from jaxcredit.utils import progress

    names = [*args.estimator, *([args.file] if args.file else [])]
    own = {name: loading.estimator(name) for name in names}
    settings = {"prompts": args.prompts, "group": args.group, "seed": args.seed}
    with progress.shown("arena") as status:
        cells = matrix.run_selected(
            args.family, own, quick=args.quick or bool(args.file), tell=status, **settings
        )
    if args.html:
        from jaxcredit.arena import html, sweeps

        families = {cell.family for cell in cells}
        chosen = [sweep for sweep in sweeps.SWEEPS if sweep.family.__name__ in families]
        with progress.shown("arena, sweeps") as status:
            curves = sweeps.run(chosen, seed=args.seed, tell=status)
        made = "jaxcredit " + shlex.join(args.arguments)
        files.write_atomic(args.html, html.page(cells, curves, made=made))
    if args.json:
        print(json.dumps(matrix.as_json(cells)))
    else:
        wide_console().print(matrix.table(cells))


def claims(args, _) -> None:
    """Run `jaxcredit claims`."""
    from rich.console import Console

    from jaxcredit.arena import claims
    from jaxcredit.utils import progress

    families = dict.fromkeys(e.sweep.family.__name__ for e in claims.CLAIM_TESTS)
    if args.family and args.family not in families:
        raise ValueError(
            f"--family {args.family}: no claim about this family; families with claims: "
            f"{', '.join(families)}"
        )
    chosen = [e for e in claims.CLAIM_TESTS if args.family in (None, e.sweep.family.__name__)]
    with progress.shown("claims") as status:
        results = claims.run(chosen, seeds=args.seeds, tell=status)
    if args.markdown:
        print(claims.markdown(results), end="")
    else:
        Console().print(claims.table(results))
