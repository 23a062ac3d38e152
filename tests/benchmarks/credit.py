"""CPU seconds of every estimator on 256 prompts x 16 rows x 2048 tokens x 16 turns, relative to a
copy of its inputs and outputs.

    python tests/benchmarks/credit.py                     # all estimators; needs 4 GB
    python tests/benchmarks/credit.py tempo gigpo --rounds 5 --json credit.json
    python tests/benchmarks/credit.py --peers             # loops of released code

The floor is a program that reads as many bytes as the arguments of the estimator and writes as many
as its results. It uses blocks as large, because allocating memory costs more than copying.
`temp_mb` is the temporary memory of the estimator.
"""

import argparse
import functools
import json
import os
import time

os.environ.setdefault("JAX_PLATFORMS", "cpu")

import jax
import jax.numpy as jnp
import numpy as np
from kernels import interleaved

from jaxcredit import credit
from jaxcredit.credit import method_of
from jaxcredit.kernels import map_turns, returns_to_go, standardize
from jaxcredit.rollout import SIGNALS, Rollout
from jaxcredit.rollout.synthetic import EXTENTS, synthetic

# The reason why a method takes more than 4 times its floor.
SCAN = (
    "a recurrence over 2,048 tokens: on a CPU, sequential steps are slower than copying the bytes"
)
SELECT = "selection of the k-th largest number bit by bit: 32 passes, faster than a sort"
SUMS = (
    "sums over the tokens of each segment and their broadcast: "
    "three passes that compare every token with every segment"
)
REASONS: dict[str, str] = {
    **dict.fromkeys(
        ("masked_gae", "poad", "ppo", "prime", "reinforce_pp", "spa", "vapo", "vsrm"), SCAN
    ),
    **dict.fromkeys(("attention_rhythm", "entropy_mask", "pppo"), SELECT),
    **dict.fromkeys(("a2tgpo", "epo", "hae"), SUMS),
    "ma_rlhf": SCAN + "; four scans, to find the macro actions and to sum over them",
    "hgpo": "three levels of groups, each found by a sort of the turns",
    "slate": "comparison of every turn's prefix with the prefixes of the other turns",
    "otb": "a cumulative sum, and sums over the group at each column",
}


