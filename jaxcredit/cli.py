"""The command line: what a person types. Everything it does is a function that a notebook can call."""

import argparse
import contextlib
import dataclasses
import difflib
import importlib.util
import inspect
import json
import os
import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

EPILOG = """examples:
  jaxcredit train configs/quickstart.py                          train; everything it says lies in runs/quickstart
  jaxcredit train configs/quickstart.py --help                   what this config lets you change
  jaxcredit train configs/quickstart.py --credit grpo --run b    the same with another estimator
  jaxcredit train configs/quickstart.py --resume auto            go on where a run was stopped
  jaxcredit compare runs/quickstart runs/b                       a table and one plot
  jaxcredit eval runs/quickstart --k 8                           greedy accuracy, mean@k and pass@k with intervals
  jaxcredit sample runs/quickstart --n 4 --k 2                   what it answers
  jaxcredit export runs/quickstart exported                      a folder that transformers loads
  jaxcredit methods --granularity turn --needs none              what estimators there are, and what they need
  jaxcredit check configs/my_estimator.py                        does an estimator of yours obey the laws?
  jaxcredit advise runs/quickstart                               which estimators suit its answers, and why
  jaxcredit report runs/quickstart                               the reporting checklist, filled in as far as it goes
  jaxcredit arena --quick                                        how true estimators' credit is where the truth is known
  jaxcredit arena configs/my_estimator.py                        an estimator of yours among them
  jaxcredit arena --html arena.html                              all of it on one page, with pictures
  jaxcredit claims                                               headlines of papers: where each holds, and where it reverses

A config is a Python file with a function `experiment(...)`; its keywords are options. JAXCREDIT_TRACE=1 shows the trace of an error.
"""


def main(argv: list[str] | None = None) -> None:
    """`jaxcredit COMMAND ...`; an error that names its cause and mend is shown without a trace (JAXCREDIT_TRACE=1 shows it)."""
    parser, commands = _parser()
    args, rest = parser.parse_known_args(typed := sys.argv[1:] if argv is None else argv)
    args.typed = typed
    if args.command is None:
        parser.print_help()
        return
    try:
        _known(rest, commands[args.command], partly=args.takes_config)
        args.do(args, rest)
    except KeyboardInterrupt:
        sys.exit("stopped; what was saved can be resumed with --resume auto")
    except (ValueError, KeyError, TypeError, OSError, ImportError, RuntimeError) as error:
        if os.environ.get("JAXCREDIT_TRACE"):
            raise
        text = error.args[0] if isinstance(error, KeyError) and error.args else error
        from rich.console import Console

        Console(stderr=True, soft_wrap=True).print(f"[bold red]{type(error).__name__}[/]", end=" ")
        Console(stderr=True, soft_wrap=True).print(str(text), markup=False, highlight=False)
        sys.exit(1)


