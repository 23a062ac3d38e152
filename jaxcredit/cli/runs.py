"""Commands that read runs: `eval`, `sample`, `export`, `compare`, `report` and `advise`."""

import dataclasses
import json
from pathlib import Path

from jaxcredit.cli import loading
from jaxcredit.cli.parser import (
    OPENS_RUN,
    add_json,
    add_prompts,
    add_run,
    add_seed,
    add_step,
    command,
    new_folder,
    nonblank,
    number,
    output_file,
)
from jaxcredit.train.runs import source as run_source
from jaxcredit.utils import files, plain_text
from jaxcredit.utils.ranges import COUNT, FROM_0, NOT_NEGATIVE


def add_parsers(subparsers) -> None:
    """Add the commands of this file."""
    _add_eval(subparsers)
    _add_sample(subparsers)
    _add_export(subparsers)
    _add_compare(subparsers)
    _add_report(subparsers)
    _add_advise(subparsers)


def _add_eval(subparsers) -> None:
    parser = command(
        subparsers,
        "eval",
        "Evaluate a run on its held-out problems: greedy accuracy, mean@k and pass@k.",
        evaluate,
        details=f"Each number has a 95 % confidence interval over problems.\n\n{OPENS_RUN}",
        examples="""
            jaxcredit eval runs/quickstart
                the newest checkpoint
            jaxcredit eval runs/quickstart --step 80 --k 16
                the checkpoint after step 80, with 16 answers to each problem
            jaxcredit eval configs/quickstart.py
                the weights before any training
        """,
    )
    add_run(parser, or_config=True)
    parser.add_argument(
        "--k",
        type=number(COUNT),
        metavar="N",
        default=8,
        help="sampled answers to each problem (default 8)",
    )
    parser.add_argument(
        "--prompts",
        type=number(COUNT),
        metavar="N",
        help="number of held-out problems (default: as in the config)",
    )
    add_step(parser)
    add_seed(parser)
    add_json(parser)


def _add_sample(subparsers) -> None:
    parser = command(
        subparsers,
        "sample",
        "Sample answers of a run to its held-out problems or to your own prompt.",
        sample,
        details=OPENS_RUN,
        examples="""
            jaxcredit sample runs/quickstart --n 4 --k 2
                two answers to each of four held-out problems, with rewards
            jaxcredit sample runs/quickstart --prompt "580267<" --k 1 --temperature 0
                the greedy answer to your own prompt
        """,
    )
    add_run(parser, or_config=True)
    parser.add_argument(
        "--prompt", type=nonblank, help="your own prompt (default: the first held-out problems)"
    )
    parser.add_argument(
        "--n",
        type=number(COUNT),
        metavar="N",
        default=4,
        help="number of held-out problems (default 4)",
    )
    parser.add_argument(
        "--k", type=number(COUNT), metavar="N", default=4, help="answers to each prompt (default 4)"
    )
    parser.add_argument(
        "--temperature",
        type=number(NOT_NEGATIVE),
        metavar="X",
        help="sampling temperature; 0 is greedy (default: as in the config)",
    )
    add_step(parser)
    add_seed(parser)


def _add_export(subparsers) -> None:
    parser = command(
        subparsers,
        "export",
        "Export a run's policy as a Hugging Face folder for transformers.",
        export,
        details=f"Adapters (LoRA) are merged into the weights.\n\n{OPENS_RUN}",
        examples="""
            jaxcredit export runs/quickstart exported
            jaxcredit export runs/quickstart exported --dtype bfloat16
        """,
    )
    add_run(parser)
    parser.add_argument("folder", type=new_folder, help="folder to write: a new or an empty one")
    add_step(parser)
    parser.add_argument(
        "--dtype",
        default="float32",
        choices=["float32", "bfloat16", "float16"],
        help="type of the weights (default float32)",
    )


def _add_compare(subparsers) -> None:
    parser = command(
        subparsers,
        "compare",
        "Compare runs: a table, the options that differ, and one plot.",
        compare,
        details="Nothing of the runs is executed.",
        examples="""
            jaxcredit compare runs/quickstart runs/grpo
            jaxcredit compare runs/* --out all.pdf
        """,
    )
    parser.add_argument("runs", nargs="+", type=nonblank, help="run folders")
    parser.add_argument(
        "--out",
        default="compare.png",
        metavar="FILE",
        type=output_file(".png", ".pdf", ".svg"),
        help="file of the plot (default compare.png)",
    )


