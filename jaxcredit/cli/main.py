"""The command line: what a person types. Everything it does is a function that a notebook can call."""

import contextlib
import dataclasses
import json
import shlex
import sys
from pathlib import Path

from jaxcredit.cli import compilation_cache, errors
from jaxcredit.cli import loading as find
from jaxcredit.cli import parser as options
from jaxcredit.train.runs import source as run_source
from jaxcredit.train.runs.masking import mask_arguments
from jaxcredit.utils import files, plain_text, terminal


def main(argv: list[str] | None = None) -> None:
    """`jaxcredit COMMAND ...`; an error that names its cause and mend is shown without a trace (JAXCREDIT_TRACE=1 shows it)."""
    terminal.open_closed_streams()
    errors.escape_unencodable(sys.stdout, sys.stderr)
    typed = list(sys.argv[1:] if argv is None else argv)
    try:
        with errors.plain_warnings():
            _command(typed)
        sys.stdout.flush()
    except KeyboardInterrupt:
        sys.exit("stopped; what was saved can be resumed with --resume auto")
    except Exception as error:
        if errors.traced():
            raise
        if not (isinstance(error, BrokenPipeError) and errors.reader_gone(sys.stdout)):
            errors.show(error, typed)
        terminal.discard_unwritable(sys.stdout)
        sys.exit(1)


def _command(typed: list[str]) -> None:
    parser, commands = options.parser()
    args, rest = parser.parse_known_args(typed)
    args.typed = typed
    if args.command is None:
        if rest:
            raise ValueError(
                f"unknown option {rest[0]}: a command comes first ({', '.join(COMMANDS)})"
            )
        parser.print_help()
        return
    options.known(rest, commands[args.command], partly=args.takes_config)
    compilation_cache.begin()
    COMMANDS[args.command](args, rest)


def _train(args, rest):
    if args.config is None or args.config in ("-h", "--help"):
        options.parser()[1]["train"].print_help()
        return
    if (args.process or 0) >= (args.processes or 1) or args.coordinator and not args.processes:
        raise ValueError(
            f"--processes {args.processes}, --process {args.process}, --coordinator {args.coordinator}: --processes says how many "
            "processes the job has, --process is the index of this one, from 0"
        )
    if args.processes and args.processes > 1:
        _join(args)
    _help("train", args, rest)
    exp, made = find.experiment(args.config, rest, args.credit)
    exp.check()
    from jaxcredit.train.run import Stopped, run
    from jaxcredit.train.runs.folder import run_address
    from jaxcredit.train.runs.profiling import step_range

    profile = step_range(args.profile) if args.profile else None
    folder = run_address(args.runs, exp.name if args.run is None else args.run)
    if args.overwrite and args.resume == "auto":
        raise ValueError(
            "--overwrite deletes the run that --resume auto would continue: give only one of them"
        )
    with terminal.lossy():  # a closed or full terminal does not end the run
        try:
            run(
                exp,
                folder,
                resume=args.resume == "auto",
                overwrite=args.overwrite,
                source=made,
                profile=profile,
            )
        except Stopped as stopped:
            if not args.process:  # of several processes the first
                _say_stopped(stopped, args, folder)
            raise


def _say_stopped(stopped, args, folder):
    typed = [word for word in args.typed if word != "--overwrite"]
    again = shlex.join(
        [
            "jaxcredit",
            *mask_arguments(typed),
            *([] if args.resume == "auto" else ["--resume", "auto"]),
        ]
    )
    print(
        plain_text.visible(f"stopped as asked: {stopped.kept} in {folder}; go on with\n  {again}"),
        file=sys.stderr,
        flush=True,
    )


def _help(command, args, rest):
    """Print the command's own options if --help follows a config. Those of the config are printed when it is loaded."""
    if {"-h", "--help"} & set(rest):
        options.parser()[1][command].print_help()
        print(f"\n\n{args.config}, and its options:\n")


def _join(args):
    """Become one process of a job. All devices meet now: CPU collectives that first meet after long compilations give up waiting."""
    import jax
    import numpy as np

    from jaxcredit.parallel import mesh

    jax.distributed.initialize(args.coordinator, args.processes, args.process)
    everywhere = mesh.batch(jax.device_count(), {"batch": "all"}, mesh.make({"all": -1}))
    ones = jax.make_array_from_callback(
        (jax.device_count(),), everywhere, lambda part: np.ones(jax.device_count())[part]
    )
    jax.block_until_ready(jax.jit(lambda x: x.sum())(ones))


def _plan(args, rest):
    if args.config is None or args.config in ("-h", "--help"):
        options.parser()[1]["plan"].print_help()
        return
    _help("plan", args, rest)
    from jaxcredit.parallel import mesh
    from jaxcredit.train.planning import topology

    on = topology.tpu_topology(args.topology) if args.topology else None
    with (
        mesh.planned(on.devices) if on else contextlib.nullcontext()
    ):  # a config may ask how many devices there are
        exp, _ = find.experiment(args.config, rest, args.credit, prog="jaxcredit plan")
        from jaxcredit.train.planning.plan import plan

        sys.exit(0 if plan(exp.check(), on=on, largest=args.largest) else 1)


