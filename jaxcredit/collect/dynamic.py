"""Dynamic sampling (DAPO): replacement of groups whose rewards are all equal."""

from collections.abc import Callable

import jax
import numpy as np

from jaxcredit.collect.single_turn import Collected
from jaxcredit.parallel.processes import (
    all_process_sum,
    local_rows,
    local_slice,
    to_global_array,
)
from jaxcredit.rollout import AXES, Rollout


def dynamic_sampling(
    collect: Callable, next_indices: Callable[[], np.ndarray], rounds: int, sharding=None
) -> Callable[..., Callable[[], Collected]]:
    """Collector of groups with unequal rewards, in one or several rounds (DAPO, arXiv 2503.14476).

    Each round samples further prompts, until the batch is full.

    If the rounds run out first, groups without a signal fill the batch; their advantage is 0. The
    metrics count all sampled tokens and all dropped groups. All processes stop in the same round,
    in which the last of them has enough groups for its own share. With one round several processes
    compute the numbers of one process; with more they do not, because each process chooses among
    its own groups.

    Args:
        collect: collector of one round, for example `single_turn(...)`.
        next_indices: gives the prompt indices of each further round, for all processes.
        rounds: largest number of rounds, at least 1.
        sharding: sharding of arrays [N, ...]; None on one device.
    """

    def gather(params, key, indices) -> Collected:
        own = local_slice(len(indices))
        wanted, with_signal, without_signal, metrics = own.stop - own.start, [], [], {}
        for round in range(rounds):
            if round:
                indices = next_indices()
            batch = collect(params, jax.random.fold_in(key, round), indices)()
            reward = local_rows(batch.rollout.reward)[..., 0]
            scored = local_rows(batch.rollout.segment_mask)[..., 0]
            highest = np.where(scored, reward, -np.inf).max(-1)
            lowest = np.where(scored, reward, np.inf).min(-1)
            for n, has_signal in enumerate(highest > lowest):
                (with_signal if has_signal else without_signal).append((batch, n))
            metrics = {name: metrics.get(name, 0) + x for name, x in batch.metrics.items()}
            if not all_process_sum(len(with_signal) < wanted):
                break
        groups = with_signal + without_signal
        metrics |= {
            "groups_dropped": all_process_sum(max(len(groups) - wanted, 0)),
            "groups_without_signal": all_process_sum(max(wanted - len(with_signal), 0)),
            "sampling_rounds": round + 1,
        }
        return _concatenate_groups(groups[:wanted], metrics, sharding)

    # Nothing is dispatched ahead: whether a further round is needed depends on the rewards.
    return lambda params, key, indices: lambda: gather(params, key, indices)


def _concatenate_groups(groups: list[tuple[Collected, int]], metrics: dict, sharding) -> Collected:
    """One batch of single groups, each given as its batch and its index there.

    Shorter prompts are left-padded to the longest bucket.
    """
    T = max(batch.rollout.tokens.shape[-1] for batch, _ in groups)
    # Each batch is copied to the host once, though several groups may come from it.
    host = {id(batch): jax.tree.map(local_rows, vars(batch.rollout)) for batch, _ in groups}

    def pad(name, x):
        if "T" not in AXES[name].split():
            return x
        padding = [(0, 0), (T - x.shape[-1], 0)]
        return np.pad(x, padding, constant_values=-1 if name == "segment" else 0)

    def stack(rows):
        return to_global_array(np.stack(rows), sharding)

    first = groups[0][0].rollout
    fields = {
        name: stack([pad(name, host[id(batch)][name][n]) for batch, n in groups])
        for name in AXES
        if getattr(first, name) is not None
    }
    signals = {
        name: stack([host[id(batch)]["signals"][name][n] for batch, n in groups])
        for name in first.signals
    }
    return Collected(
        Rollout(**fields, signals=signals),
        [batch.metas[n] for batch, n in groups],
        [batch.texts[n] for batch, n in groups],
        metrics,
    )
