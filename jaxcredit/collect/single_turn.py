"""policy + task -> Rollout: prompts are tokenised and packed on the host, sampled in one compiled program, and judged where they live."""

import functools
import time
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxcredit.collect.batches import bucketed
from jaxcredit.parallel.processes import all_process_sum, local_rows, local_slice, to_global_array
from jaxcredit.rollout import AXES, Rollout
from jaxcredit.tasks import Task, score


class Collected(NamedTuple):
    """A rollout with what only the host knows: each prompt's meta, each answer's text, and what the collecting cost."""

    rollout: Rollout
    metas: list[dict]
    texts: list[list[str]]
    facts: dict[str, Any]


def single_turn(
    sample: Callable,
    tokenizer,
    task: Task,
    *,
    group_size: int,
    buckets: Sequence[int],
    sharding=None,
    timeout_s: float = 10.0,
    workers: int = 1,
) -> Callable[..., Callable[[], Collected]]:
    """One prompt, one answer, one reward: K = 1 segment. `collect(params, key, indices)` sends the sampling to the device, and what it
    returns waits for the answers, judges them and gives the Collected.

    `sample(params, prompt, valid, key)` is the compiled sampler; `indices` are the prompts of all processes, so that all choose the
    same bucket; each process judges and feeds its own share. An answer that the reward leaves unscored (None) did not take place: its
    `real` is False and its `mask` empty, so that neither a group's statistics nor the loss see it.
    """

    def collect(params, key, indices) -> Callable[[], Collected]:
        items = [task.train[int(i)] for i in indices]
        own = local_slice(len(indices))
        prompt, prompt_valid = (
            x[own]
            for x in bucketed(
                [tokenizer.chat(i["prompt"]) for i in items], buckets, pad=tokenizer.pad_id
            )
        )
        items = items[own]
        prompt, prompt_valid = (
            to_global_array(prompt, sharding),
            to_global_array(prompt_valid, sharding),
        )
        drawn = sample(params, prompt, prompt_valid, key)
        index = to_global_array(np.asarray(indices[own], np.int32), sharding)
        return lambda: judged(params, items, prompt, prompt_valid, drawn, index)

    def judged(params, items, prompt, prompt_valid, drawn, index) -> Collected:
        start = time.perf_counter()
        # The device makes these parameters before it samples from them. Deleted ones have been given to the next update: they are older.
        jax.block_until_ready(
            [
                x
                for x in jax.tree.leaves(params)
                if not (isinstance(x, jax.Array) and x.is_deleted())
            ]
        )
        updated = time.perf_counter()
        tokens, mask = local_rows(drawn["tokens"]), local_rows(drawn["mask"])
        sampled = time.perf_counter()

        ids = [
            [row[kept].tolist() for row, kept in zip(rows, masks, strict=True)]
            for rows, masks in zip(tokens, mask, strict=True)
        ]
        texts = [[tokenizer.decode(answer) for answer in answers] for answers in ids]
        each = [
            (item, text, answer)
            for item, ts, answers in zip(items, texts, ids, strict=True)
            for text, answer in zip(ts, answers, strict=True)
        ]
        flat = score(
            task,
            [item["meta"] for item, _, _ in each],
            [text for _, text, _ in each],
            [answer for _, _, answer in each],
            prompts=[item["prompt"] for item, _, _ in each],
            timeout_s=timeout_s,
            workers=workers,
        ).reshape(len(items), group_size, 1)
        facts = {
            "tokens": drawn["mask"].sum(),
            "time/update_s": updated - start,
            "time/sample_s": sampled - updated,
            "time/reward_s": time.perf_counter() - sampled,
        }
        scored = ~np.isnan(flat)
        reward, real = (
            to_global_array(x, sharding)
            for x in (np.where(scored, flat, 0).astype(np.float32), scored)
        )
        whole = assemble(prompt, prompt_valid, drawn, reward, real, where=sharding)
        return Collected(
            whole.with_signals(prompt=index), [item["meta"] for item in items], texts, facts
        )

    return collect


