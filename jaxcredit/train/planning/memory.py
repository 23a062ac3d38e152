"""Memory of compiled programs on one device, and the largest batch that fits."""

import dataclasses
import math
import os
import re
import time
from collections.abc import Callable
from typing import NamedTuple

import jax
from jax.sharding import Mesh
from jax.stages import Compiled, Lowered

from jaxcredit.parallel import mesh
from jaxcredit.train.experiment import Experiment
from jaxcredit.train.planning import collectives

GIB = 2**30
MOST_PROMPTS = 4096  # per shard; for larger batches the host limits the speed of a step
UNITS = ("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20), ("kiB", 2**10)
# Sizes in the messages of a compiler that refuses a program. Only the first includes the arguments.
_REFUSED_SIZES = (
    r"Used ([\d.]+)([KMGT]) of",
    r"HLO temporaries \(([\d.]+)([KMGT])\)",
    r"allocat\w+ ([\d.]+)([KMGT])i?B?",
)


class MemoryUse(NamedTuple):
    """Bytes of one program on one device, as the compiler reports them.

    Attributes:
        arguments: arguments.
        outputs: outputs that do not reuse the memory of donated arguments.
        temporaries: temporary arrays.
        resident: parts of the training state on the device that are not arguments.
    """

    arguments: int
    outputs: int
    temporaries: int
    resident: int

    @property
    def peak(self) -> int:
        """Sum of all four."""
        return sum(self)


class CompiledProgram(NamedTuple):
    """Result of compiling one program.

    Attributes:
        memory: bytes on one device.
        seconds: time of compilation.
        sent: bytes that one device sends, by (kind of collective, mesh axis).
        refused: whether the compiler refused the program because it does not fit. `memory` then has
            only the sizes in the compiler's message.
    """

    memory: MemoryUse
    seconds: float
    sent: dict[tuple[str, str], float]
    refused: bool = False


def measure(lowered: Lowered, resident: int, devices: Mesh | None = None) -> CompiledProgram:
    """Compile a program, and measure its memory and communication.

    Args:
        lowered: the program.
        resident: bytes of the training state on a device that are not arguments of the program.
        devices: mesh of the program; None: one device.
    """
    begun = time.perf_counter()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        total = sum(_array_bytes(info) for info in jax.tree.leaves(lowered.in_avals))
        arguments = math.ceil(total / (devices.size if devices else 1))
        use = _refused_use(str(error), arguments, resident)
        return CompiledProgram(use, time.perf_counter() - begun, {}, True)
    sent = collectives.bytes_sent(compiled.as_text() or "", devices) if devices else {}
    return CompiledProgram(memory_use(compiled, resident), time.perf_counter() - begun, sent)


def memory_use(compiled: Compiled, resident: int) -> MemoryUse:
    """Memory of a compiled program on one device.

    Args:
        compiled: the program.
        resident: bytes of the training state on a device that are not arguments of the program.
    """
    analysis = compiled.memory_analysis()
    assert analysis is not None
    return MemoryUse(
        analysis.argument_size_in_bytes,
        analysis.output_size_in_bytes - analysis.alias_size_in_bytes,
        analysis.temp_size_in_bytes,
        resident,
    )


def with_batch_size(exp: Experiment, shards: int, prompts: int) -> Experiment:
    """The experiment with `prompts` prompts on each of `shards` shards, in one pass."""
    total = shards * prompts
    return dataclasses.replace(
        exp, prompts_per_step=total, minibatch=None, micro_batch=None, eval_prompts=total
    )


def largest_batch(
    exp: Experiment, capacity: int, compile_program: Callable[[Experiment], CompiledProgram]
) -> str:
    """Largest number of prompts that fit in one pass of a program, as text.

    Batches of one and two prompts per shard are compiled, and their memory is extrapolated
    linearly. The batch that this predicts is compiled too.

    Args:
        exp: the experiment.
        capacity: bytes of a device.
        compile_program: compiles the program of an experiment, and measures it.
    """
    shards = mesh.shard_count("batch", exp.rules, exp.mesh)
    one, two = (compile_program(with_batch_size(exp, shards, k)) for k in (1, 2))
    if one.refused or one.memory.peak > capacity:
        return "not one prompt per shard in one pass"
    if two.refused:
        return f"{shards} prompts in one pass (the compiler refuses two per shard)"
    slope = max(two.memory.peak - one.memory.peak, 1)
    prompts = min(1 + (capacity - one.memory.peak) // slope, MOST_PROMPTS)
    text = f"{prompts * shards:,} prompts ({prompts * shards * exp.group_size:,} rows) in one pass"
    if prompts <= 2:
        return text
    third = compile_program(with_batch_size(exp, shards, prompts))
    if not third.refused and third.memory.peak <= capacity:
        return f"{text}, {third.memory.peak / GIB:.3g} GiB"
    return f"less than {text}, the extrapolation of two compilations: this batch does not fit"


def device_memory() -> int:
    """Bytes of one device that programs may use.

    On a CPU: the host's memory, divided by the number of devices simulated on it.
    """
    stats = jax.local_devices()[0].memory_stats() or {}
    host = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return stats.get("bytes_limit") or host // jax.local_device_count()


def bytes_per_device(tree) -> int:
    """Bytes of a tree of arrays or shapes on one device, according to their shardings."""

    def size(x):
        shape = x.sharding.shard_shape(x.shape) if x.sharding else x.shape
        return x.dtype.itemsize * math.prod(shape)

    return sum(map(size, jax.tree.leaves(tree)))


def format_bytes(n: int) -> str:
    """Bytes as text with a unit and three digits.

    >>> format_bytes(3 * 2**20 + 2**18)
    '3.25 MiB'
    """
    text, unit = byte_format(n)
    return f"{text(n)} {unit}"


def byte_format(n: int) -> tuple[Callable[[int], str], str]:
    """Function that formats bytes in the unit that suits `n`, and the unit.

    >>> text, unit = byte_format(2**30)
    >>> text(2**29), unit
    ('0.5', 'GiB')
    """
    unit, scale = next(((unit, scale) for unit, scale in UNITS if n >= scale), ("B", 1))
    return (lambda m: f"{m / scale:.4g}" if m >= 10 * scale else f"{m / scale:.3g}"), unit


def _array_bytes(x) -> int:
    return x.size * x.dtype.itemsize if hasattr(x.dtype, "itemsize") else 8  # PRNG keys: 8


def _refused_use(text: str, arguments: int, resident: int) -> MemoryUse:
    """Memory of a refused program according to the compiler's message; 0 for unknown sizes."""
    for i, pattern in enumerate(_REFUSED_SIZES):
        if match := re.search(pattern, text):
            size = int(float(match[1]) * 1024 ** ("KMGT".index(match[2]) + 1))
            return MemoryUse(arguments if i else 0, 0, size, resident)
    return MemoryUse(arguments, 0, 0, resident)
