"""Does an experiment fit these devices? Its real programs, compiled from shapes alone; and its data and tokenizer, looked at."""

import dataclasses
import itertools
import math
import os
from collections.abc import Callable, Iterator

import jax
import jax.numpy as jnp
from jax.stages import Lowered
from rich.console import Console
from rich.text import Text

from jaxcredit.collect.single_turn import Collected, assemble
from jaxcredit.credit import method_of
from jaxcredit.parallel import mesh, params
from jaxcredit.tasks import score
from jaxcredit.tasks.scoring import RewardError
from jaxcredit.tasks.workers import stays
from jaxcredit.train.experiment import Experiment
from jaxcredit.train.planning import flops
from jaxcredit.train.planning import memory as fit
from jaxcredit.train.planning.topology import Topology
from jaxcredit.train.programs import Programs, build
from jaxcredit.train.run import problems, steps_of
from jaxcredit.utils import progress
from jaxcredit.utils.plain_text import cell, visible

LOOK = 512  # prompts that are tokenised
STAY = "sampling=None (weights stay where they lie to train, and each layer is gathered for each token)"


class Unread:
    """Stands where a tokenizer would be, when only shapes are planned; `why` says what to give."""

    def __init__(self, vocab_size: int, why: str):
        self.vocab_size, self.why, self.pad_id, self.stop_ids = vocab_size, why, 0, (vocab_size - 1,)

    def encode(self, text):
        raise ValueError(self.why)

    decode = chat = save = encode


def plan(exp: Experiment, console: Console | None = None, *, on: Topology | None = None, largest: bool = False) -> bool:
    """Print a line for each program, what it needs on one device, and what is wrong with the data. True where everything fits.

    `on`: TPUs to plan for that need not be here. `largest`: look for the largest batch too, at the price of three compilations more.
    """
    console = console or Console(soft_wrap=True)
    if on is None:
        return _plan(exp, console, jax.local_devices()[0].device_kind, memory(), largest)
    exp = exp if exp.mesh else dataclasses.replace(exp, mesh={"fsdp": len(on.devices)})
    with mesh.planned(on.devices):
        if math.prod(mesh.sizes(exp.mesh).values()) != len(on.devices):
            raise ValueError(f"{on.name} has {len(on.devices)} devices, the mesh {mesh.sizes(exp.mesh)} takes another number: use them all")
        return _plan(exp.check(), console, f"{on.devices[0].device_kind} ({on.name})", on.memory, largest)


def _plan(exp: Experiment, console: Console, kind: str, room: int, largest: bool) -> bool:
    made = build(exp)
    where = mesh.make(exp.mesh) if exp.mesh else None
    told = (
        f"{exp.name}: {params.count(made.state.params):,} parameters, {method_of(exp.credit).name}, {exp.prompts} prompts x {exp.group} "
        f"answers of {max(exp.buckets)} + {exp.new} tokens on {where.size if where else 1} x {kind}"
        f"{f', mesh {dict(where.shape)}' if where else ''}, attention {made.attention}; {size(room)} a device"
    )
    console.print(cell(told))
    good = True
    for name, lowered, resident in programs(exp, made):
        with progress.shown("plan") as tell:
            tell(f"compiling {name}")
            found = fit.measure(lowered, resident, where)
        good &= (fine := not found.refused and found.need.peak <= room)
        console.print(Text(f"{name} {verdict(exp, made, name, found, room)}", style="green" if fine else "red"))
        if largest and name != "evaluate":  # which takes as many as there are, a batch at a time
            with progress.shown("plan") as tell:
                tell(f"largest batch of {name}")
                most = fit.largest(exp, room, lambda e, name=name: _one(e, name))
            console.print(Text(f"  largest: {most}"))
    for fine, text in data(exp):
        console.print(Text(visible(text, "  "), style={True: "", False: "red", None: "yellow"}[fine]))
        good &= fine is not False
    return good


def _one(exp: Experiment, name: str) -> fit.Fit:
    made = build(exp)
    lowered, resident = next((lowered, resident) for found, lowered, resident in programs(exp, made) if found == name)
    return fit.measure(lowered, resident)


def verdict(exp: Experiment, made: Programs, name: str, found: fit.Fit, room: int) -> str:
    """fits or not, bytes, FLOPs, what is sent, and how long it took to compile."""
    need, (peak, unit) = found.need, _scale(room)
    of = f"{peak(need.peak)} of {peak(room)} {unit} a device" if need.peak else f"more than {peak(room)} {unit} a device"
    if found.refused or need.peak > room:
        return f"does not fit: {of} (temporaries {peak(need.temporaries)}); try {advice(exp, made, name, room)}"
    parts = {"arguments": need.arguments, "outputs": need.outputs, "temporaries": need.temporaries, "other state": need.resident}
    told = [", ".join(f"{what} {size(n)}" for what, n in parts.items() if n)]
    if operations := _flops(exp, name):
        told.append(f"{operations:.3g} FLOP")
    if found.sent:
        axes: dict[str, list[str]] = {}
        for (kind, axis), n in sorted(found.sent.items(), key=lambda item: -item[1]):
            axes.setdefault(axis, []).append(f"{kind} {size(int(n))}")
        told.append("each device sends " + "; ".join(f"{axis}: {', '.join(kinds)}" for axis, kinds in axes.items()))
    return f"fits: {of} ({'; '.join(told)}); compiled in {found.seconds:.0f} s"


