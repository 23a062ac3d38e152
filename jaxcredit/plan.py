"""Does an experiment fit these devices? Its real programs, compiled from shapes alone; and its data and tokenizer, looked at."""

import itertools
import math
import os
import time
from collections.abc import Iterator
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jax.stages import Lowered
from rich.console import Console
from rich.table import Table

from jaxcredit import mesh, params
from jaxcredit.collect import Collected, assemble
from jaxcredit.credit import method_of
from jaxcredit.experiment import Experiment
from jaxcredit.programs import Programs, build
from jaxcredit.run import problems, steps_of
from jaxcredit.tasks import score
from jaxcredit.tasks.guard import RewardError

LOOK = 512  # prompts that are tokenised


class Unread:
    """Stands where a tokenizer would be, when only shapes are planned; `why` says what to give."""

    def __init__(self, vocab_size: int, why: str):
        self.vocab_size, self.why, self.pad_id, self.stop_ids = vocab_size, why, 0, (vocab_size - 1,)

    def encode(self, text):
        raise ValueError(self.why)

    decode = chat = save = encode


class Need(NamedTuple):
    """Bytes of one program on one device, as the compiler reports them."""

    arguments: int
    outputs: int  # without those that take the place of donated arguments
    temporaries: int
    resident: int  # parts of the training state that lie there and are no arguments

    @property
    def peak(self) -> int:
        return sum(self)


def plan(exp: Experiment, console: Console | None = None) -> bool:
    """Print what each program needs on one device, and what is wrong with the data. True where everything fits."""
    console = console or Console(soft_wrap=True)
    made, device, room = build(exp), jax.local_devices()[0], memory()
    on = f"{len(jax.tree.leaves(made.state.params)[0].sharding.device_set) if exp.mesh else 1} x {device.device_kind}"
    console.print(
        f"{exp.name}: {params.count(made.state.params):,} parameters, {method_of(exp.credit).name}, {exp.prompts} prompts x {exp.group} "
        f"answers of {max(exp.buckets)} + {exp.new} tokens on {on}{f', mesh {mesh.sizes(exp.mesh)}' if exp.mesh else ''}; "
        f"{size(room)} a device",
        highlight=False,
    )
    table = Table("program", *("arguments", "outputs", "temporaries", "other state", "peak a device", "compiled in"))
    lines, fits = [], True
    for name, lowered, resident in programs(exp, made):
        begun = time.perf_counter()
        need = measure(lowered, resident)
        good = need is not None and need.peak <= room
        took = f"{time.perf_counter() - begun:.0f} s"
        table.add_row(name, *(map(size, (*need, need.peak)) if need else ["?"] * 5), took)
        told = (
            "fits" if good else f"does not fit: {size(need.peak) if need else 'more'} of {size(room)}; try {advice(exp, made, name, room)}"
        )
        lines.append(f"[{'green' if good else 'red'}]{name} {told}[/]")
        fits &= good
    console.print(table)
    for line in lines:
        console.print(line, highlight=False)
    for good, text in data(exp):
        console.print(text, style={True: "", False: "red", None: "yellow"}[good], highlight=False, markup=False)
        fits &= good is not False
    return fits


def programs(exp: Experiment, made: Programs) -> Iterator[tuple[str, Lowered, int]]:
    """Each program of a step by name, lowered for the largest prompts, and the bytes of the state that lie beside its arguments."""
    N, P = exp.prompts, max(exp.buckets)
    state, key = made.state, jax.eval_shape(lambda: jax.random.key(0))

    def placed(tree):
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=made.batch), tree)

    def rows(n, *shape, dtype=jnp.int32):
        return placed(jax.ShapeDtypeStruct((n, *shape), dtype))

    def collected(state, prompt, valid, drawn, reward, index):
        rollout = assemble(prompt, valid, drawn, reward).with_signals(prompt=index)
        return steps_of(exp, made)["annotate"](state, Collected(rollout, [], [], {}))

    everything = nbytes(state)
    beside = everything - nbytes(state.params)
    asked = rows(N, P), rows(N, P, dtype=bool)
    yield "sample", made.sample.func.lower(state.params, *asked, key, **made.sample.keywords), beside
    n = problems(exp)[1]
    yield "evaluate", made.greedy.func.lower(state.params, rows(n, P), rows(n, P, dtype=bool), key, **made.greedy.keywords), beside

    drawn = placed(jax.eval_shape(made.sample, state.params, *asked, key))
    parts = (state, *asked, drawn, rows(N, exp.group, 1, dtype=jnp.float32), rows(N))
    if exp.signals:
        yield "signals", jax.jit(collected).lower(*parts), nbytes(state.opt_state)
    rollout = placed(jax.eval_shape(collected, *parts))
    yield "credit", made.credit.lower(rollout), everything
    columns = placed(jax.eval_shape(made.credit, rollout))
    yield "update", made.update.lower(state, rollout, columns), 0