def batch(N: int, R: int, T: int, K: int) -> Rollout:
    """A random rollout with turns of equal length, ragged answers, shared prefixes and every
    signal.
    """
    rng = np.random.default_rng(0)
    tokens = rng.integers(0, 50_000, (N, R, T), dtype=np.int32)
    for i in range(1, R):
        depth = (T * rng.random(N) ** 2).astype(int)[:, None]
        tokens[:, i] = np.where(
            np.arange(T) < depth, tokens[np.arange(N), rng.integers(0, i, N)], tokens[:, i]
        )
    length = (rng.uniform(0.3, 1.0, (N, R)) * T).astype(int)[..., None]
    valid = np.arange(T) < length
    segment = np.where(valid, np.arange(T) * K // T, -1).astype(np.int32)
    sizes = {"N": N, "R": R, "T": T, "G": R, "K": K, "K+1": K + 1, "M": K * R + 1, **EXTENTS}
    signals = {}
    for name, (axes, kind, *_) in SIGNALS.items():
        shape = (N, *(sizes[a] for a in axes.split()))
        signals[name] = (
            rng.integers(0, 3, shape, dtype=np.int32)
            if kind == "i"
            else rng.random(shape, np.float32) * 2 - 1
        )
    signals |= {
        name: np.asarray(x)
        for name, x in synthetic(0, ("node", "node_parent"), N=N, R=R, T=R, K=K).signals.items()
    }
    rollout = Rollout(
        tokens=tokens,
        action_mask=valid & (rng.random((N, R, T)) < 0.9),
        logp=-rng.random((N, R, T), np.float32),
        segment=segment,
        reward=rng.integers(0, 2, (N, R, K)).astype(np.float32),
        segment_mask=np.arange(K) < -(-length * K // T),
        token_mask=valid,
        signals=signals,
    )
    return jax.tree.map(jnp.asarray, rollout)


def floor(read: int, written: list[int]):
    """A program that sums blocks of `read` bytes in total and writes arrays with the numbers of
    elements in `written`.
    """
    size = max(written)
    blocks = [jnp.full(size, float(i)) for i in range(max(1, round(read / (4 * size))))]

    @jax.jit
    def copy(*blocks):
        total = functools.reduce(jnp.add, blocks) + 1
        return [total[:n] + i for i, n in enumerate(written)]

    return lambda: copy(*blocks)


def measure(name: str, rollout: Rollout, rounds: int) -> dict:
    """Times and memory of one estimator and of its floor."""
    estimator = getattr(credit, name)
    program = jax.jit(lambda r: estimator(r)).lower(rollout).compile()
    memory = program.memory_analysis()
    moved = memory.argument_size_in_bytes + memory.output_size_in_bytes
    copy = floor(memory.argument_size_in_bytes, [x.size for x in jax.tree.leaves(program.out_info)])
    times = interleaved({"credit": lambda: program(rollout), "copy": copy}, rounds)
    cpu = {name: float(np.median(c)) for name, (c, _) in times.items()}
    return {
        "name": name,
        "cpu_s": cpu["credit"],
        "wall_s": float(np.median(times["credit"][1])),
        "floor_cpu_s": cpu["copy"],
        "times_floor": float(np.median(times["credit"][0] / times["copy"][0])),
        "moved_mb": moved / 1e6,
        "temp_mb": memory.temp_size_in_bytes / 1e6,
        "reason": REASONS.get(name, ""),
    }


# Peers: the loops of released code in numpy and Python, at the shapes of their published times (on
# a CPU with 2 cores). Each function returns a title, the peer's loop, our function, and the
# published seconds.


def peer_pure(rng):
    p = rng.random((16384, 32), np.float32)

    def loop():
        w = np.exp(-p / 0.1)
        return p * w / w.sum(-1, keepdims=True)

    ours = jax.jit(lambda p: p * jax.nn.softmax(-p / 0.1, axis=-1))
    return "PURE's transform [16384, 32]", loop, lambda: ours(p), 0.014


def peer_gigpo(rng):
    rows, K = 16384, 16
    r, state = rng.random(rows, np.float32), rng.integers(0, 4, rows)
    trajectory, prompt = np.arange(rows) // K, np.arange(rows) // (K * 16)

    def loop():
        G, groups = np.zeros(rows), {}
        for i in np.unique(trajectory):
            members, following = np.flatnonzero(trajectory == i), 0.0
            for row in members[::-1]:
                following = r[row] + 0.95 * following
                G[row] = following
        for row in range(rows):
            groups.setdefault((prompt[row], state[row]), []).append(row)
        A = np.zeros(rows)
        for members in groups.values():
            A[members] = G[members] - G[members].mean()
        return A

    from jaxcredit.kernels import center

    ours = jax.jit(jax.vmap(lambda r, s: center(returns_to_go(r, 0.95), s)))
    return (
        "GiGPO's step returns, 16384 rows",
        loop,
        lambda: ours(r.reshape(-1, 16, K), state.reshape(-1, 16, K)),
        3.0,
    )


def peer_matchtir(rng):
    D = rng.random((1024, 2048), np.float32).reshape(64, 16, 2048)

    def loop():
        out = np.zeros(D.shape)
        for n in range(64):
            for k in range(2048):
                x = np.array([D[n, i, k] for i in range(16)])
                out[n, :, k] = (x - x.mean()) / (x.std() + 1e-6)
        return out

    ours = jax.jit(jax.vmap(lambda d: map_turns(standardize, d, jnp.ones(d.shape, bool))))
    return "MatchTIR's turn z-scores [1024, 2048]", loop, lambda: ours(D), 18.0


def peer_spo(rng):
    """Trees with 6 x 6 x 6 leaves: 259 nodes including the root, 216 paths."""
    path = np.stack(
        [1 + np.arange(216) // 36, 7 + np.arange(216) // 6, 43 + np.arange(216)], -1
    ).astype(np.int32)
    parent = np.concatenate(
        [[-1], np.zeros(6), 1 + np.arange(36) // 6, 7 + np.arange(216) // 6]
    ).astype(np.int32)
    R = rng.integers(0, 2, (1024, 216)).astype(np.float32)

    def tree(leaves):
        """Values of the nodes and advantages of the edges, by recursion over dicts."""

        def value(node, first, depth):
            if depth == 3:
                return float(leaves[first])
            size = 6 ** (2 - depth)
            node["children"] = [{} for _ in range(6)]
            values = [
                value(child, first + i * size, depth + 1)
                for i, child in enumerate(node["children"])
            ]
            mean = sum(values) / 6
            for child, v in zip(node["children"], values, strict=True):
                child["advantage"] = v - mean
            return mean

        root: dict = {}
        value(root, 0, 0)
        return root

    from jaxcredit.kernels import child_mean, tree_of

    def edge_advantages(reward):
        paths = tree_of(jnp.asarray(path), jnp.asarray(parent), jnp.ones(path.shape, bool))
        V = child_mean(reward, paths)
        return V - V[paths.parent]

    ours = jax.jit(jax.vmap(edge_advantages))
    return (
        "SPO's edges, 1024 trees of 259 nodes",
        lambda: [tree(leaves) for leaves in R],
        lambda: ours(R),
        2.9,
    )


def peer_otb(rng):
    shape = (16384, 2048)
    pi, square, R = (
        rng.random(shape, np.float32),
        rng.random(shape, np.float32),
        rng.random(16384, np.float32),
    )

    def loop():
        W = np.cumsum(1 - 2 * pi + square, -1)
        out = np.empty(shape, np.float32)
        for n in range(0, 16384, 16):
            rows = slice(n, n + 16)
            base = (R[rows, None] * W[rows]).sum(0) / (W[rows].sum(0) + 1e-8)
            out[rows] = R[rows, None] - base
        return out

    rollout = Rollout(
        tokens=jnp.zeros((1024, 16, 2048), jnp.int32),
        action_mask=jnp.ones((1024, 16, 2048), bool),
        logp=jnp.log(jnp.asarray(pi).reshape(1024, 16, 2048)),
        segment=jnp.zeros((1024, 16, 2048), jnp.int32),
        reward=jnp.asarray(R).reshape(1024, 16, 1),
        segment_mask=jnp.ones((1024, 16, 1), bool),
        signals={"prob_square": jnp.asarray(square).reshape(1024, 16, 2048)},
    )
    ours = jax.jit(credit.otb)
    return "the optimal token baseline [16384, 2048]", loop, lambda: ours(rollout), 1.8


def peers(rounds: int) -> list[dict]:
    rows = []
    for make in (peer_pure, peer_gigpo, peer_matchtir, peer_spo, peer_otb):
        name, loop, ours, published = make(np.random.default_rng(0))
        times = interleaved({"ours": ours}, rounds)["ours"]
        start = time.process_time()
        loop()
        rows.append(
            {
                "name": name,
                "ours_cpu_s": float(np.median(times[0])),
                "loop_cpu_s": time.process_time() - start,
                "published_s": published,
            }
        )
    return rows


def show(rows: list[dict]) -> None:
    from rich.console import Console
    from rich.table import Table

    table = Table(*(key for key in rows[0] if key != "reason"))
    for row in rows:
        slow = row.get("times_floor", 0) > 4
        table.add_row(
            *(x if isinstance(x, str) else f"{x:.4g}" for key, x in row.items() if key != "reason"),
            style="red" if slow else "",
        )
    Console(width=140).print(table)
    for row in rows:
        if row.get("reason"):
            print(f"{row['name']}: {row['reason']}")


def main():
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("names", nargs="*", help="estimators (default: all)")
    for name, size in (
        ("prompts", 256),
        ("rows", 16),
        ("tokens", 2048),
        ("turns", 16),
        ("rounds", 3),
    ):
        parser.add_argument(f"--{name}", type=int, default=size)
    parser.add_argument(
        "--peers", action="store_true", help="time the loops of released code and ours"
    )
    parser.add_argument("--json", help="write the numbers to this file")
    args = parser.parse_args()
    if args.peers:
        rows = peers(args.rounds)
    else:
        rollout, rows = batch(args.prompts, args.rows, args.tokens, args.turns), []
        for name in args.names or credit.__all__:
            needs = {s: rollout.signals[s] for s in method_of(getattr(credit, name)).needs}
            row = measure(name, Rollout(**{**vars(rollout), "signals": needs}), args.rounds)
            rows.append(row)
            print(
                f"{name:24} {row['cpu_s']:.3f} CPU s, {row['times_floor']:.1f} times its floor",
                flush=True,
            )
    show(rows)
    if args.json:
        with open(args.json, "w") as file:
            json.dump(rows, file, indent=1)


if __name__ == "__main__":
    main()
