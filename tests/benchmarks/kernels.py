"""CPU seconds of tempo and gae relative to a memory copy, a trie of dicts and rlax: medians over
interleaved rounds.

    python tests/benchmarks/kernels.py    # 1024 prompts x 16 rows x 2048 columns; needs 3 GB
    python tests/benchmarks/kernels.py --prompts 128 --json kernels.json

gae is compared with rlax. Without rlax a copy of its formula is used, and the output says so:

    pip install --no-deps rlax distrax tfp-nightly dm-env dm-tree decorator cloudpickle gast

CPU seconds are summed over all threads.
"""

import argparse
import json
import os
import time
from pathlib import Path

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np

from jaxcredit.credit import tempo
from jaxcredit.kernels import gae
from jaxcredit.rollout import Rollout


def interleaved(calls: dict, rounds: int) -> dict:
    """{name: (CPU seconds, wall seconds)} of each call in each round, after compilation."""
    for call in calls.values():
        jax.block_until_ready(call())
    cpu, wall = {name: [] for name in calls}, {name: [] for name in calls}
    for _ in range(rounds):
        for name, call in calls.items():
            c, w = time.process_time(), time.perf_counter()
            result = jax.block_until_ready(call())
            cpu[name].append(time.process_time() - c)
            wall[name].append(time.perf_counter() - w)
            del result  # freed outside of the timed part
    return {name: (np.array(cpu[name]), np.array(wall[name])) for name in calls}


