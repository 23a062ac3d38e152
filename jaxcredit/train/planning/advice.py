"""Changes of an experiment that reduce the memory of its programs."""

import math
import re

from jaxcredit.parallel import mesh
from jaxcredit.train.experiment import Experiment
from jaxcredit.train.planning.memory import bytes_per_device, device_memory, format_bytes
from jaxcredit.train.programs import Programs

KEEP_TRAINING_SHARDING = (
    "sampling_rules=None (sample with the sharding of training; "
    "each layer is gathered for each token)"
)


def memory_advice(
    exp: Experiment, programs: Programs, name: str, capacity: int, excess: float = 2.0
) -> list[str]:
    """Changes that reduce the memory of a program, the least harmful first.

    Args:
        exp: the experiment.
        programs: its programs.
        name: the program: "reshard", "sample", "evaluate", "signals", "credit" or "update".
        capacity: bytes of a device.
        excess: factor by which the memory beyond the training state has to shrink.

    Returns:
        Options of the experiment with new values, and other changes, as text.
    """
    state = bytes_per_device(programs.state)
    state_advice = [
        _more_devices(exp, state, capacity),
        "moments in bfloat16 (optax.adamw(mu_dtype='bfloat16')), or a smaller model",
    ]
    if state > capacity:
        return state_advice
    if name == "update":
        changes = _update_advice(exp, excess)
    else:
        changes = _batch_advice(exp, excess) if name != "reshard" else []
        if name in ("reshard", "sample", "evaluate") and exp.sampling_rules is not None:
            changes.append(KEEP_TRAINING_SHARDING)
    if state > 0.7 * capacity:
        return [*state_advice, *changes]
    return [*changes, "more devices along fsdp"]


def out_of_memory_message(exp: Experiment, programs: Programs, name: str, error: str) -> str:
    """Message for a program that ran out of memory, with the changes that make it fit.

    Args:
        exp: the experiment.
        programs: its programs.
        name: the program that failed.
        error: message of the runtime.
    """
    capacity, requested = device_memory(), requested_bytes(error)
    available = max(capacity - bytes_per_device(programs.state), 1)
    excess = max(2.0, requested / available) if requested else 2.0
    changes = "; ".join(memory_advice(exp, programs, name, capacity, excess))
    return (
        f"out of memory in {name} on {format_bytes(capacity)} a device. "
        f"Try, the least harmful first: {changes}. "
        f"`jaxcredit plan` checks the memory before a run. ({' '.join(error.split())[:300]})"
    )


def requested_bytes(error: str) -> float | None:
    """Bytes that a failed allocation asked for; None if the error message does not contain them.

    >>> requested_bytes("Out of memory while trying to allocate 25.5GiB")
    27380416512.0
    """
    units = {"": 1, "B": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
    match = re.search(
        r"(?:allocate|allocating|Used|request(?:ed)?(?: size)?)\D{0,3}([\d.]+)\s*([KMGT]?)i?B?",
        error,
    )
    return float(match[1].rstrip(".")) * units[match[2]] if match else None


def _more_devices(exp: Experiment, state: int, capacity: int) -> str:
    devices = math.prod(mesh.axis_sizes(exp.mesh).values()) if exp.mesh else 1
    needed = devices * 2 ** max(1, math.ceil(math.log2(state / capacity)))
    return (
        f"more devices: parameters and optimizer alone take {format_bytes(state)} of "
        f"{format_bytes(capacity)} a device; mesh={{'fsdp': {needed}}}"
    )


def _update_advice(exp: Experiment, excess: float) -> list[str]:
    changes = []
    if exp.policy.remat != "full":
        changes.append(
            "remat='full' (a third more time; a layer's inputs are stored, not all activations)"
        )
    size = exp.micro_batch or exp.minibatch or exp.prompts_per_step
    if smaller := _divisor(size, mesh.shard_count("batch", exp.rules, exp.mesh), excess):
        changes.append(
            f"micro_batch={smaller} (prompts a pass, now {size}: activations shrink to "
            f"{smaller / size:.0%}, the numbers stay the same)"
        )
    if exp.policy.vocab_chunk > 64:
        chunk = max(64, 2 ** int(math.log2(exp.policy.vocab_chunk / excess)))
        changes.append(f"vocab_chunk={chunk} (logits at once, now {exp.policy.vocab_chunk})")
    return [*changes, _shorter_answers(exp, excess)]


def _batch_advice(exp: Experiment, excess: float) -> list[str]:
    changes = []
    shards = mesh.shard_count("batch", exp.rules, exp.mesh)
    if fewer := _divisor(exp.prompts_per_step, shards, excess):
        rows = exp.prompts_per_step * exp.group_size
        changes.append(
            f"prompts_per_step={fewer} (a step, now {exp.prompts_per_step}: "
            f"{rows} answers are sampled at once)"
        )
    if exp.group_size > 2:
        group = max(2, int(exp.group_size / excess))
        changes.append(f"group_size={group} (answers per prompt, now {exp.group_size})")
    return [*changes, _shorter_answers(exp, excess)]


def _shorter_answers(exp: Experiment, excess: float) -> str:
    tokens = max(1, int(exp.max_new_tokens / excess))
    return f"max_new_tokens={tokens} (tokens an answer, now {exp.max_new_tokens})"


def _divisor(size: int, shards: int, excess: float) -> int | None:
    """Largest divisor of `size` that is a multiple of `shards` and at most size / excess.

    If there is none, the smallest such divisor below `size`; None if there is none either.
    """
    divisors = [d for d in range(shards, size, shards) if size % d == 0]
    return max([d for d in divisors if d <= size / excess] or divisors[:1], default=None)