def _add_report(subparsers) -> None:
    parser = command(
        subparsers,
        "report",
        "Write a run's reporting checklist to RUN/report.md.",
        report,
        details="The checklist holds what a paper should report: data, hyperparameters, results "
        f"with intervals. Items that the run cannot fill in are questions to you.\n\n{OPENS_RUN}",
        examples="""
            jaxcredit report runs/quickstart
            jaxcredit report runs/quickstart --compare-to runs/seed1 runs/grpo
                with other seeds and baselines
            jaxcredit report runs/quickstart --numbers-only
                print metrics and options; nothing is executed or written
        """,
    )
    add_run(parser)
    parser.add_argument(
        "--compare-to",
        nargs="+",
        default=[],
        metavar="RUN",
        type=nonblank,
        help="further runs to report: other seeds of the same config, and baselines",
    )
    add_prompts(
        parser,
        "training problems to sample anew, for statistics of credit and length "
        "(default 64; 0: none)",
        allowed=FROM_0,
    )
    add_step(parser)
    add_seed(parser)
    parser.add_argument(
        "--numbers-only",
        action="store_true",
        help="print metrics and options; nothing of the run is executed or written",
    )


def _add_advise(subparsers) -> None:
    parser = command(
        subparsers,
        "advise",
        "Recommend estimators for a run's rollouts, or for your own, with reasons.",
        advise,
        details="Statistics of the rollouts are measured (overlap of answers, repeated states, "
        "lengths, agreement of sampler and trainer), and each is shown with what it implies.\n\n"
        f"{OPENS_RUN}",
        examples="""
            jaxcredit advise runs/quickstart
                rollouts of the run's newest checkpoint
            jaxcredit advise rollouts.npz
                your own rollouts
            jaxcredit advise --describe-format
                the arrays that rollouts.npz must hold
        """,
    )
    parser.add_argument(
        "source",
        type=nonblank,
        help="a run folder, or a .npz file of rollouts (see --describe-format)",
        nargs="?",
    )
    add_prompts(parser, "least number of training problems to sample from a run (default 64)")
    add_step(parser)
    add_seed(parser)
    parser.add_argument(
        "--save",
        type=output_file(".npz"),
        metavar="FILE",
        help="write the rollouts sampled from a run to this .npz file",
    )
    parser.add_argument(
        "--describe-format",
        action="store_true",
        help="print which arrays a .npz file of rollouts holds",
    )
    add_json(parser)


def evaluate(args, _) -> None:
    """Run `jaxcredit eval`."""
    from rich.console import Console

    from jaxcredit.tasks import statistics
    from jaxcredit.train.evaluation import evaluation_summary
    from jaxcredit.utils import progress

    with progress.shown("eval") as status:
        status("the run's weights")
        exp, programs, weights, step = loading.load_run(args.run, args.step)
        if args.prompts is not None:
            exp = dataclasses.replace(exp, eval_prompts=args.prompts)
        status("sampling and scoring")
        numbers = evaluation_summary(exp, programs, weights, args.k, seed=args.seed)
    if args.json:
        plain = {k: v._asdict() if hasattr(v, "_asdict") else v for k, v in numbers.items()}
        print(json.dumps({"step": step, **plain}))
    else:
        Console().print(statistics.table({f"{args.run}, step {step}": numbers}))


def sample(args, _) -> None:
    """Run `jaxcredit sample`."""
    from rich.console import Console
    from rich.text import Text

    from jaxcredit.train.evaluation import sample_answers
    from jaxcredit.utils import progress
    from jaxcredit.utils.plain_text import visible

    with progress.shown("sample"):
        exp, programs, weights, step = loading.load_run(args.run, args.step)
    if args.prompt:
        items = [{"prompt": args.prompt, "meta": None}]
        exp = dataclasses.replace(exp, task=dataclasses.replace(exp.task, reward=_no_reward))
    else:
        items = [exp.task.test[i] for i in range(min(args.n, len(exp.task.test)))]
    with progress.shown("sample"):
        answers = sample_answers(
            exp,
            programs,
            weights,
            args.k,
            items=items,
            temperature=args.temperature,
            seed=args.seed,
        )
    console = Console(soft_wrap=True)
    for item, texts, scores in zip(answers.items, answers.texts, answers.scores, strict=True):
        prompt = item["prompt"]
        question = prompt if isinstance(prompt, str) else prompt[-1]["content"]
        console.print(Text(visible(question, "| "), style="bold"))
        for text, score in zip(texts, scores, strict=True):
            if args.prompt:
                label = "  "
            elif score != score:
                label = "  unscored  "
            else:
                label = f"  {score:g}  "
            line = label + visible(text, " " * len(label) + "| ")
            console.print(Text(line, style="green" if score >= 1 else ""))


