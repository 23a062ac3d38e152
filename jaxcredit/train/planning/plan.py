"""Does an experiment fit these devices? Its real programs, compiled from shapes alone; and its data and tokenizer, looked at."""

import dataclasses
import itertools
import math
from collections.abc import Iterator

import jax
import jax.numpy as jnp
from jax.stages import Lowered
from rich.console import Console
from rich.text import Text

from jaxcredit.collect.single_turn import Collected, assemble
from jaxcredit.credit import method_of
from jaxcredit.parallel import mesh, params
from jaxcredit.policy import PlaceholderTokenizer
from jaxcredit.tasks import score
from jaxcredit.tasks.scoring import RewardError
from jaxcredit.tasks.worker_pool import in_process_reason
from jaxcredit.train.experiment import Experiment
from jaxcredit.train.planning import flops, memory
from jaxcredit.train.planning.advice import smaller
from jaxcredit.train.planning.topology import Topology
from jaxcredit.train.programs import Programs, build, compose_step
from jaxcredit.utils import progress
from jaxcredit.utils.plain_text import cell, visible

LOOK = 512  # prompts that are tokenised


def plan(
    exp: Experiment,
    console: Console | None = None,
    *,
    on: Topology | None = None,
    largest: bool = False,
) -> bool:
    """Print a line for each program, what it needs on one device, and what is wrong with the data. True where everything fits.

    `on`: TPUs to plan for that need not be here. `largest`: look for the largest batch too, at the price of three compilations more.
    """
    console = console or Console(soft_wrap=True)
    if on is None:
        return _plan(
            exp, console, jax.local_devices()[0].device_kind, memory.device_memory(), largest
        )
    exp = exp if exp.mesh else dataclasses.replace(exp, mesh={"fsdp": len(on.devices)})
    with mesh.planned(on.devices):
        if math.prod(mesh.axis_sizes(exp.mesh).values()) != len(on.devices):
            raise ValueError(
                f"{on.name} has {len(on.devices)} devices, the mesh {mesh.axis_sizes(exp.mesh)} takes another number: use them all"
            )
        return _plan(
            exp.check(), console, f"{on.devices[0].device_kind} ({on.name})", on.memory, largest
        )


def _plan(exp: Experiment, console: Console, kind: str, room: int, largest: bool) -> bool:
    made = build(exp)
    where = mesh.make(exp.mesh) if exp.mesh else None
    told = (
        f"{exp.name}: {params.count(made.state.params):,} parameters, {method_of(exp.credit).name}, {exp.prompts_per_step} prompts x {exp.group_size} "
        f"answers of {max(exp.buckets)} + {exp.max_new_tokens} tokens on {where.size if where else 1} x {kind}"
        f"{f', mesh {dict(where.shape)}' if where else ''}, attention {made.attention}; {memory.format_bytes(room)} a device"
    )
    console.print(cell(told))
    good = True
    for name, lowered, resident in lowered_programs(exp, made):
        with progress.shown("plan") as tell:
            tell(f"compiling {name}")
            found = memory.measure(lowered, resident, where)
        good &= (fine := not found.refused and found.need.peak <= room)
        console.print(
            Text(
                f"{name} {describe_program(exp, made, name, found, room)}",
                style="green" if fine else "red",
            )
        )
        if largest and name != "evaluate":  # which takes as many as there are, a batch at a time
            with progress.shown("plan") as tell:
                tell(f"largest batch of {name}")
                most = memory.largest_batch(exp, room, lambda e, name=name: _one(e, name))
            console.print(Text(f"  largest: {most}"))
    for fine, text in data(exp):
        console.print(
            Text(visible(text, "  "), style={True: "", False: "red", None: "yellow"}[fine])
        )
        good &= fine is not False
    return good


def _one(exp: Experiment, name: str) -> memory.CompiledProgram:
    made = build(exp)
    lowered, resident = next(
        (lowered, resident)
        for found, lowered, resident in lowered_programs(exp, made)
        if found == name
    )
    return memory.measure(lowered, resident)


def describe_program(
    exp: Experiment, made: Programs, name: str, found: memory.CompiledProgram, room: int
) -> str:
    """fits or not, bytes, FLOPs, what is sent, and how long it took to compile."""
    need, (peak, unit) = found.need, memory.byte_format(room)
    of = (
        f"{peak(need.peak)} of {peak(room)} {unit} a device"
        if need.peak
        else f"more than {peak(room)} {unit} a device"
    )
    if found.refused or need.peak > room:
        return f"does not fit: {of} (temporaries {peak(need.temporaries)}); try {smaller(exp, made, name, room)}"
    parts = {
        "arguments": need.arguments,
        "outputs": need.outputs,
        "temporaries": need.temporaries,
        "other state": need.resident,
    }
    told = [", ".join(f"{what} {memory.format_bytes(n)}" for what, n in parts.items() if n)]
    if operations := _flops(exp, name):
        told.append(f"{operations:.3g} FLOP")
    if found.sent:
        axes: dict[str, list[str]] = {}
        for (kind, axis), n in sorted(found.sent.items(), key=lambda item: -item[1]):
            axes.setdefault(axis, []).append(f"{kind} {memory.format_bytes(int(n))}")
        told.append(
            "each device sends "
            + "; ".join(f"{axis}: {', '.join(kinds)}" for axis, kinds in axes.items())
        )
    return f"fits: {of} ({'; '.join(told)}); compiled in {found.seconds:.0f} s"