def tree(rng, N: int, R: int, T: int, identical: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """Tokens and mask of ragged rows that branch from an earlier row of their group at a random
    depth.
    """
    tokens = rng.integers(0, 50_000, (N, R, T), dtype=np.int32)
    for i in range(1, R):
        parent, depth = (
            rng.integers(0, i, N),
            T if identical else (T * rng.random(N) ** 2).astype(int)[:, None],
        )
        tokens[:, i] = np.where(np.arange(T) < depth, tokens[np.arange(N), parent], tokens[:, i])
    end = np.full((N, R), T) if identical else (rng.uniform(0.1, 0.75, (N, R)) * T).astype(int)
    valid = np.arange(T) < end[..., None]
    return np.where(valid, tokens, 0), valid


def trie(
    tokens: np.ndarray, valid: np.ndarray, reward: np.ndarray, eps: float = 1e-6
) -> np.ndarray:
    """TEMPO of one group by a trie of Python dicts."""
    root, paths = [0.0, 0, {}], []
    for y, r in zip(
        (y[v].tolist() for y, v in zip(tokens, valid, strict=True)), reward.tolist(), strict=True
    ):
        node, path = root, [root]
        node[0], node[1] = node[0] + r, node[1] + 1
        for token in y:
            child = node[2].get(token)
            if child is None:
                child = node[2][token] = [0.0, 0, {}]
            node = child
            node[0] += r
            node[1] += 1
            path.append(node)
        paths.append(path)
    out, mean, std = np.zeros(tokens.shape, np.float32), reward.mean(), reward.std()
    for i, path in enumerate(paths):
        V = [total / n for total, n, _ in path]
        out[i, valid[i]] = [
            (reward[i] - mean + b - a) / (std + eps) for a, b in zip(V, V[1:], strict=False)
        ]
    return out


def bench_tempo(rng, N, R, T, rounds, identical, sample=16):
    tokens, valid = (jnp.asarray(x) for x in tree(rng, N, R, T, identical))
    reward = jnp.asarray(rng.integers(0, 2, (N, R, 1)), jnp.float32)
    out = jnp.zeros((N, R, T), jnp.float32)
    # tempo reads neither logp nor segment: any arrays will do, and the compiled program drops these
    # inputs.
    rollout = Rollout(
        tokens, jnp.array(valid), out, tokens, reward, jnp.ones((N, R, 1), bool), token_mask=valid
    )
    program = jax.jit(tempo).lower(rollout).compile()
    inputs = (tokens, valid, rollout.action_mask, reward)
    copy = jax.jit(lambda *xs: [jnp.copy(x) for x in xs])
    valid_tokens, nbytes = int(valid.sum()), sum(x.nbytes for x in (*inputs, out))
    actual = np.asarray(program(rollout))
    picked = rng.choice(N, min(sample, N), replace=False)
    groups = [
        (np.asarray(tokens[n]), np.asarray(valid[n]), np.asarray(reward[n, :, 0])) for n in picked
    ]
    start = time.process_time()
    expected = [trie(*group) for group in groups]
    trie_s = time.process_time() - start
    trie_rate = sum(int(v.sum()) for _, v, _ in groups) / trie_s
    times = interleaved(
        {"tempo": lambda: program(rollout), "copy": lambda: copy(*inputs, out)}, rounds
    )
    ratio = times["tempo"][0] / times["copy"][0]
    return {
        "valid_tokens": valid_tokens,
        "must_move_bytes": nbytes,  # every input read once, the output written once
        "tempo_cpu_s": np.median(times["tempo"][0]),
        "tempo_wall_s": np.median(times["tempo"][1]),
        "copy_cpu_s": np.median(times["copy"][0]),
        "copy_wall_s": np.median(times["copy"][1]),
        "tempo_over_copy": np.median(ratio),
        "tempo_tokens_per_cpu_s": valid_tokens / np.median(times["tempo"][0]),
        "trie_tokens_per_cpu_s": trie_rate,
        "times_faster_than_trie": valid_tokens / np.median(times["tempo"][0]) / trie_rate,
        "temporary_over_tokens": program.memory_analysis().temp_size_in_bytes / tokens.nbytes,
        "largest_difference_from_trie": max(
            float(np.abs(actual[n] - w).max()) for n, w in zip(picked, expected, strict=True)
        ),
    }


def bench_gae(rng, B, T, rounds):
    reward, value = (jnp.asarray(rng.normal(size=(B, T + i)), jnp.float32) for i in (0, 1))
    where = jnp.asarray(rng.random((B, T)) < 0.9)
    discount = jnp.full((B, T), 0.99)
    try:
        from rlax import truncated_generalized_advantage_estimation as peer
    except Exception as error:
        print(
            f"rlax does not import ({type(error).__name__}: {error}): a copy of its formula is used"
        )

        def peer(r, discount, lam, V):
            lam = jnp.ones_like(discount) * lam
            delta = r + discount * V[1:] - V[:-1]

            def back(A, x):
                A = x[0] + x[1] * x[2] * A
                return A, A

            return jax.lax.scan(back, 0.0, (delta, discount, lam), reverse=True)[1]

    rlax = jax.jit(jax.vmap(lambda r, d, v: peer(r, d, 0.95, v)))
    ours = jax.jit(lambda r, v, w: gae(r, v, gamma=0.99, lam=0.95, where=w))
    values = jnp.array(value[:, :-1])  # gae takes T values, rlax T + 1
    difference = jnp.abs(
        ours(reward, values, where | True) - rlax(reward, discount, value.at[:, -1].set(0))
    ).max()
    calls = {
        "gae": lambda: ours(reward, values, where),
        "rlax": lambda: rlax(reward, discount, value),
    }
    times = interleaved(calls, rounds)
    return {
        "must_move_bytes": 3 * reward.nbytes + where.nbytes,
        "gae_with_holes_cpu_s": np.median(times["gae"][0]),
        "gae_with_holes_wall_s": np.median(times["gae"][1]),
        "rlax_without_holes_cpu_s": np.median(times["rlax"][0]),
        "rlax_without_holes_wall_s": np.median(times["rlax"][1]),
        "times_faster_than_rlax": np.median(times["rlax"][0] / times["gae"][0]),
        "largest_difference_without_holes": float(difference),
    }


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--prompts", type=int, default=1024)
    parser.add_argument("--group", type=int, default=16)
    parser.add_argument("--columns", type=int, default=2048)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    N, R, T, rng = args.prompts, args.group, args.columns, np.random.default_rng(args.seed)
    report = {}
    for title, run in {
        f"tempo [{N}, {R}, {T}] ragged": lambda: bench_tempo(
            rng, N, R, T, args.rounds, identical=False
        ),
        f"tempo [{N}, {R}, {T}] identical rows": lambda: bench_tempo(
            rng, N, R, T, args.rounds, identical=True
        ),
        f"gae [{N * R}, {T}]": lambda: bench_gae(rng, N * R, T, args.rounds),
    }.items():
        report[title] = {key: float(x) for key, x in run().items()}
        print(
            title,
            *(
                f"    {key:34s} {x:,.4g}" if abs(x) < 1e4 else f"    {key:34s} {x:,.0f}"
                for key, x in report[title].items()
            ),
            sep="\n",
        )
    if args.json:
        args.json.write_text(json.dumps(report, indent=1))


if __name__ == "__main__":
    main()
