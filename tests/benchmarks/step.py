r"""Seconds of one training step on a CPU: sampling, credit and one update over all rows, in float32.
Medians over the steps.

The MLP's matmul is timed between the steps on as many tokens, because the speed of machines varies.
`of_matmul` is the ratio of the step's FLOPs a CPU second (jaxcredit.train.planning.flops) to those
of the matmul. AdamW, clipped objective, no KL penalty, no stop token.

python tests/benchmarks/step.py --layers 4 --width 256 --heads 8 --ffn 1024 --vocab 512 \
  --prompts 8 --group 8 --prompt 32 --max_new_tokens 64 --steps 8
"""

import argparse
import functools
import json
import resource
import statistics
import time

BEGIN = (
    time.perf_counter()
)  # start of the first step: imports, initialization and compilation included

import jax  # noqa: E402
import jax.numpy as jnp  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402

from jaxcredit import Rollout, credit, losses  # noqa: E402
from jaxcredit.credit import columns  # noqa: E402
from jaxcredit.parallel import params  # noqa: E402
from jaxcredit.policy import sampler, transformer  # noqa: E402
from jaxcredit.train.planning import flops  # noqa: E402
from jaxcredit.train.programs import compiler_options  # noqa: E402
from jaxcredit.train.update import TrainState, make_update  # noqa: E402


def main() -> None:
    parser = argparse.ArgumentParser()
    sizes = dict(
        layers=4,
        width=256,
        heads=8,
        ffn=1024,
        vocab=512,
        prompts=8,
        group=8,
        prompt=32,
        max_new_tokens=64,
        steps=8,
    )
    for name, value in sizes.items():
        parser.add_argument(f"--{name}", type=int, default=value)
    parser.add_argument("--remat", default="none", choices=("none", "full"))
    parser.add_argument("--credit", default="tempo", choices=("tempo", "grpo"))
    parser.add_argument("--json")
    a = parser.parse_args()
    cfg = transformer.Config(
        vocab=a.vocab,
        width=a.width,
        layers=a.layers,
        heads=a.heads,
        kv_heads=a.heads,
        head_dim=a.width // a.heads,
        ffn=a.ffn,
        remat=a.remat,
    )
    N, R, P, S = a.prompts, a.group, a.prompt, a.max_new_tokens
    optimizer, options = optax.adamw(1e-4), compiler_options()
    jit = functools.partial(jax.jit, compiler_options=options)

    @jit
    def start(key):
        weights = params.init(transformer.specs(cfg), key)
        return TrainState(
            weights, optimizer.init(weights), {}, jax.random.key_data(key), jnp.int32(0)
        )

    def logprob(weights, rollout):
        return transformer.logprob(weights, rollout.tokens, rollout.token_mask, cfg, prompt=P)

    update = make_update(
        logprob, losses.ppo_clip, losses.token_mean, optimizer, compiler_options=options
    )
    method = getattr(credit, a.credit)
    credited = jit(lambda rollout: columns(method(rollout), rollout))

    sample = jit(functools.partial(sampler.sample, cfg=cfg, rows=R, max_new_tokens=S))

    @jit
    def assemble(prompt, drawn):
        """The rollout, with the share of even token ids as the reward."""
        shape = (N, R, P + S)
        with_prompt = lambda x, fill: jnp.concatenate([jnp.broadcast_to(fill, (N, R, P)), x], -1)  # noqa: E731
        mask = with_prompt(drawn["mask"], False)
        return Rollout(
            tokens=with_prompt(drawn["tokens"], prompt[:, None]),
            action_mask=mask,
            logp=with_prompt(drawn["logp"], 0.0),
            segment=mask.astype(jnp.int32) - 1,
            reward=(drawn["tokens"] % 2 == 0).mean(-1, keepdims=True),
            segment_mask=jnp.ones((N, R, 1), bool),
            token_mask=jnp.ones(shape, bool),
        ).filled()

    @jax.jit
    def matmul(x, w):
        return x @ w

    x, w = jax.device_put(
        [np.ones((N * (P + R * S), a.width), np.float32), np.ones((a.width, a.ffn), np.float32)]
    )
    forward_flops = jit(
        lambda: flops.forward_flops(cfg, jnp.full((N,), P), jnp.full((N, R), S))
    )()  # sampling needs it once, training three times
    key = jax.random.key(0)
    # numpy, because jax.random.randint would compile one more program
    state, prompt, valid = (
        start(key),
        np.random.default_rng(0).integers(0, a.vocab, (N, P), np.int32),
        np.ones((N, P), bool),
    )
    times = []
    for i in range(a.steps + 1):
        t0, c0 = time.perf_counter(), time.process_time()
        drawn = sample(state.params, prompt, valid, jax.random.fold_in(key, i))
        rollout = jax.block_until_ready(assemble(prompt, drawn))
        t1, c1 = time.perf_counter(), time.process_time()
        state, metrics = update(state, rollout, credited(rollout))
        jax.block_until_ready((state, metrics))
        t2, c2 = time.perf_counter(), time.process_time()
        if i == 0:
            first = t2 - BEGIN
        else:
            times.append(
                {
                    "step_s": t2 - t0,
                    "step_cpu_s": c2 - c0,
                    "rollout_s": t1 - t0,
                    "train_s": t2 - t1,
                    "rollout_cpu_s": c1 - c0,
                }
            )
            for _ in range(10):
                jax.block_until_ready(
                    matmul(x, w)
                )  # one at a time: ten results at once need new memory, with page faults
            times[-1]["matmul_gflop_per_cpu_s"] = (
                10 * 2 * x.size * a.ffn / (time.process_time() - c2) / 1e9
            )
    out = {name: statistics.median(t[name] for t in times) for name in times[0]}
    out["tokens_per_s"] = N * R * S / out["step_s"]
    out["of_matmul"] = (
        4 * float(forward_flops) / out["step_cpu_s"] / 1e9 / out["matmul_gflop_per_cpu_s"]
    )
    out["first_step_s"] = first
    out["peak_rss_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    out = {name: round(x, 3) for name, x in out.items()}
    print(json.dumps(out, indent=2))
    if a.json:
        with open(a.json, "w") as f:
            json.dump(out, f, indent=2)


if __name__ == "__main__":
    main()