@functools.partial(jax.jit, static_argnames="where")
def assemble(prompt, prompt_valid, drawn, reward, real, where=None) -> Rollout:
    """Prompt columns, then response columns, for every row of the group; on a mesh cut along the prompts and nothing else.

    `real` [N, R, 1]: the answers that were scored; the policy is not trained on the others.
    """
    N, R, _ = drawn["tokens"].shape

    def beside(left, right):
        return jnp.concatenate(
            [jnp.broadcast_to(left[:, None], (N, R, left.shape[-1])).astype(right.dtype), right], -1
        )

    nothing = jnp.zeros(prompt.shape, bool)
    mask = beside(nothing, drawn["mask"] & real)
    rollout = Rollout(
        tokens=beside(prompt, drawn["tokens"]),
        action_mask=mask,
        logp=beside(nothing, drawn["logp"]),
        segment=jnp.where(mask, jnp.int32(0), jnp.int32(-1)),
        reward=reward,
        segment_mask=real,
        token_mask=beside(prompt_valid, drawn["mask"]),
        done=drawn["done"],
    )
    return rollout if where is None else jax.lax.with_sharding_constraint(rollout, where)


def until_mixed(
    collect: Callable, draw: Callable[[], np.ndarray], rounds: int, sharding=None
) -> Callable[..., Callable[[], Collected]]:
    """Dynamic sampling (DAPO, 2503.14476): keep only groups whose rewards differ, drawing further prompts for at most `rounds` rounds.

    What it cost is counted: all tokens sampled, groups dropped. If the rounds run out, the batch is filled with groups without a
    signal, whose advantage is 0. All processes of a job stop in the same round: when each has enough for its share; each
    chooses among its own groups, so that only with one round do several processes give the numbers of one.
    """

    def gather(params, key, indices) -> Collected:
        own = local_slice(len(indices))
        wanted, kept, spare, facts = own.stop - own.start, [], [], {}
        for round in range(rounds):
            batch = collect(
                params, jax.random.fold_in(key, round), indices if round == 0 else draw()
            )()
            reward, real = (
                local_rows(x)[..., 0] for x in (batch.rollout.reward, batch.rollout.segment_mask)
            )
            mixed = np.where(real, reward, -np.inf).max(-1) > np.where(real, reward, np.inf).min(-1)
            for n in range(len(mixed)):
                (kept if mixed[n] else spare).append((batch, n))
            facts = {name: facts.get(name, 0) + cost for name, cost in batch.facts.items()}
            if not all_process_sum(len(kept) < wanted):
                break
        facts |= {
            "groups_dropped": all_process_sum(max(len(kept) + len(spare) - wanted, 0)),
            "groups_without_signal": all_process_sum(max(wanted - len(kept), 0)),
            "sampling_rounds": round + 1,
        }
        return _pick((kept + spare)[:wanted], facts, sharding)

    return lambda params, key, indices: (
        lambda: gather(params, key, indices)
    )  # nothing can be sent ahead: the rounds depend on rewards


def _pick(chosen: list[tuple[Collected, int]], facts: dict, sharding) -> Collected:
    """One rollout of single groups out of several, on the host; prompts of different buckets are left-padded to the widest."""
    T = max(batch.rollout.tokens.shape[-1] for batch, _ in chosen)
    hosts = {id(batch): jax.tree.map(local_rows, vars(batch.rollout)) for batch, _ in chosen}

    def widen(name, x):
        if "T" not in AXES[name].split():
            return x
        fill = -1 if name == "segment" else 0
        return np.pad(x, [(0, 0), (T - x.shape[-1], 0)], constant_values=fill)

    def stack(name):
        return to_global_array(
            np.stack([widen(name, hosts[id(batch)][name][n]) for batch, n in chosen]), sharding
        )

    signals = {
        s: to_global_array(
            np.stack([hosts[id(batch)]["signals"][s][n] for batch, n in chosen]), sharding
        )
        for s in chosen[0][0].rollout.signals
    }
    first = hosts[id(chosen[0][0])]
    fields = {name: stack(name) for name in AXES if first[name] is not None}
    rollout = Rollout(**fields, signals=signals)
    return Collected(
        rollout,
        [batch.metas[n] for batch, n in chosen],
        [batch.texts[n] for batch, n in chosen],
        facts,
    )