def measure(lowered: Lowered, resident: int) -> Need | None:
    """Compile and ask the compiler; None where it found already that the memory is not enough."""
    try:
        m = lowered.compile().memory_analysis()
    except jax.errors.JaxRuntimeError as error:
        if "RESOURCE_EXHAUSTED" in str(error):
            return None
        raise
    return Need(m.argument_size_in_bytes, m.output_size_in_bytes - m.alias_size_in_bytes, m.temp_size_in_bytes, resident)


def memory() -> int:
    """Bytes of one device: what its driver says it may use; of the host its memory, shared by the devices simulated on it."""
    device = jax.local_devices()[0]
    stats = device.memory_stats() or {}
    return stats.get("bytes_limit") or os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // jax.local_device_count()


def nbytes(tree) -> int:
    """Bytes of a tree of shapes on one device."""

    def one(x):
        shape = x.sharding.shard_shape(x.shape) if x.sharding else x.shape
        return x.dtype.itemsize * math.prod(shape)

    return sum(map(one, jax.tree.leaves(tree)))


def advice(exp: Experiment, made: Programs, name: str, room: int) -> str:
    """What would make a program smaller, the least harm first."""
    cut = mesh.sizes(exp.mesh).get(exp.rules.get("batch", ""), 1)
    state, more = nbytes(made.state), "more devices along fsdp"
    if state > room:
        return f"{more}: the state alone takes {size(state)} a device, {-(-state // room)} times as many hold it; or a smaller model"
    if name == "credit":
        return f"fewer prompts (now {exp.prompts}) or {more}"
    if name != "update":
        return f"fewer prompts (now {exp.prompts}), a smaller group (now {exp.group}), shorter answers (now {exp.new} tokens), or {more}"
    ways = [] if exp.policy.remat == "full" else ["remat='full'"]
    micro = exp.micro or exp.minibatch or exp.prompts
    if micro > cut:
        ways.append(f"micro={max(d for d in range(cut, micro, cut) if micro % d == 0)} (prompts a pass, now {micro})")
    if exp.policy.vocab_chunk > 64:
        ways.append(f"vocab_chunk=64 (now {exp.policy.vocab_chunk})")
    return ", ".join([*ways, f"shorter answers (now {exp.new} tokens)", more])


def data(exp: Experiment) -> Iterator[tuple[bool | None, str]]:
    """Findings, each good, bad or (None) not looked at."""
    tokenizer, task = exp.tokenizer, exp.task
    if isinstance(tokenizer, Unread):
        yield None, f"data and tokenizer not looked at: {tokenizer.why}"
        return
    yield True, f"tokenizer: {tokenizer.vocab_size:,} ids in the policy's {exp.policy.vocab:,} rows"
    for part in ("train", "test"):
        items = list(itertools.islice(getattr(task, part), LOOK))
        ids = [tokenizer.chat(item["prompt"]) for item in items]
        longest, room = max(map(len, ids), default=0), max(exp.buckets)
        told = (
            f"{part}: {len(getattr(task, part)):,} problems of {task.name}; of the first {len(ids)} the longest prompt has {longest} tokens"
        )
        if long := sum(len(i) > room for i in ids):
            yield False, f"{told}: {long} exceed the largest bucket ({room}); add one of at least {longest}, or leave those problems out"
        else:
            yield True, f"{told}, the largest bucket {room}"
    if exp.warmup:
        long = sum(len(tokenizer.encode(item["answer"])) >= exp.new for item in itertools.islice(task.demos, LOOK))
        yield not long, f"demos: {len(task.demos):,}; {long} of the first {LOOK} are longer than new = {exp.new} tokens with the stop token"
    try:
        item = task.train[0]
        empty = score(task, [item["meta"]], [""], [[]], prompts=[item["prompt"]], timeout_s=exp.reward_timeout_s)
        yield True, f"reward: {float(empty.sum()):g} for an empty answer"
    except RewardError as error:
        yield False, f"reward: {error}"


def size(n: int) -> str:
    """Bytes to read: three figures."""
    for unit, scale in (("TB", 1e12), ("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if n >= scale:
            return f"{n / scale:.3g} {unit}" if n < 999.5 * scale else f"{n / scale:.0f} {unit}"
    return f"{n} B"
