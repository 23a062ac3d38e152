"""Commands `train` and `plan`: run the experiment of a config file, or compute what it needs."""

import contextlib
import shlex
import sys

from jaxcredit.cli import loading
from jaxcredit.cli.parser import add_config, add_credit, address, command, nonblank, number
from jaxcredit.train.runs.masking import mask_arguments
from jaxcredit.utils import plain_text, terminal
from jaxcredit.utils.ranges import COUNT, FROM_0


def add_parsers(subparsers) -> None:
    """Add the commands of this file."""
    _add_train(subparsers)
    _add_plan(subparsers)


def _add_train(subparsers) -> None:
    parser = command(
        subparsers,
        "train",
        "Train the experiment of a config file.",
        train,
        takes_config=True,
        details="Every argument of the config's function `experiment(...)` is an option too: "
        "`jaxcredit train CONFIG --help` lists them.",
        examples="""
            jaxcredit train configs/quickstart.py
                train from the beginning; the results are in runs/quickstart
            jaxcredit train configs/quickstart.py --steps 40 --run short
                change an option of the config; the results are in runs/short
            jaxcredit train configs/quickstart.py --credit grpo --run grpo
                train with another estimator
            jaxcredit train configs/quickstart.py --resume auto
                continue from the newest checkpoint
            jaxcredit train configs/quickstart.py --credit configs/my_estimator.py
                train with your own estimator
        """,
    )
    add_config(
        parser,
        "a Python file with a function `experiment(...)` that returns a jaxcredit.train.Experiment",
    )
    parser.add_argument(
        "--run",
        type=nonblank,
        metavar="NAME",
        help="name of the run and of its folder, without slashes (default: the experiment's name)",
    )
    parser.add_argument(
        "--runs",
        default="runs",
        type=nonblank,
        metavar="FOLDER",
        help="folder in which run folders are made: a local one, or gs://BUCKET/... "
        "(default: runs)",
    )
    parser.add_argument(
        "--resume",
        choices=["no", "auto"],
        default="no",
        help="auto: continue from the newest checkpoint that can be read, or start if there is "
        "none; seed, batch and architecture must be the same as before (default: no)",
    )
    parser.add_argument(
        "--overwrite",
        action="store_true",
        help="delete the run in this folder first; a folder that does not hold a run is refused",
    )
    parser.add_argument(
        "--profile",
        metavar="FIRST:LAST",
        type=nonblank,
        help="write a profiler trace of these steps, both included, to the run's folder profile/",
    )
    add_credit(parser)
    parser.add_argument(
        "--processes",
        type=number(COUNT),
        metavar="N",
        help="number of processes of a job on several machines (jax.distributed)",
    )
    parser.add_argument(
        "--process", type=number(FROM_0), metavar="N", help="index of this process, from 0"
    )
    parser.add_argument(
        "--coordinator",
        type=address,
        metavar="ADDRESS",
        help="address of process 0, as ADDRESS:PORT",
    )


def _add_plan(subparsers) -> None:
    parser = command(
        subparsers,
        "plan",
        "Predict whether an experiment fits into memory, before any training.",
        plan,
        takes_config=True,
        details="The experiment's programs are compiled from shapes alone, without weights. "
        "The memory of each program, its FLOPs and its communication are printed; data and "
        "tokenizer are checked. The exit code is 1 if a program does not fit.",
        examples="""
            jaxcredit plan configs/quickstart.py
                on the devices of this machine
            jaxcredit plan configs/gsm8k_qwen3.py --model 8b --topology v5e:4x4
                on a TPU slice that need not be attached
        """,
    )
    add_config(parser, "a config file")
    parser.add_argument(
        "--topology",
        type=nonblank,
        help="TPUs to compile for, which need not be attached: v5e:16x16 or v5p:4x4x8; "
        "2xv5e:16x16 is two slices (needs pip install 'jaxcredit[tpu]')",
    )
    parser.add_argument(
        "--largest",
        action="store_true",
        help="search for the largest batch that fits (three more compilations of each program)",
    )
    add_credit(parser)


def train(args, rest) -> None:
    """Run `jaxcredit train`."""
    if args.config is None:
        args.parser.print_help()
        return
    if (args.process or 0) >= (args.processes or 1) or args.coordinator and not args.processes:
        raise ValueError(
            f"--processes {args.processes}, --process {args.process}, --coordinator "
            f"{args.coordinator}: --processes is the number of processes of the job, "
            "--process is the index of this one, from 0"
        )
    if args.processes and args.processes > 1:
        _join(args)
    exp, source = loading.experiment(args.config, _config_options(args, rest), args.credit)
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
                source=source,
                profile=profile,
            )
        except Stopped as stopped:
            if not args.process:  # one message for all processes
                _print_stopped(stopped, args, folder)
            raise


def plan(args, rest) -> None:
    """Run `jaxcredit plan`."""
    if args.config is None:
        args.parser.print_help()
        return
    options = _config_options(args, rest)
    from jaxcredit.parallel import mesh
    from jaxcredit.train.planning import topology

    target = topology.tpu_topology(args.topology) if args.topology else None
    # A config may ask for the number of devices while it is loaded.
    devices = mesh.planned(target.devices) if target else contextlib.nullcontext()
    with devices:
        exp, _ = loading.experiment(args.config, options, args.credit, prog="jaxcredit plan")
        from jaxcredit.train.planning.plan import plan

        sys.exit(0 if plan(exp.check(), on=target, largest=args.largest) else 1)


def _config_options(args, rest: list[str]) -> list[str]:
    """Options for the config; with --help, the command's help is printed before the config's."""
    if not args.help:
        return rest
    args.parser.print_help()
    print(f"\n\n{args.config}, and its options:\n")
    return [*rest, "--help"]


def _print_stopped(stopped, args, folder: str) -> None:
    """Print to stderr the command that continues a stopped run."""
    words = mask_arguments([word for word in args.arguments if word != "--overwrite"])
    resume = [] if args.resume == "auto" else ["--resume", "auto"]
    again = shlex.join(["jaxcredit", *words, *resume])
    message = f"stopped as asked: {stopped.saved} in {folder}; go on with\n  {again}"
    print(plain_text.visible(message), file=sys.stderr, flush=True)


def _join(args) -> None:
    """Become one process of a job.

    All devices take part in one collective here. CPU collectives whose first meeting comes after a
    long compilation time out.
    """
    import jax
    import numpy as np

    from jaxcredit.parallel import mesh

    jax.distributed.initialize(args.coordinator, args.processes, args.process)
    devices = jax.device_count()
    sharding = mesh.batch_sharding(devices, {"batch": "all"}, mesh.make({"all": -1}))
    ones = jax.make_array_from_callback((devices,), sharding, lambda shard: np.ones(devices)[shard])
    jax.block_until_ready(jax.jit(lambda x: x.sum())(ones))
