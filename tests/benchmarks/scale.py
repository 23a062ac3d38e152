"""Weak scaling over simulated CPU devices: CPU seconds a step, and bytes sent relative to ideal
FSDP.

    python tests/benchmarks/scale.py    # 1, 2, 4, 8 simulated CPU devices, a process each

The number of prompts grows with the devices, so that the work of a device stays the same. With
fewer cores than devices, only the CPU seconds a device are meaningful. The bytes of the compiled
step (jaxcredit.train.planning.collectives) are compared with an FSDP step that gathers all
parameters in the forward and the backward pass and reduce-scatters their gradient: 3 (n - 1) / n
times the parameters. XLA's CPU compiler has no reduce-scatter and uses an all-reduce of twice the
bytes. `sent` counts an all-reduce as a reduce-scatter, as on TPUs and GPUs; `raw` counts it as it
is.
"""

import argparse
import json
import os
import subprocess
import sys
import time

SIZES = (1, 2, 4, 8)


def simulated(n: int, prompts: int, steps: int) -> dict:
    """Measurements of one process with `n` simulated devices."""
    import jax
    import numpy as np
    import optax

    from jaxcredit.collect.single_turn import assemble
    from jaxcredit.parallel import mesh, params
    from jaxcredit.policy import PlaceholderTokenizer, presets
    from jaxcredit.tasks import Task
    from jaxcredit.train import programs
    from jaxcredit.train.experiment import Experiment
    from jaxcredit.train.planning import collectives

    item = {"prompt": "", "meta": ""}
    exp = Experiment(
        name="scale",
        task=Task("none", [item] * prompts * n, [item], lambda meta, text, ids: 0.0),
        tokenizer=PlaceholderTokenizer(512, "shapes only"),
        policy=presets.micro(512, width=256, layers=4, heads=4, remat="full"),
        optimizer=optax.adam(1e-4),
        prompts_per_step=prompts * n,
        group_size=4,
        buckets=(32,),
        max_new_tokens=96,
        mesh={"fsdp": n},
    )
    made, rng = programs.build(exp), np.random.default_rng(0)
    N, R, P, S = exp.prompts_per_step, exp.group_size, 32, exp.max_new_tokens
    draw = lambda *shape: jax.device_put(rng.integers(1, 512, shape, np.int32), made.batch)  # noqa: E731
    true = lambda *shape: jax.device_put(np.ones(shape, bool), made.batch)  # noqa: E731
    zero = jax.device_put(np.zeros((N, R, S), np.float32), made.batch)
    drawn = {"tokens": draw(N, R, S), "logp": zero, "mask": true(N, R, S), "done": true(N, R)}
    reward = jax.device_put(rng.random((N, R, 1), np.float32), made.batch)
    rollout = assemble(
        draw(N, P), true(N, P), drawn, reward, true(N, R, 1), where=made.batch
    ).with_signals(prompt=draw(N))
    state, columns = made.init(jax.random.key(0)), made.credit(rollout)
    compiled = made.update.lower(state, rollout, columns).compile()
    times = []
    for _ in range(steps + 1):
        begun = time.process_time()
        state, metrics = jax.block_until_ready(compiled(state, rollout, columns))
        times.append((time.process_time() - begun) / n)
    sent = collectives.bytes_sent(compiled.as_text() or "", mesh.make(exp.mesh))
    ideal = 3 * (n - 1) / n * 4 * params.count(made.state.params)
    raw, sums = (
        sum(sent.values()),
        sum(bytes for (kind, _), bytes in sent.items() if kind == "all-reduce"),
    )
    share = {"sent": (raw - sums / 2) / ideal, "raw": raw / ideal} if n > 1 else {}
    return {
        "devices": n,
        "cpu_s_a_device": float(np.median(times[1:])),
        "bytes": raw - sums / 2,
        **share,
        "loss": float(metrics["loss"]),
    }


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--devices", type=int, nargs="+", default=SIZES)
    parser.add_argument("--prompts", type=int, default=2, help="prompts of one device")
    parser.add_argument("--steps", type=int, default=3)
    parser.add_argument("--child", type=int, help=argparse.SUPPRESS)
    a = parser.parse_args()
    if a.child:
        print(json.dumps(simulated(a.child, a.prompts, a.steps)))
        return
    for n in a.devices:
        env = {**os.environ, "JAX_PLATFORMS": "cpu", "JAX_NUM_CPU_DEVICES": str(n)}
        words = [
            sys.executable,
            __file__,
            "--child",
            str(n),
            "--prompts",
            str(a.prompts),
            "--steps",
            str(a.steps),
        ]
        done = subprocess.run(words, env=env, stdout=subprocess.PIPE, text=True, check=True)
        print(done.stdout.strip().splitlines()[-1], flush=True)


if __name__ == "__main__":
    main()