def _eval(args, _):
    from rich.console import Console

    from jaxcredit.tasks import statistics as evaluate
    from jaxcredit.train.run import report
    from jaxcredit.utils import progress

    with progress.shown("eval") as tell:
        tell("the run's weights")
        exp, programs, weights, step = find.opened(args.run, args.step)
        if args.prompts is not None:
            exp = dataclasses.replace(exp, eval_prompts=args.prompts)
        tell("sampling and scoring")
        numbers = report(exp, programs, weights, args.k, seed=args.seed)
    if args.json:
        print(
            json.dumps(
                {
                    "step": step,
                    **{k: v._asdict() if hasattr(v, "_asdict") else v for k, v in numbers.items()},
                }
            )
        )
    else:
        Console().print(evaluate.table({f"{args.run}, step {step}": numbers}))


def _sample(args, _):
    from rich.console import Console
    from rich.text import Text

    from jaxcredit.train.run import sampled
    from jaxcredit.utils import progress
    from jaxcredit.utils.plain_text import visible

    with progress.shown("sample"):
        exp, programs, weights, step = find.opened(args.run, args.step)
    items = (
        [{"prompt": args.prompt, "meta": None}]
        if args.prompt
        else [exp.task.test[i] for i in range(min(args.n, len(exp.task.test)))]
    )
    task = (
        dataclasses.replace(exp.task, reward=lambda meta, text, ids: float("0"))
        if args.prompt
        else exp.task
    )
    exp, how = (
        dataclasses.replace(exp, task=task),
        {"temperature": args.temperature, "seed": args.seed},
    )
    with progress.shown("sample"):
        answers = sampled(exp, programs, weights, args.k, items=items, **how)
    console = Console(soft_wrap=True)
    for item, texts, scores in zip(answers.items, answers.texts, answers.scores, strict=True):
        asked = item["prompt"] if isinstance(item["prompt"], str) else item["prompt"][-1]["content"]
        console.print(Text(visible(asked, "| "), style="bold"))
        for text, score in zip(texts, scores, strict=True):
            mark = "  " if args.prompt else "  unscored  " if score != score else f"  {score:g}  "
            console.print(
                Text(
                    mark + visible(text, " " * len(mark) + "| "),
                    style="green" if score >= 1 else "",
                )
            )


def _export(args, _):
    import jax

    from jaxcredit.policy.formats import pretrained
    from jaxcredit.utils import progress

    with progress.shown("export"):
        exp, _, weights, step = find.opened(args.run, args.step)
        weights = jax.tree.map(lambda x: x.astype(args.dtype), weights)
        pretrained.export(weights, exp.policy, args.folder, tokenizer=exp.tokenizer)
    print(
        f"step {step} of {args.run} is in {args.folder}: transformers.AutoModelForCausalLM.from_pretrained({args.folder!r})"
    )


def _compare(args, _):
    from rich.console import Console

    from jaxcredit.train.runs import plots
    from jaxcredit.utils import progress

    with progress.shown("compare"):
        table, plot = plots.compare(args.runs, args.out)
    Console().print(table)
    for option, values in run_source.differing_options(args.runs).items():
        pairs = ", ".join(
            f"{Path(run).name} {value}" for run, value in zip(args.runs, values, strict=True)
        )
        print(plain_text.one_line(f"{option}: {pairs}", most=2000))
    print(plot)


def _methods(args, _):
    from rich.console import Console

    from jaxcredit.credit import catalogue

    rows = catalogue.choose(
        catalogue.methods(),
        granularity=args.granularity,
        needs=args.needs,
        family=args.family,
        fidelity=args.fidelity,
        only=args.here,
    )
    if args.name:
        rows = catalogue.named(rows, args.name)
    if args.json:
        print(json.dumps(rows, indent=1, ensure_ascii=False))
    elif args.name:
        print("\n\n\n".join(catalogue.page(row) for row in rows))
    else:
        console = Console()
        console.print(catalogue.table(rows))


def _arena(args, _):
    from jaxcredit.arena import matrix
    from jaxcredit.train.runs.console import wide_console
    from jaxcredit.utils import progress

    own = {name: find.estimator(name) for name in (*args.estimator, *filter(None, [args.file]))}
    settings = {"prompts": args.prompts, "group": args.group, "seed": args.seed}
    with progress.shown("arena") as tell:
        cells = matrix.chosen(
            args.family, own, quick=args.quick or bool(args.file), tell=tell, **settings
        )
    if args.html:
        from jaxcredit.arena import html as report
        from jaxcredit.arena import sweeps

        asked = [s for s in sweeps.SWEEPS if s.family.__name__ in {c.family for c in cells}]
        with progress.shown("arena, sweeps") as tell:
            curves = sweeps.run(asked, seed=args.seed, tell=tell)
        files.write_atomic(
            args.html, report.page(cells, curves, made="jaxcredit " + shlex.join(args.typed))
        )
    if args.json:
        print(json.dumps(matrix.as_json(cells)))
    else:
        wide_console().print(matrix.table(cells))