def _parser():
    parser = argparse.ArgumentParser(
        prog="jaxcredit",
        description="Credit assignment for reinforcement learning of language models: train, judge and compare estimators.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    sub = parser.add_subparsers(dest="command", metavar="COMMAND")
    commands = {}

    def command(name: str, do: Callable, text: str, *, config: bool = False) -> argparse.ArgumentParser:
        # No abbreviations: a config's own option could be the beginning of one of ours.
        commands[name] = sub.add_parser(name, help=text, description=text, add_help=not config, allow_abbrev=False)
        commands[name].set_defaults(do=do, takes_config=config)
        return commands[name]

    train = command("train", _train, "Train the experiment of a config file; every keyword of its function is an option.", config=True)
    train.add_argument("config", nargs="?", help="a Python file with a function `experiment(...) -> Experiment`")
    train.add_argument("--run", help="name of the run: its folder is runs/NAME (default: the experiment's name)")
    train.add_argument("--runs", default="runs", help="where run folders lie (default: runs)")
    train.add_argument("--resume", choices=["no", "auto"], default="no", help="auto: go on from the newest usable checkpoint, or begin")
    train.add_argument("--overwrite", action="store_true", help="delete a run of this name first")
    train.add_argument("--profile", metavar="FIRST:LAST", help="trace these steps (10:13, both included) into RUN/profile")
    _credit_option(train)
    train.add_argument("--processes", type=int, help="of a job of several processes: how many (jax.distributed)")
    train.add_argument("--process", type=int, help="which of them this one is")
    train.add_argument("--coordinator", help="ADDRESS:PORT of process 0")

    plan = command(
        "plan", _plan, "Compile the real programs from shapes alone and say whether they fit; check data and tokenizer.", config=True
    )
    plan.add_argument("config", nargs="?", help="a config file")
    plan.add_argument("--topology", help="TPUs that need not be here: v5e:16x16, v5p:4x4x8 (needs pip install 'jaxcredit[tpu]')")
    plan.add_argument("--slices", type=int, default=1, help="as many of that topology, joined by the data centre's network (default 1)")
    plan.add_argument("--largest", action="store_true", help="look for the largest batch that fits: three compilations a program more")
    _credit_option(plan)

    ev = command("eval", _eval, "Greedy accuracy, mean@k and pass@k of a run on its held-out problems, with intervals.")
    ev.add_argument("run", help="a run folder, or a config: what it begins with")
    ev.add_argument("--k", type=int, default=8, help="answers to each problem (default 8)")
    ev.add_argument("--prompts", type=int, help="how many held-out problems (default: as in the config)")
    ev.add_argument("--step", type=int, help="the checkpoint of this step (default: the newest)")
    ev.add_argument("--seed", type=int, default=0)
    ev.add_argument("--json", action="store_true", help="print JSON instead of a table")

    sample = command("sample", _sample, "Answers of a run to its held-out problems, or to a prompt of yours.")
    sample.add_argument("run", help="a run folder, or a config: what it begins with")
    sample.add_argument("--prompt", help="your own prompt (default: the first held-out problems)")
    sample.add_argument("--n", type=int, default=4, help="held-out problems to show (default 4)")
    sample.add_argument("--k", type=int, default=4, help="answers to each (default 4)")
    sample.add_argument("--temperature", type=float, help="default: as in the config; 0 is greedy")
    sample.add_argument("--step", type=int, help="the checkpoint of this step (default: the newest)")
    sample.add_argument("--seed", type=int, default=0)

    export = command("export", _export, "Write a run's policy as a Hugging Face folder that transformers loads.")
    export.add_argument("run", help="a run folder")
    export.add_argument("folder", help="where to write it")
    export.add_argument("--step", type=int, help="the checkpoint of this step (default: the newest)")
    export.add_argument("--dtype", default="float32", choices=["float32", "bfloat16", "float16"])

    compare = command("compare", _compare, "A table and one plot of several runs.")
    compare.add_argument("runs", nargs="+", help="run folders")
    compare.add_argument("--out", default="compare.png", help="the plot (default compare.png)")

    methods = command("methods", _methods, "The catalogue: every estimator, what it needs, and what of the field is not here.")
    methods.add_argument("--granularity", help="token, segment, step, turn, trajectory or agent")
    methods.add_argument("--needs", help="a signal it needs (state); none: nothing but the group's own answers")
    methods.add_argument("--family", help="MC, TD, model, information, game, ...")
    methods.add_argument("--fidelity", help="paper, code, or ours where sources are silent")
    methods.add_argument("--here", action="store_true", help="leave out what is not implemented")
    methods.add_argument("--json", action="store_true", help="print an array, one object a method")

    arena = command("arena", _arena, "Hold estimators against exact credit: every one in every family of worlds, a number or a reason.")
    arena.add_argument("file", nargs="?", help="an estimator of yours, FILE.py[:function], among those of the quick list")
    arena.add_argument("--family", action="append", default=[], help="only this family (KeyBranch); may be given again")
    arena.add_argument("--estimator", action="append", default=[], help="only this one: a name, or FILE.py[:function]; may be given again")
    arena.add_argument("--quick", action="store_true", help="the 81 cells in which something is to be seen")
    arena.add_argument("--prompts", type=int, default=256, help="groups in each family (default 256)")
    arena.add_argument("--group", type=int, default=16, help="answers in each (default 16)")
    arena.add_argument("--seed", type=int, default=0)
    arena.add_argument("--json", action="store_true", help="print an array, one object a cell, all numbers with 95 %% intervals")
    arena.add_argument(
        "--html", metavar="FILE", help="write a report: the matrix, and each family's sweep of the knob that flips the order"
    )

    claims = command("claims", _claims, "Headlines of papers held against small worlds: where each holds, and where it reverses.")
    claims.add_argument("--only", help="claims about this family (Strata)")
    claims.add_argument("--seeds", type=int, default=8, help="seeds of the learners (default 8)")
    claims.add_argument("--markdown", action="store_true", help="print Markdown instead of a table")

    advise = command(
        "advise", _advise, "Measure a run's rollouts, or your own, and say which estimators suit them, with reasons and numbers."
    )
    advise.add_argument("source", help="a run folder (its newest checkpoint is asked), or a .npz of rollouts (see --keys)", nargs="?")
    advise.add_argument("--prompts", type=int, default=64, help="training problems a run is asked, at least (default 64)")
    advise.add_argument("--step", type=int, help="the checkpoint of this step (default: the newest)")
    advise.add_argument("--seed", type=int, default=0)
    advise.add_argument("--save", help="write the rollouts sampled from a run to this .npz")
    advise.add_argument("--keys", action="store_true", help="say which arrays a .npz of rollouts holds")
    advise.add_argument("--json", action="store_true", help="print JSON instead of a table")

    report = command(
        "report", _report, "Write the reporting checklist of a run to RUN/report.md: filled in where the run tells, else asked."
    )
    report.add_argument("run", help="a run folder")
    report.add_argument("--beside", nargs="+", default=[], help="other runs: more seeds of the same config, and baselines")
    report.add_argument("--prompts", type=int, default=64, help="training problems to sample afresh for credit and lengths; 0: none")
    report.add_argument("--step", type=int, help="the checkpoint of this step (default: the newest)")
    report.add_argument("--seed", type=int, default=0)

    models = command("models", _models, "The published models this decoder computes, their parameters counted from the shapes.")
    models.add_argument("words", nargs="*", help="only those whose name or hub id holds every word (qwen3 8b)")
    models.add_argument("--json", action="store_true", help="print an array, one object a model")

    check = command("check", _check, "Hold an estimator against the laws that every estimator obeys.")
    check.add_argument("credit", help="a name (tempo), or FILE.py[:function]")
    return parser, commands


def _known(rest: list[str], parser: argparse.ArgumentParser, *, partly: bool) -> None:
    """Raise for what no option is called. Of a config's command (`partly`) only near misses: the rest is for the config to judge."""
    ours = [name for name in parser._option_string_actions if name.startswith("--")]
    for word in rest:
        near = difflib.get_close_matches(word.partition("=")[0], ours, 1, 0.85) if word.startswith("--") else []
        if near and word.partition("=")[0] != near[0]:
            raise ValueError(f"no option is called {word}; did you mean {near[0]}?")
        if not partly:
            raise ValueError(f"{parser.prog} takes no {word}; its options: {', '.join(ours)}")


def _credit_option(parser):
    parser.add_argument("--credit", help="another estimator: a name of jaxcredit.credit (grpo), or FILE.py[:function]")


def load(path: str, rest: list[str] = (), credit: str | None = None, *, origin: str | None = None):
    """The experiment of a config file, with the options given to its function; and what to write down to make it again.

    `origin`: where the file was when its run began, so that what it reads beside itself is still found.
    """
    import tyro

    make = getattr(module(path, origin), "experiment", None)
    if make is None:
        raise ValueError(f"{path} has no function `experiment(...)`: a config returns a jaxcredit.experiment.Experiment from it")
    exp = tyro.cli(make, args=list(rest), prog=f"jaxcredit train {path}", description=_head(make))
    if credit:
        exp = dataclasses.replace(exp, credit=find_credit(credit))
    return exp, {"config": str(Path(path).resolve()), "args": list(rest), "credit": credit}


def module(path: str, origin: str | None = None) -> Any:
    """A Python file, run as a module; `origin` is what it sees as its `__file__`."""
    file = Path(path)
    if not file.is_file():
        known = ", ".join(sorted(str(p) for p in Path("configs").glob("*.py"))) or "none in ./configs"
        raise FileNotFoundError(f"no config file {path}; there are: {known}")
    spec = importlib.util.spec_from_file_location(file.stem, file)
    mod = importlib.util.module_from_spec(spec)
    sys.modules[file.stem] = mod  # so that dataclasses and pickles of the file find it
    mod.__file__ = str(Path(origin or file).resolve())
    if (beside := str(Path(mod.__file__).parent)) not in sys.path:
        sys.path.append(beside)  # a config may import the files beside it
    spec.loader.exec_module(mod)
    return mod


def find_credit(name: str) -> Callable:
    """An estimator of the library by name, or a function of a file: `my.py:credit`, or `my.py` if it has just one."""
    from jaxcredit import credit

    if ".py" not in name:
        if name not in credit.__all__:
            near = difflib.get_close_matches(name, credit.__all__, 3)
            hint = f"did you mean {' or '.join(near)}? " if near else ""
            raise ValueError(f"no estimator is called {name!r}; {hint}known: {', '.join(credit.__all__)}; or give FILE.py:function")
        return getattr(credit, name)
    path, _, attribute = name.partition(":")
    mod = module(path)
    own = {n: f for n, f in vars(mod).items() if hasattr(f, "method") and getattr(f, "__module__", "") == mod.__name__}
    if attribute:
        found = getattr(mod, attribute, None)
    else:
        found = next(iter(own.values())) if len(own) == 1 else None
    if found is None:
        what = f"no function {attribute}" if attribute else "not exactly one lifted function (@per_group or @per_batch)"
        raise ValueError(f"{path} has {what}; those in it: {', '.join(own) or 'none'}")
    return found


def _head(make: Callable) -> str:
    return inspect.getdoc(sys.modules.get(make.__module__)) or ""


def _train(args, rest):
    if args.config is None or args.config in ("-h", "--help"):
        _parser()[1]["train"].print_help()
        return
    if args.processes and args.processes > 1:
        _join(args)
    if {"-h", "--help"} & set(rest):
        _parser()[1]["train"].print_help()
        print(f"\n\n{args.config}, and what it lets you change:\n")
    exp, made = load(args.config, rest, args.credit)
    exp.check()
    from jaxcredit.clock import span
    from jaxcredit.run import run

    profile = span(args.profile) if args.profile else None
    folder = Path(args.runs) / (args.run or exp.name)
    if args.overwrite and not args.process and folder.exists():  # of several processes the first
        shutil.rmtree(folder)
    run(exp, folder, resume=args.resume == "auto", source=made, profile=profile)


def _join(args):
    """Become one process of a job. All devices meet now: CPU collectives that first meet after long compilations give up waiting."""
    import jax
    import numpy as np

    from jaxcredit import mesh

    jax.distributed.initialize(args.coordinator, args.processes, args.process)
    everywhere = mesh.batch(jax.device_count(), {"batch": "all"}, mesh.make({"all": -1}))
    ones = jax.make_array_from_callback((jax.device_count(),), everywhere, lambda part: np.ones(jax.device_count())[part])
    jax.block_until_ready(jax.jit(lambda x: x.sum())(ones))


def _plan(args, rest):
    if args.config is None:
        _parser()[1]["plan"].print_help()
        return
    from jaxcredit import mesh, topology

    on = topology.describe(args.topology, args.slices) if args.topology else None
    with mesh.planned(on.devices) if on else contextlib.nullcontext():  # a config may ask how many devices there are
        exp, _ = load(args.config, rest, args.credit)
        from jaxcredit.plan import plan

        sys.exit(0 if plan(exp.check(), on=on, largest=args.largest) else 1)


def _opened(args):
    """The experiment, programs and parameters of a run folder; of a config, the weights that its training begins with."""
    from jaxcredit.run import build, reopen

    if args.run.endswith(".py"):
        import jax

        exp = load(args.run)[0].check()
        programs = build(exp)
        return exp, programs, programs.init(jax.random.key(exp.seed)).params, 0
    exp = _experiment(args.run)
    return exp, *reopen(exp, args.run, step=args.step)


def _experiment(run: str):
    """The experiment of a run folder."""
    folder = Path(run)
    path = folder / "source.json"
    if not path.is_file():
        raise FileNotFoundError(f"{folder} is no run folder (it has no source.json): give one that `jaxcredit train` made")
    made = json.loads(path.read_text())
    return load(str(folder / "config.py"), made["args"], made["credit"], origin=made["config"])[0]


def _eval(args, _):
    from rich.console import Console

    from jaxcredit import evaluate
    from jaxcredit.run import report

    exp, programs, weights, step = _opened(args)
    if args.prompts:
        exp = dataclasses.replace(exp, eval_prompts=args.prompts)
    numbers = report(exp, programs, weights, args.k, seed=args.seed)
    if args.json:
        print(json.dumps({"step": step, **{k: v._asdict() if hasattr(v, "_asdict") else v for k, v in numbers.items()}}))
    else:
        Console().print(evaluate.table({f"{args.run}, step {step}": numbers}))


def _sample(args, _):
    from rich.console import Console

    from jaxcredit.run import sampled

    exp, programs, weights, step = _opened(args)
    items = [{"prompt": args.prompt, "meta": None}] if args.prompt else [exp.task.test[i] for i in range(min(args.n, len(exp.task.test)))]
    task = dataclasses.replace(exp.task, reward=lambda meta, text, ids: float("0")) if args.prompt else exp.task
    answers = sampled(
        dataclasses.replace(exp, task=task), programs, weights, args.k, items=items, temperature=args.temperature, seed=args.seed
    )
    console = Console(highlight=False)
    for item, texts, scores in zip(answers.items, answers.texts, answers.scores, strict=True):
        asked = item["prompt"] if isinstance(item["prompt"], str) else item["prompt"][-1]["content"]
        console.print(asked, style="bold", markup=False)
        for text, score in zip(texts, scores, strict=True):
            mark = "" if args.prompt else f"{score:g}  "
            console.print(f"  {mark}{text}", markup=False, style="green" if score >= 1 else "")


def _export(args, _):
    import jax

    from jaxcredit.policy import pretrained

    exp, _, weights, step = _opened(args)
    weights = jax.tree.map(lambda x: x.astype(args.dtype), weights)
    pretrained.export(weights, exp.policy, args.folder, tokenizer=exp.tokenizer)
    print(f"step {step} of {args.run} is in {args.folder}: transformers.AutoModelForCausalLM.from_pretrained({args.folder!r})")


def _compare(args, _):
    from rich.console import Console

    from jaxcredit import plots

    table, plot = plots.compare(args.runs, args.out)
    Console().print(table)
    print(plot)


def _methods(args, _):
    from rich.console import Console

    from jaxcredit import catalogue

    rows = catalogue.choose(
        catalogue.methods(), granularity=args.granularity, needs=args.needs, family=args.family, fidelity=args.fidelity, only=args.here
    )
    if args.json:
        print(json.dumps(rows, indent=1, ensure_ascii=False))
    else:
        console = Console()
        console.print(catalogue.table(rows, console.width))


def _arena(args, _):
    from rich.console import Console

    from jaxcredit.arena import matrix

    own = {name: matrix.catalogue().get(name) or find_credit(name) for name in (*args.estimator, *filter(None, [args.file]))}
    settings = {"prompts": args.prompts, "group": args.group, "seed": args.seed}
    if args.html and not Path(args.html).resolve().parent.is_dir():
        raise FileNotFoundError(f"--html {args.html}: there is no folder {Path(args.html).parent}")
    cells = matrix.chosen(args.family, own, quick=args.quick or bool(args.file), **settings)
    if args.html:
        from jaxcredit.arena import report, sweeps

        curves = sweeps.run([s for s in sweeps.SWEEPS if s.family.__name__ in {c.family for c in cells}], seed=args.seed)
        Path(args.html).write_text(report.page(cells, curves, made="jaxcredit " + shlex.join(args.typed)), encoding="utf-8")
    if args.json:
        print(json.dumps(matrix.as_json(cells)))
    else:
        console = Console()
        console.print(matrix.table(cells, intervals=console.width >= 240 or len({c.family for c in cells}) < 5))


def _advise(args, _):
    from rich.console import Console

    from jaxcredit import advise
    from jaxcredit.records import plain

    if args.keys or not args.source:
        print(advise.KEYS)
        return
    if Path(args.source).is_file():
        rollout, logp = advise.load(args.source)
        told = {"rollouts": args.source}
    else:
        from jaxcredit import run
        from jaxcredit.fresh import fresh

        exp = _experiment(args.source)
        got = fresh(exp, run.build(exp), args.source, prompts=args.prompts, step=args.step, seed=args.seed)
        rollout, logp, told = got.rollout, got.logp, {"run": args.source, "step": got.step}
        if args.save:
            advise.save(args.save, rollout, logp)
    measured = advise.measure(rollout, logp)
    steps = advise.recommend(measured)
    if args.json:
        print(json.dumps(plain(advise.facts(measured, steps, told))))
    else:
        advise.show(measured, steps, args.source, Console())


def _report(args, _):
    from jaxcredit import report, run
    from jaxcredit.fresh import fresh

    exp = _experiment(args.run)
    programs, folder = run.build(exp), Path(args.run)
    drawn = fresh(exp, programs, folder, prompts=args.prompts, step=args.step, seed=args.seed) if args.prompts else None
    text = report.markdown(exp, programs, folder, drawn, [Path(other) for other in args.beside])
    (folder / "report.md").write_text(text, encoding="utf-8")
    print(f"{folder / 'report.md'}: {text.splitlines()[2]}")


def _models(args, _):
    from rich.console import Console

    from jaxcredit.policy import listing

    rows = listing.rows(args.words)
    if args.json:
        print(json.dumps(rows))
    else:
        console = Console()
        console.print(listing.table(rows, console.width))


def _claims(args, _):
    from rich.console import Console

    from jaxcredit.arena import claims

    if args.seeds < 3:
        raise ValueError(f"--seeds {args.seeds}: an interval over seeds needs at least 3")
    families = dict.fromkeys(e.sweep.family.__name__ for e in claims.EXPERIMENTS)
    if args.only and args.only not in families:
        raise ValueError(f"no claim is about {args.only!r}; families with claims: {', '.join(families)}")
    chosen = [e for e in claims.EXPERIMENTS if args.only in (None, e.sweep.family.__name__)]
    found = claims.run(chosen, seeds=args.seeds)
    if args.markdown:
        print(claims.markdown(found), end="")
    else:
        Console().print(claims.table(found))


def _check(args, _):
    from rich.console import Console
    from rich.table import Table

    from jaxcredit import laws

    results = laws.check(find_credit(args.credit))
    table = Table("law", "", "detail")
    for r in results:
        table.add_row(r.law, {True: "[green]holds", False: "[red]broken", None: "skipped"}[r.passed], str(r.detail or ""))
    Console().print(table)
    sys.exit(1 if any(r.passed is False for r in results) else 0)
