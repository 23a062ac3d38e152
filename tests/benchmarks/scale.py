"""How a step grows with its devices: weak scaling over simulated ones, what it sends against ideal FSDP, and speed on one real GPU.

    python tests/benchmarks/scale.py                  # 1, 2, 4, 8 simulated CPU devices, a process each: about 2 CPU minutes
    python tests/benchmarks/scale.py --gpu            # one GPU, Qwen3-1.7B's shape with random weights

Simulated: prompts grow with the devices, so that a device's share of the work stays; where cores are fewer than devices only CPU seconds
a device mean anything. Bytes are those of the compiled step (jaxcredit.collectives) against an FSDP step that gathers all parameters in the
forward and again in the backward and scatters their gradient, 3 (n - 1) / n times the parameters. The compiler for CPUs has no scatter
of sums: it sums for all and keeps a part, at twice the bytes. `sent` counts these as the scatters that they are on TPUs and GPUs, `raw` as
they stand.

THE PART FOR A GPU HAS NOT BEEN RUN: none was at hand when it was written. It measures the train step's MFU at 4096 tokens (aim: half of the
rate of a matmul on the same device), decoding as a share of memory bandwidth at batch 64 and 256 (aim: 0.6), and prefix-tree credit on
[1024, 16, 8192] as a share of bandwidth.
"""

import argparse
import json
import os
import subprocess
import sys
import time

SIZES = (1, 2, 4, 8)


def simulated(n: int, prompts: int, steps: int) -> dict:
    """In a process with `n` devices."""
    import jax
    import numpy as np
    import optax

    from jaxcredit import collectives, mesh, params, plan, programs
    from jaxcredit.collect import assemble
    from jaxcredit.experiment import Experiment
    from jaxcredit.policy import presets
    from jaxcredit.tasks import Task

    item = {"prompt": "", "meta": ""}
    exp = Experiment(
        name="scale",
        task=Task("none", [item] * prompts * n, [item], lambda meta, text, ids: 0.0),
        tokenizer=plan.Unread(512, "shapes only"),
        policy=presets.micro(512, width=256, layers=4, heads=4, remat="full"),
        optimizer=optax.adam(1e-4),
        prompts=prompts * n,
        group=4,
        buckets=(32,),
        new=96,
        mesh={"fsdp": n},
    )
    made, rng = programs.build(exp), np.random.default_rng(0)
    N, R, P, S = exp.prompts, exp.group, 32, exp.new
    draw = lambda *shape: jax.device_put(rng.integers(1, 512, shape, np.int32), made.batch)  # noqa: E731
    true = lambda *shape: jax.device_put(np.ones(shape, bool), made.batch)  # noqa: E731
    zero = jax.device_put(np.zeros((N, R, S), np.float32), made.batch)
    drawn = {"tokens": draw(N, R, S), "logp": zero, "mask": true(N, R, S), "done": true(N, R)}
    reward = jax.device_put(rng.random((N, R, 1), np.float32), made.batch)
    rollout = assemble(draw(N, P), true(N, P), drawn, reward, where=made.batch).with_signals(prompt=draw(N))
    state, columns = made.init(jax.random.key(0)), made.credit(rollout)
    compiled = made.update.lower(state, rollout, columns).compile()
    times = []
    for _ in range(steps + 1):
        begun = time.process_time()
        state, metrics = jax.block_until_ready(compiled(state, rollout, columns))
        times.append((time.process_time() - begun) / n)
    sent = collectives.sent(compiled.as_text() or "", mesh.make(exp.mesh))
    ideal = 3 * (n - 1) / n * 4 * params.count(made.state.params)
    raw, sums = sum(sent.values()), sum(bytes for (kind, _), bytes in sent.items() if kind == "all-reduce")
    share = {"sent": (raw - sums / 2) / ideal, "raw": raw / ideal} if n > 1 else {}
    return {"devices": n, "cpu_s_a_device": float(np.median(times[1:])), "bytes": raw - sums / 2, **share, "loss": float(metrics["loss"])}


