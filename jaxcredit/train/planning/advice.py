"""Changes of an experiment that reduce the memory of a program, before a run and after it ran out of memory."""

import math
import re

from jaxcredit.parallel import mesh
from jaxcredit.train.experiment import Experiment
from jaxcredit.train.planning.memory import bytes_per_device, device_memory, format_bytes
from jaxcredit.train.programs import Programs

STAY = "sampling_rules=None (weights stay where they lie to train, and each layer is gathered for each token)"


def smaller(exp: Experiment, made: Programs, name: str, room: int) -> str:
    """What would make a program smaller, the least harm first."""
    cut = mesh.shard_count("batch", exp.rules, exp.mesh)
    state, more = bytes_per_device(made.state), "more devices along fsdp"
    if state > room:
        return f"{more}: the state alone takes {format_bytes(state)} a device, {-(-state // room)} times as many hold it; or a smaller model"
    if name == "credit":
        return f"fewer prompts (now {exp.prompts_per_step}) or {more}"
    if name != "update":
        if exp.sampling_rules is not None:
            more = f"{STAY}, or {more}"
        if name == "reshard":
            return more
        return f"fewer prompts (now {exp.prompts_per_step}), a smaller group (now {exp.group_size}), shorter answers (now {exp.max_new_tokens} tokens), or {more}"
    ways = [] if exp.policy.remat == "full" else ["remat='full'"]
    micro = exp.micro_batch or exp.minibatch or exp.prompts_per_step
    if micro > cut:
        ways.append(
            f"micro_batch={max(d for d in range(cut, micro, cut) if micro % d == 0)} (prompts a pass, now {micro})"
        )
    if exp.policy.vocab_chunk > 64:
        ways.append(f"vocab_chunk=64 (now {exp.policy.vocab_chunk})")
    return ", ".join([*ways, f"shorter answers (now {exp.max_new_tokens} tokens)", more])


def after_failure(exp: Experiment, programs: Programs, name: str, said: str) -> str:
    """Which knobs of the config make it fit, the least harm first, and how far each must be turned."""
    room, state = device_memory(), bytes_per_device(programs.state)
    asked = requested(said)
    over = max(2.0, asked / max(room - state, 1)) if asked else 2.0
    shards = (
        exp.prompts_per_step // programs.batch.shard_shape((exp.prompts_per_step,))[0]
        if programs.batch
        else 1
    )
    ways, devices = [], len(programs.batch.device_set) if programs.batch else 1
    if state > 0.7 * room:
        ways.append(
            f"more devices: parameters and optimizer alone take {format_bytes(state)} of {format_bytes(room)}; mesh={{'fsdp': {2 * devices}}}"
        )
        ways.append("or moments in bfloat16 (optax.adamw(mu_dtype='bfloat16')), or a smaller model")
    micro = exp.micro_batch or exp.minibatch or exp.prompts_per_step
    if name == "update":
        if exp.policy.remat != "full":
            ways.append(
                "remat='full' (a third more time, a layer's inputs instead of all activations)"
            )
        if fewer := _divisor(micro, shards, over):
            ways.append(
                f"micro_batch={fewer} (prompts a pass, now {micro}: activations shrink to {fewer / micro:.0%}, the numbers stay the same)"
            )
        chunk = exp.policy.vocab_chunk
        if chunk > 64:
            ways.append(
                f"vocab_chunk={max(64, 2 ** int(math.log2(chunk / over)))} (logits at once, now {chunk})"
            )
        ways.append(
            f"max_new_tokens={max(1, int(exp.max_new_tokens / over))} (tokens an answer, now {exp.max_new_tokens})"
        )
    else:
        rows = exp.prompts_per_step * exp.group_size
        if fewer := _divisor(exp.prompts_per_step, shards, over):
            ways.append(
                f"prompts_per_step={fewer} (a step, now {exp.prompts_per_step}: {rows} answers are sampled at once)"
            )
        ways += [STAY] if exp.sampling_rules is not None else []
        ways += (
            [f"group_size={max(2, int(exp.group_size / over))} (now {exp.group_size})"]
            if exp.group_size > 2
            else []
        )
        ways.append(
            f"max_new_tokens={max(1, int(exp.max_new_tokens / over))} (tokens an answer, now {exp.max_new_tokens}: their keys and values are kept)"
        )
    first = " ".join(said.split())[:300]
    told = f"out of memory in {name} on {format_bytes(room)} a device. Try, the least harm first: {'; '.join(ways)}."
    return f"{told} `jaxcredit plan` tells before a run. ({first})"


def requested(said: str) -> float | None:
    """The bytes that were asked for, as the error tells them."""
    units = {"": 1, "B": 1, "K": 2**10, "M": 2**20, "G": 2**30, "T": 2**40}
    found = re.search(
        r"(?:allocate|allocating|Used|request(?:ed)?(?: size)?)\D{0,3}([\d.]+)\s*([KMGT]?)i?B?",
        said,
    )
    return float(found[1].rstrip(".")) * units[found[2]] if found else None


def _divisor(size: int, shards: int, over: float) -> int | None:
    """The largest divisor of `size` that is a multiple of `shards` and at most size / over, or the least; None: there is none smaller."""
    fitting = [d for d in range(shards, size, shards) if size % d == 0]
    return max([d for d in fitting if d <= size / over] or fitting[:1], default=None)