def _flops(exp: Experiment, name: str) -> float:
    """Of the whole batch at full length, by arithmetic: what the model needs, recomputation left out."""
    P, n = max(exp.buckets), exp.held_out()[1]
    full = {
        "sample": (exp.prompts_per_step, exp.group_size, 1),
        "evaluate": (n, 1, 1),
        "update": (exp.prompts_per_step, exp.group_size, 3 * exp.epochs),
    }
    if name not in full:
        return 0.0
    prompts, rows, passes = full[name]
    return passes * float(
        flops.forward_flops(
            exp.policy, jnp.full(prompts, P), jnp.full((prompts, rows), exp.max_new_tokens)
        )
    )


def lowered_programs(exp: Experiment, made: Programs) -> Iterator[tuple[str, Lowered, int]]:
    """Each program of a step by name, lowered for the largest prompts, and the bytes of the state that lie beside its arguments."""
    N, P = exp.prompts_per_step, max(exp.buckets)
    state, key = made.state, jax.eval_shape(lambda: jax.random.key(0))

    def placed(tree):
        return jax.tree.map(
            lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=made.batch), tree
        )

    def rows(n, *shape, dtype=jnp.int32):
        return placed(jax.ShapeDtypeStruct((n, *shape), dtype))

    def collected(state, prompt, valid, drawn, reward, index):
        rollout = assemble(prompt, valid, drawn, reward, jnp.ones(reward.shape, bool)).with_signals(
            prompt=index
        )
        return compose_step(exp, made).annotate(state, Collected(rollout, [], [], {}))

    everything = memory.bytes_per_device(state)
    weights, beside = state.params, everything - memory.bytes_per_device(state.params)
    asked = rows(N, P), rows(N, P, dtype=bool)
    if made.reshard_for_sampling:
        yield "reshard", made.reshard_for_sampling.lower(weights), beside
        weights, beside = jax.eval_shape(made.reshard_for_sampling, weights), everything
    sampling = made.draw.lower(weights, *asked, key, **made.sample.keywords)
    yield "sample", sampling, beside
    n = exp.held_out()[1]
    yield (
        "evaluate",
        made.draw.lower(weights, rows(n, P), rows(n, P, dtype=bool), key, **made.greedy.keywords),
        beside,
    )

    drawn = placed(
        sampling.out_info
    )  # tracing made.sample would put one jit inside another, which may not have compiler options
    parts = (state, *asked, drawn, rows(N, exp.group_size, 1, dtype=jnp.float32), rows(N))
    if exp.signals:
        yield "signals", jax.jit(collected).lower(*parts), memory.bytes_per_device(state.opt_state)
    rollout = placed(jax.eval_shape(collected, *parts))
    yield "credit", made.credit.lower(rollout), everything
    columns = placed(jax.eval_shape(made.credit, rollout))
    yield "update", made.update.lower(state, rollout, columns), 0


def data(exp: Experiment) -> Iterator[tuple[bool | None, str]]:
    """Findings, each good, bad or (None) not looked at."""
    tokenizer, task = exp.tokenizer, exp.task
    if isinstance(tokenizer, PlaceholderTokenizer):
        yield None, f"data and tokenizer not looked at: {tokenizer.why}"
        return
    yield True, f"tokenizer: {tokenizer.vocab_size:,} ids in the policy's {exp.policy.vocab:,} rows"
    for part in ("train", "test"):
        items = list(itertools.islice(getattr(task, part), LOOK))
        ids = [tokenizer.chat(item["prompt"]) for item in items]
        longest, room = max(map(len, ids), default=0), max(exp.buckets)
        told = f"{part}: {len(getattr(task, part)):,} problems of {task.name}; of the first {len(ids)} the longest prompt has {longest} tokens"
        if long := sum(len(i) > room for i in ids):
            yield (
                False,
                f"{told}: {long} exceed the largest bucket ({room}); add one of at least {longest}, or leave those problems out",
            )
        else:
            yield True, f"{told}, the largest bucket {room}"
    if exp.warmup:
        long = sum(
            len(tokenizer.encode(item["answer"])) >= exp.max_new_tokens
            for item in itertools.islice(task.demos, LOOK)
        )
        yield (
            not long,
            f"demos: {len(task.demos):,}; {long} of the first {LOOK} are longer than max_new_tokens = {exp.max_new_tokens} tokens with the stop token",
        )
    try:
        item = task.train[0]
        how = {"timeout_s": exp.reward_timeout_s, "workers": exp.reward_workers}
        empty = float(
            score(task, [item["meta"]], [""], [[]], prompts=[item["prompt"]], **how).sum()
        )
        runs = (
            f"in this process ({why})"
            if (why := in_process_reason(task.reward)) or not exp.reward_workers
            else "in a process of its own"
        )
        yield (
            True,
            f"reward: {'unscored (None)' if math.isnan(empty) else f'{empty:g}'} for an empty answer; it runs {runs}",
        )
    except RewardError as error:
        yield False, f"reward: {error}"