def gpu() -> dict:
    """On one GPU: NOT YET RUN."""
    import jax
    import jax.numpy as jnp
    import numpy as np
    import optax

    from jaxcredit import Rollout, credit, flops, losses, params
    from jaxcredit.credit import columns
    from jaxcredit.policy import decode, presets, transformer
    from jaxcredit.update import TrainState, make_update

    def seconds(call, rounds=5):
        jax.block_until_ready(call())
        times = []
        for _ in range(rounds):
            begun = time.perf_counter()
            jax.block_until_ready(call())
            times.append(time.perf_counter() - begun)
        return float(np.median(times))

    device = jax.devices()[0]
    if device.platform != "gpu":
        sys.exit(f"this part needs a GPU, JAX sees a {device.platform}: pip install 'jaxcredit[cuda]' on a machine that has one")
    out: dict = {"device": device.device_kind, "jax": jax.__version__, "command": " ".join(sys.argv)}
    square = jax.random.normal(jax.random.key(0), (8192, 8192), jnp.bfloat16)
    matmul = jax.jit(lambda x: x @ x)
    out["matmul_flops"] = 2 * 8192**3 / seconds(lambda: matmul(square))
    line = jnp.zeros(2**30, jnp.bfloat16)
    add = jax.jit(lambda x: x + 1)
    out["bandwidth"] = 2 * line.nbytes / seconds(lambda: add(line))
    del line

    cfg = presets.qwen3_1p7b(dtype="bfloat16", param_dtype="bfloat16")
    weights = jax.jit(lambda key: params.init(transformer.specs(cfg), key, "bfloat16"))(jax.random.key(0))
    for rows in (64, 256):
        new = 128
        prompt, valid = jnp.ones((rows, 128), jnp.int32), jnp.ones((rows, 128), bool)

        def sample(prompt=prompt, valid=valid, new=new):
            return decode.sample(weights, prompt, valid, jax.random.key(0), cfg, rows=1, new=new)

        took = seconds(sample) - seconds(lambda sample=sample: sample(new=1))
        cache = 2 * cfg.layers * cfg.kv_heads * cfg.head_dim * 2 * rows * (128 + new)  # the whole of it is read each step
        moved = (new - 1) * (2 * params.count(weights) + cache)
        out[f"decode_{rows}"] = {"tokens_per_s": rows * (new - 1) / took, "of_bandwidth": moved / took / out["bandwidth"]}

    N, R, P, S = 1, 4, 256, 3840

    def logprob(weights, rollout):
        return transformer.logprob(weights, rollout.tokens, rollout.valid, cfg, prompt=P)

    def rollout(N, R, T, P):
        key = jax.random.key(1)
        mask = jnp.broadcast_to(jnp.arange(T) >= P, (N, R, T))
        # Rows part at half of their length, so that credit has a tree to walk.
        own = jnp.where(jnp.arange(T) < P + (T - P) // 2, 5, jax.random.randint(key, (N, R, T), 1, 1000))
        parts = dict(reward=jax.random.uniform(key, (N, R, 1)), real=jnp.ones((N, R, 1), bool), valid=jnp.ones((N, R, T), bool))
        return Rollout(tokens=own, mask=mask, logp=jnp.zeros((N, R, T)), segment=mask.astype(jnp.int32) - 1, **parts)

    credited = jax.jit(lambda r: columns(credit.tempo(r), r))
    optimizer = optax.adam(1e-6)
    update = make_update(logprob, losses.ppo_clip, losses.token_mean, optimizer)
    batch = rollout(N, R, P + S, P)
    decided = credited(batch)
    held = [TrainState(weights, optimizer.init(weights), {}, jax.random.key_data(jax.random.key(0)), jnp.int32(0))]

    def step():
        held[0], metrics = update(held[0], batch, decided)
        return metrics

    took = seconds(step)
    needed = 3 * float(flops.forward(cfg, jnp.full(N, P), jnp.full((N, R), S)))
    out["train_4096"] = {"seconds": took, "of_matmul": needed / took / out["matmul_flops"]}
    held.clear()
    del weights

    large = rollout(1024, 16, 8192, 256)
    took = seconds(lambda: credited(large))
    least = sum(x.nbytes for x in (large.tokens, large.mask, large.valid)) + 4 * large.tokens.size  # what must be read, and the advantage
    out["credit_1024_16_8192"] = {"seconds": took, "of_bandwidth": least / took / out["bandwidth"]}
    return out


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--gpu", action="store_true")
    parser.add_argument("--devices", type=int, nargs="+", default=SIZES)
    parser.add_argument("--prompts", type=int, default=2, help="a device")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.child:
        print(json.dumps(simulated(a.child, a.prompts, a.steps)))
        return
    if a.gpu:
        print(json.dumps(gpu(), indent=2))
        return
    for n in a.devices:
        env = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(n)}
        words = [sys.executable, __file__, "--child", str(n), "--prompts", str(a.prompts), "--steps", str(a.steps)]
        done = subprocess.run(words, env=env, stdout=subprocess.PIPE, text=True, check=True)
        print(done.stdout.strip().splitlines()[-1], flush=True)


if __name__ == "__main__":
    main()
