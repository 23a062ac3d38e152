"""Cost of checkpoints: the share of a run's time at one save every 100 steps, and the bytes that a
restore reads.

    python tests/benchmarks/save.py
    python tests/benchmarks/save.py --width 512 --layers 8

`save` returns after the state was copied to the host; writing and checksums run during the next
steps and slow them down. The cost is the wall time of `save` and of the steps until the write has
ended, minus the usual time of these steps. The steps are supervised, on 16 rows of 128 tokens. A
restore of the parameters alone should read a third of the saved bytes.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxcredit import losses
from jaxcredit.parallel import params
from jaxcredit.policy import transformer
from jaxcredit.rollout import Rollout
from jaxcredit.train.runs.checkpoint import Checkpoints
from jaxcredit.train.update import TrainState, make_update


def bytes_read() -> int:
    """Bytes that this process has read from files."""
    return int(Path("/proc/self/io").read_text().split("rchar:")[1].split()[0])


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    for name, value in dict(layers=4, width=256, vocab=4096, rounds=3, every=100).items():
        parser.add_argument(f"--{name}", type=int, default=value)
    a = parser.parse_args()
    shape = {
        "layers": a.layers,
        "width": a.width,
        "heads": 8,
        "kv_heads": 8,
        "head_dim": a.width // 8,
        "ffn": 4 * a.width,
    }
    cfg = transformer.Config(vocab=a.vocab, **shape)
    optimizer = optax.adamw(1e-4)

    @jax.jit
    def start(key):
        weights = params.init(transformer.specs(cfg), key)
        return TrainState(
            weights, optimizer.init(weights), {}, jax.random.key_data(key), jnp.int32(0)
        )

    tokens = jnp.asarray(np.random.default_rng(0).integers(0, a.vocab, (16, 1, 128), np.int32))
    mask = jnp.broadcast_to(jnp.arange(128) >= 8, tokens.shape)
    one, segment = jnp.ones((16, 1, 1)), mask.astype(jnp.int32) - 1
    rollout = Rollout(
        tokens=tokens,
        action_mask=mask,
        logp=0.0 * mask,
        segment=segment,
        reward=one,
        segment_mask=one > 0,
    ).filled()

    def logprob(weights, rollout):
        return transformer.logprob(weights, rollout.tokens, rollout.token_mask, cfg, prompt=8)

    update = make_update(logprob, losses.nll, losses.token_mean, optimizer)
    state, took = start(jax.random.key(0)), []

    def step():
        nonlocal state
        begin = time.perf_counter()
        state, _ = update(state, rollout, 1.0 * mask)
        jax.block_until_ready(state)
        return time.perf_counter() - begin

    step()
    with (
        tempfile.TemporaryDirectory() as folder,
        Checkpoints(Path(folder) / "c", every=1, max_to_keep=1) as checkpoints,
    ):
        blocked, costs = [], []
        for k in range(a.rounds):
            took += [step() for _ in range(5)]
            begin, n = time.perf_counter(), 0
            checkpoints.save(k + 1, state)
            blocked.append(time.perf_counter() - begin)
            while n < 4 or not checkpoints._pending[2].done():
                step()
                n += 1
            costs.append(time.perf_counter() - begin - n * statistics.median(took))
        checkpoints.wait()
        size = sum(p.stat().st_size for p in Path(folder).rglob("*") if p.is_file())
        abstract = jax.eval_shape(lambda: state)
        reads = {}
        for name, part in (("all", abstract), ("params", {"params": abstract.params})):
            before = bytes_read()
            jax.block_until_ready(checkpoints.restore(part, partial=name != "all")[0])
            reads[name] = bytes_read() - before - size  # the checksums read every file once more
    usual = statistics.median(took)
    out = {
        "parameters": params.count(jax.eval_shape(lambda: state.params)),
        "saved_mb": round(size / 1e6, 1),
        "step_s": round(usual, 3),
        "save_blocks_s": round(statistics.median(blocked), 3),
        "save_costs_s": round(statistics.median(costs), 3),
        f"share_of_{a.every}_steps": round(statistics.median(costs) / (a.every * usual), 4),
        "restore_read_mb": round(reads["all"] / 1e6, 1),
        "restore_params_read_mb": round(reads["params"] / 1e6, 1),
    }
    print(json.dumps(out, indent=2))


if __name__ == "__main__":
    main()
