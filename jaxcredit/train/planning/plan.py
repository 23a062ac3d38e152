"""Plan of an experiment: whether its compiled programs fit the devices, and its data check."""

import dataclasses
import math

import jax
import jax.numpy as jnp
from jax.sharding import Mesh
from rich.console import Console
from rich.text import Text

from jaxcredit.credit import method_of
from jaxcredit.parallel import mesh, params
from jaxcredit.train.experiment import Experiment
from jaxcredit.train.planning import flops, memory
from jaxcredit.train.planning.advice import memory_advice
from jaxcredit.train.planning.data_check import check_data
from jaxcredit.train.planning.lowering import lowered_programs
from jaxcredit.train.planning.topology import Topology
from jaxcredit.train.programs import Programs, build
from jaxcredit.utils import progress
from jaxcredit.utils.plain_text import cell, visible


def plan(
    exp: Experiment,
    console: Console | None = None,
    *,
    on: Topology | None = None,
    largest: bool = False,
) -> bool:
    """Compile the programs of an experiment from shapes, and print what they need.

    Every program gets a line with its memory, FLOPs and communication on one device. Findings about
    the data follow.

    Args:
        exp: the experiment.
        console: where to print (default: standard output).
        on: devices to plan for, which this machine need not have; None: those of this machine.
        largest: also search the largest batch of each program, with three more compilations.

    Returns:
        Whether all programs fit, and the training can use the data.

    Raises:
        ValueError: the mesh has another number of devices than `on`.
    """
    console = console or Console(soft_wrap=True)
    if on is None:
        kind = jax.local_devices()[0].device_kind
        return _plan(exp, console, kind, memory.device_memory(), largest)
    exp = exp if exp.mesh else dataclasses.replace(exp, mesh={"fsdp": len(on.devices)})
    with mesh.planned(on.devices):
        sizes = mesh.axis_sizes(exp.mesh)
        if math.prod(sizes.values()) != len(on.devices):
            raise ValueError(
                f"{on.name} has {len(on.devices)} devices, the mesh {sizes} takes another number: "
                "use them all"
            )
        kind = f"{on.devices[0].device_kind} ({on.name})"
        return _plan(exp.check(), console, kind, on.memory, largest)


def _plan(exp: Experiment, console: Console, kind: str, capacity: int, largest: bool) -> bool:
    """Print the plan for devices of `kind` with `capacity` bytes. Returns whether all is well."""
    programs = build(exp)
    devices = mesh.make(exp.mesh) if exp.mesh else None
    console.print(cell(_headline(exp, programs, devices, kind, capacity)))
    all_good = True
    for name, lowered, resident in lowered_programs(exp, programs):
        with progress.shown("plan") as tell:
            tell(f"compiling {name}")
            compiled = memory.measure(lowered, resident, devices)
        fits = not compiled.refused and compiled.memory.peak <= capacity
        all_good &= fits
        line = describe_program(exp, programs, name, compiled, capacity)
        console.print(Text(f"{name} {line}", style="green" if fits else "red"))
        if largest and name != "evaluate":  # evaluation runs in batches of any size
            with progress.shown("plan") as tell:
                tell(f"largest batch of {name}")
                most = memory.largest_batch(
                    exp, capacity, lambda other, name=name: _compile_program(other, name)
                )
            console.print(Text(f"  largest: {most}"))
    for verdict, text in check_data(exp):
        style = {True: "", False: "red", None: "yellow"}[verdict]
        console.print(Text(visible(text, "  "), style=style))
        all_good &= verdict is not False
    return all_good


def _headline(
    exp: Experiment, programs: Programs, devices: Mesh | None, kind: str, capacity: int
) -> str:
    shape = f", mesh {dict(devices.shape)}" if devices else ""
    return (
        f"{exp.name}: {params.count(programs.state.params):,} parameters, "
        f"{method_of(exp.credit).name}, {exp.prompts_per_step} prompts x {exp.group_size} "
        f"answers of {max(exp.buckets)} + {exp.max_new_tokens} tokens on "
        f"{devices.size if devices else 1} x {kind}{shape}, "
        f"attention {programs.attention}; {memory.format_bytes(capacity)} a device"
    )


def _compile_program(exp: Experiment, name: str) -> memory.CompiledProgram:
    for other, lowered, resident in lowered_programs(exp, build(exp)):
        if other == name:
            return memory.measure(lowered, resident)
    raise KeyError(name)


def describe_program(
    exp: Experiment,
    programs: Programs,
    name: str,
    compiled: memory.CompiledProgram,
    capacity: int,
) -> str:
    """Description of a compiled program: whether it fits, and its memory, FLOPs and communication.

    Args:
        exp: the experiment.
        programs: its programs.
        name: name of the program, as `lowered_programs` has it.
        compiled: measurements of the program.
        capacity: bytes of a device.

    Returns:
        Text that begins with "fits" or "does not fit". The latter has advice.
    """
    use, (text, unit) = compiled.memory, memory.byte_format(capacity)
    if use.peak:
        share = f"{text(use.peak)} of {text(capacity)} {unit} a device"
    else:
        share = f"more than {text(capacity)} {unit} a device"
    if compiled.refused or use.peak > capacity:
        state = memory.bytes_per_device(programs.state)
        excess = max(2.0, (use.peak - state) / max(capacity - state, 1))
        changes = "; ".join(memory_advice(exp, programs, name, capacity, excess))
        return f"does not fit: {share} (temporaries {text(use.temporaries)}); try {changes}"
    parts = {
        "arguments": use.arguments,
        "outputs": use.outputs,
        "temporaries": use.temporaries,
        "other state": use.resident,
    }
    details = [", ".join(f"{part} {memory.format_bytes(n)}" for part, n in parts.items() if n)]
    if operations := _flops(exp, name):
        details.append(f"{operations:.3g} FLOP")
    if compiled.sent:
        details.append(f"each device sends {_describe_sent(compiled.sent)}")
    return f"fits: {share} ({'; '.join(details)}); compiled in {compiled.seconds:.0f} s"


def _describe_sent(sent: dict[tuple[str, str], float]) -> str:
    axes: dict[str, list[str]] = {}
    for (kind, axis), n in sorted(sent.items(), key=lambda item: -item[1]):
        axes.setdefault(axis, []).append(f"{kind} {memory.format_bytes(int(n))}")
    return "; ".join(f"{axis}: {', '.join(kinds)}" for axis, kinds in axes.items())


def _flops(exp: Experiment, name: str) -> float:
    """FLOPs of a program for full batches of full length, recomputation excluded; 0 if unknown."""
    P, n = max(exp.buckets), exp.held_out()[1]
    batches = {
        "sample": (exp.prompts_per_step, exp.group_size, 1),
        "evaluate": (n, 1, 1),
        "update": (exp.prompts_per_step, exp.group_size, 3 * exp.epochs),
    }
    if name not in batches:
        return 0.0
    prompts, rows, passes = batches[name]
    lengths = jnp.full(prompts, P), jnp.full((prompts, rows), exp.max_new_tokens)
    return passes * float(flops.forward_flops(exp.policy, *lengths))