def _advise(args, _):
    from rich.console import Console

    from jaxcredit.analysis import advise
    from jaxcredit.rollout import files as rollout_files
    from jaxcredit.train.runs.metrics import plain
    from jaxcredit.utils import progress

    if args.keys or not args.source:
        print(rollout_files.KEYS)
        return
    if Path(args.source).is_file():
        rollout, logp = rollout_files.load(args.source)
        told = {"rollouts": args.source}
    else:
        from jaxcredit.train import run
        from jaxcredit.train.restore import sample_from_checkpoint

        with progress.shown("advise") as tell:
            tell("sampling from the run")
            exp = find.of_run(args.source)
            got = sample_from_checkpoint(
                exp,
                run.build(exp),
                args.source,
                prompts=args.prompts,
                step=args.step,
                seed=args.seed,
            )
        rollout, logp, told = got.rollout, got.logp, {"run": args.source, "step": got.step}
        if args.save:
            rollout_files.save(args.save, rollout, logp)
    with progress.shown("advise") as tell:
        tell("measuring")
        measured = advise.measure(rollout, logp)
    steps = advise.recommend(measured)
    if args.json:
        print(json.dumps(plain(advise.facts(measured, steps, told))))
    else:
        advise.show(measured, steps, args.source, Console())


def _report(args, _):
    from jaxcredit.analysis import report
    from jaxcredit.train import run
    from jaxcredit.train.restore import sample_from_checkpoint
    from jaxcredit.train.runs.folder import local_path, open_run_folder
    from jaxcredit.utils import progress

    if args.numbers_only:
        from rich.console import Console

        table, config = report.numbers(local_path(args.run), args.run)
        Console().print(table)
        print(config)
        return
    with progress.shown("report") as tell:
        tell("reading the run")
        exp = find.of_run(args.run)
        programs, folder = run.build(exp), open_run_folder(args.run).pull()
        tell("sampling" if args.prompts else "")
        drawn = (
            sample_from_checkpoint(
                exp, programs, args.run, prompts=args.prompts, step=args.step, seed=args.seed
            )
            if args.prompts
            else None
        )
        tell("writing")
        text = report.markdown(
            exp, programs, folder.path, drawn, [local_path(other) for other in args.beside]
        )
    files.write_atomic(folder.path / "report.md", text)
    folder.push()
    print(f"{args.run}/report.md: {text.splitlines()[2]}")


def _models(args, _):
    from rich.console import Console

    from jaxcredit.cli import models as listing

    rows = listing.rows(args.words)
    if args.json:
        print(json.dumps(rows))
    else:
        console = Console()
        console.print(listing.table(rows))


def _claims(args, _):
    from rich.console import Console

    from jaxcredit.arena import claims
    from jaxcredit.utils import progress

    families = dict.fromkeys(e.sweep.family.__name__ for e in claims.EXPERIMENTS)
    if args.only and args.only not in families:
        raise ValueError(
            f"no claim is about {args.only!r}; families with claims: {', '.join(families)}"
        )
    chosen = [e for e in claims.EXPERIMENTS if args.only in (None, e.sweep.family.__name__)]
    with progress.shown("claims") as tell:
        found = claims.run(chosen, seeds=args.seeds, tell=tell)
    if args.markdown:
        print(claims.markdown(found), end="")
    else:
        Console().print(claims.table(found))


def _check(args, _):
    from rich.console import Console
    from rich.text import Text

    from jaxcredit.credit import laws
    from jaxcredit.utils import progress
    from jaxcredit.utils.tables import Column, Sheet

    with progress.shown("check"):
        results = laws.check(find.estimator(args.credit))
    words = {
        True: Text("holds", style="green"),
        False: Text("broken", style="red"),
        None: Text("skipped"),
    }
    table = Sheet("law", "", Column("detail", wraps=True))
    for r in results:
        table.add_row(r.law, words[r.passed], str(r.detail or ""))
    Console().print(table)
    sys.exit(1 if any(r.passed is False for r in results) else 0)


COMMANDS = {
    "advise": _advise,
    "arena": _arena,
    "check": _check,
    "claims": _claims,
    "compare": _compare,
    "eval": _eval,
    "export": _export,
    "methods": _methods,
    "models": _models,
    "plan": _plan,
    "report": _report,
    "sample": _sample,
    "train": _train,
}
