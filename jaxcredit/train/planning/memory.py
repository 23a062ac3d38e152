"""What one compiled program needs of a device, from shapes alone: bytes, what it sends, and the largest batch it could take."""

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
_ASKED = (
    r"Used ([\d.]+)([KMGT]) of",
    r"HLO temporaries \(([\d.]+)([KMGT])\)",
    r"allocat\w+ ([\d.]+)([KMGT])i?B?",
)


class MemoryUse(NamedTuple):
    """Bytes of one program on one device, as the compiler reports them."""

    arguments: int
    outputs: int  # without those that take the place of donated arguments
    temporaries: int
    resident: int  # parts of the training state that lie there and are no arguments

    @property
    def peak(self) -> int:
        return sum(self)


class CompiledProgram(NamedTuple):
    """One program, compiled or refused."""

    need: MemoryUse
    seconds: float
    sent: dict[
        tuple[str, str], float
    ]  # bytes a device sends, by kind of collective and axis of the mesh
    refused: bool = (
        False  # the compiler found that it does not fit; `need` knows no more than what it said
    )


def measure(lowered: Lowered, resident: int, where: Mesh | None = None) -> CompiledProgram:
    """Compile and ask the compiler."""
    begun = time.perf_counter()
    try:
        compiled = lowered.compile()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" not in str(error):
            raise
        own = math.ceil(
            sum(_bytes(info) for info in jax.tree.leaves(lowered.in_avals))
            / (where.size if where else 1)
        )
        return CompiledProgram(
            _refusal(str(error), own, resident), time.perf_counter() - begun, {}, True
        )
    sends = collectives.bytes_sent(compiled.as_text() or "", where) if where else {}
    return CompiledProgram(memory_use(compiled, resident), time.perf_counter() - begun, sends)


def memory_use(compiled: Compiled, resident: int) -> MemoryUse:
    m = compiled.memory_analysis()
    assert m is not None
    return MemoryUse(
        m.argument_size_in_bytes,
        m.output_size_in_bytes - m.alias_size_in_bytes,
        m.temp_size_in_bytes,
        resident,
    )


def _bytes(x) -> int:
    return x.size * x.dtype.itemsize if hasattr(x.dtype, "itemsize") else 8


def _refusal(text: str, arguments: int, resident: int) -> MemoryUse:
    """What the compiler says that a program it refuses would take; 0 where it says nothing."""
    for i, pattern in enumerate(_ASKED):
        if found := re.search(pattern, text):
            asked = int(float(found[1]) * 1024 ** ("KMGT".index(found[2]) + 1))
            return MemoryUse(
                arguments if i else 0, 0, asked, resident
            )  # only the first counts the arguments too
    return MemoryUse(arguments, 0, 0, resident)


def with_batch_size(exp: Experiment, shards: int, prompts: int) -> Experiment:
    """The experiment with so many prompts on each of the shards, all of them in one pass."""
    n = shards * prompts
    return dataclasses.replace(
        exp, prompts_per_step=n, minibatch=None, micro_batch=None, eval_prompts=n
    )


def largest_batch(exp: Experiment, room: int, ask: Callable[[Experiment], CompiledProgram]) -> str:
    """How many prompts fit: two batches are compiled, a line is drawn through their bytes, and the batch where it ends is compiled too."""
    shards = mesh.shard_count("batch", exp.rules, exp.mesh)
    one, two = (ask(with_batch_size(exp, shards, k)) for k in (1, 2))
    if one.refused or one.need.peak > room:
        return "not one prompt a shard in one pass"
    if two.refused:
        return f"{shards} prompts in one pass (two a shard are refused)"
    slope = max(two.need.peak - one.need.peak, 1)
    most = 1 + (room - one.need.peak) // slope
    most = min(most, 4096)  # beyond this the host's part of a step is what ends
    told = f"{most * shards:,} prompts ({most * shards * exp.group_size:,} rows) in one pass"
    if most <= 2:
        return told
    third = ask(with_batch_size(exp, shards, most))
    if not third.refused and third.need.peak <= room:
        return f"{told}, {third.need.peak / GIB:.3g} GiB"
    return f"less than {told}, where a line through two compilations ends: a third one does not fit"


UNITS = ("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20), ("kiB", 2**10)


def device_memory() -> int:
    """Bytes of one device: what its driver says it may use; of the host its memory, shared by the devices simulated on it."""
    device = jax.local_devices()[0]
    stats = device.memory_stats() or {}
    return (
        stats.get("bytes_limit")
        or os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // jax.local_device_count()
    )


def bytes_per_device(tree) -> int:
    """Bytes of a tree of shapes on one device."""

    def one(x):
        shape = x.sharding.shard_shape(x.shape) if x.sharding else x.shape
        return x.dtype.itemsize * math.prod(shape)

    return sum(map(one, jax.tree.leaves(tree)))


def format_bytes(n: int) -> str:
    """Bytes to read: three figures."""
    text, unit = byte_format(n)
    return f"{text(n)} {unit}"


def byte_format(n: int) -> tuple[Callable[[int], str], str]:
    """How to write bytes beside `n` of them, and in which unit."""
    unit, scale = next(((unit, scale) for unit, scale in UNITS if n >= scale), ("B", 1))
    return (lambda m: f"{m / scale:.4g}" if m >= 10 * scale else f"{m / scale:.3g}"), unit