def _no_reward(meta, text, ids) -> float:
    """Reward of answers to a prompt that belongs to no problem."""
    return 0.0


def export(args, _) -> None:
    """Run `jaxcredit export`."""
    import jax

    from jaxcredit.policy.formats import pretrained
    from jaxcredit.utils import progress

    with progress.shown("export"):
        exp, _, weights, step = loading.load_run(args.run, args.step)
        weights = jax.tree.map(lambda x: x.astype(args.dtype), weights)
        pretrained.export(weights, exp.policy, args.folder, tokenizer=exp.tokenizer)
    print(
        f"step {step} of {args.run} is in {args.folder}: "
        f"transformers.AutoModelForCausalLM.from_pretrained({args.folder!r})"
    )


def compare(args, _) -> None:
    """Run `jaxcredit compare`."""
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


def report(args, _) -> None:
    """Run `jaxcredit report`."""
    from jaxcredit.analysis import report
    from jaxcredit.train import run
    from jaxcredit.train.restore import sample_from_checkpoint
    from jaxcredit.train.runs import file_names
    from jaxcredit.train.runs.folder import local_path, open_run_folder
    from jaxcredit.utils import progress

    if args.numbers_only:
        from rich.console import Console

        table, config = report.metrics_and_config(local_path(args.run), args.run)
        Console().print(table)
        print(config)
        return
    with progress.shown("report") as status:
        status("reading the run")
        exp = loading.experiment_of_run(args.run)
        programs, folder = run.build(exp), open_run_folder(args.run).pull()
        rollouts = None
        if args.prompts:
            status("sampling")
            rollouts = sample_from_checkpoint(
                exp, programs, args.run, prompts=args.prompts, step=args.step, seed=args.seed
            )
        status("writing")
        others = [local_path(other) for other in args.compare_to]
        text = report.markdown(exp, programs, folder.path, rollouts, others)
    files.write_atomic(folder.path / file_names.REPORT, text)
    folder.push()
    print(f"{args.run}/{file_names.REPORT}: {text.splitlines()[2]}")


def advise(args, _) -> None:
    """Run `jaxcredit advise`."""
    from rich.console import Console

    from jaxcredit.analysis import advice_output
    from jaxcredit.analysis.advise import recommend
    from jaxcredit.analysis.measurement import measure
    from jaxcredit.rollout import files as rollout_files
    from jaxcredit.train.runs.json_values import to_json
    from jaxcredit.utils import progress

    if args.describe_format or not args.source:
        print(rollout_files.KEYS)
        return
    if Path(args.source).is_file():
        rollout, logp = rollout_files.load(args.source)
        source = {"rollouts": args.source}
    else:
        from jaxcredit.train import run
        from jaxcredit.train.restore import sample_from_checkpoint

        with progress.shown("advise") as status:
            status("sampling from the run")
            exp = loading.experiment_of_run(args.source)
            sampled = sample_from_checkpoint(
                exp,
                run.build(exp),
                args.source,
                prompts=args.prompts,
                step=args.step,
                seed=args.seed,
            )
        rollout, logp = sampled.rollout, sampled.logp
        source = {"run": args.source, "step": sampled.step}
        if args.save:
            rollout_files.save(args.save, rollout, logp)
    with progress.shown("advise") as status:
        status("measuring")
        measured = measure(rollout, logp)
    steps = recommend(measured)
    if args.json:
        print(json.dumps(to_json(advice_output.as_dict(measured, steps, source))))
    else:
        advice_output.show(measured, steps, args.source, Console())