def _flops(exp: Experiment, name: str) -> float:
    """Of the whole batch at full length, by arithmetic: what the model needs, recomputation left out."""
    P, n = max(exp.buckets), problems(exp)[1]
    full = {"sample": (exp.prompts, exp.group, 1), "evaluate": (n, 1, 1), "update": (exp.prompts, exp.group, 3 * exp.epochs)}
    if name not in full:
        return 0.0
    prompts, rows, passes = full[name]
    return passes * float(flops.forward(exp.policy, jnp.full(prompts, P), jnp.full((prompts, rows), exp.new)))


def programs(exp: Experiment, made: Programs) -> Iterator[tuple[str, Lowered, int]]:
    """Each program of a step by name, lowered for the largest prompts, and the bytes of the state that lie beside its arguments."""
    N, P = exp.prompts, max(exp.buckets)
    state, key = made.state, jax.eval_shape(lambda: jax.random.key(0))

    def placed(tree):
        return jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=made.batch), tree)

    def rows(n, *shape, dtype=jnp.int32):
        return placed(jax.ShapeDtypeStruct((n, *shape), dtype))

    def collected(state, prompt, valid, drawn, reward, index):
        rollout = assemble(prompt, valid, drawn, reward, jnp.ones(reward.shape, bool)).with_signals(prompt=index)
        return steps_of(exp, made)["annotate"](state, Collected(rollout, [], [], {}))

    everything = nbytes(state)
    weights, beside = state.params, everything - nbytes(state.params)
    asked = rows(N, P), rows(N, P, dtype=bool)
    if made.settle:
        yield "settle", made.settle.lower(weights), beside
        weights, beside = jax.eval_shape(made.settle, weights), everything
    sampling = made.draw.lower(weights, *asked, key, **made.sample.keywords)
    yield "sample", sampling, beside
    n = problems(exp)[1]
    yield "evaluate", made.draw.lower(weights, rows(n, P), rows(n, P, dtype=bool), key, **made.greedy.keywords), beside

    drawn = placed(sampling.out_info)  # tracing made.sample would put one jit inside another, which may not have compiler options
    parts = (state, *asked, drawn, rows(N, exp.group, 1, dtype=jnp.float32), rows(N))
    if exp.signals:
        yield "signals", jax.jit(collected).lower(*parts), nbytes(state.opt_state)
    rollout = placed(jax.eval_shape(collected, *parts))
    yield "credit", made.credit.lower(rollout), everything
    columns = placed(jax.eval_shape(made.credit, rollout))
    yield "update", made.update.lower(state, rollout, columns), 0


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
    cut = mesh.ways("batch", exp.rules, exp.mesh)
    state, more = nbytes(made.state), "more devices along fsdp"
    if state > room:
        return f"{more}: the state alone takes {size(state)} a device, {-(-state // room)} times as many hold it; or a smaller model"
    if name == "credit":
        return f"fewer prompts (now {exp.prompts}) or {more}"
    if name != "update":
        if exp.sampling is not None:
            more = f"{STAY}, or {more}"
        if name == "settle":
            return more
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
        how = {"timeout_s": exp.reward_timeout_s, "workers": exp.reward_workers}
        empty = float(score(task, [item["meta"]], [""], [[]], prompts=[item["prompt"]], **how).sum())
        runs = f"in this process ({why})" if (why := stays(task.reward)) or not exp.reward_workers else "in a process of its own"
        yield True, f"reward: {'unscored (None)' if math.isnan(empty) else f'{empty:g}'} for an empty answer; it runs {runs}"
    except RewardError as error:
        yield False, f"reward: {error}"


UNITS = ("TiB", 2**40), ("GiB", 2**30), ("MiB", 2**20), ("kiB", 2**10)


def size(n: int) -> str:
    """Bytes to read: three figures."""
    text, unit = _scale(n)
    return f"{text(n)} {unit}"


def _scale(n: int) -> tuple[Callable[[int], str], str]:
    """How to write bytes beside `n` of them, and in which unit."""
    unit, scale = next(((unit, scale) for unit, scale in UNITS if n >= scale), ("B", 1))
    return (lambda m: f"{m / scale:.4g}" if m >= 10 * scale else f"{m / scale:.3g}"), unit
