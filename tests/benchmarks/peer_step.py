r"""Seconds of the training step of step.py in tunix 0.1.7: Llama on random weights, RLCluster
(vanilla rollout), GRPOLearner.

Flags, shapes and medians are those of step.py. Run both one after the other on one machine and
compare.

    pip install google-tunix==0.1.7  # in its own environment, without jaxcredit
    python tests/benchmarks/peer_step.py --layers 4 --width 256 --heads 8 --ffn 1024 \
        --vocab 512 --prompts 8 --group 8 --prompt 32 --max_new_tokens 64

A step is the time between two requests of the learner for prompts. Its rollout part ends when the
reward is called. Settings: static shapes, a KV cache of the rows' length, weights shared by trainer
and sampler, one batch; no reference model, mesh, stop token, metric backend or checkpoint. Other
behavior of tunix is unchanged: it computes the prompt once a row, and its loss reports the entropy.
Its sampler does not support rematerialization (flax 0.12.8).
"""
# pyright: reportMissingImports=false

import argparse
import json
import resource
import statistics
import time

BEGIN = (
    time.perf_counter()
)  # start of the first step: imports, initialization and compilation included

import jax  # noqa: E402
import numpy as np  # noqa: E402
import optax  # noqa: E402
from flax import nnx  # noqa: E402
from tunix.models.llama3.model import Llama3, ModelConfig  # noqa: E402
from tunix.rl.grpo.grpo_learner import GRPOConfig, GRPOLearner  # noqa: E402
from tunix.rl.rl_cluster import ClusterConfig, RLCluster, RLTrainingConfig, Role  # noqa: E402
from tunix.rl.rollout.base_rollout import RolloutConfig  # noqa: E402


class Characters:
    """Tokenizer with one character a token id, without begin, end or padding tokens."""

    def encode(self, text: str) -> list[int]:
        return [ord(c) - 32 for c in text]

    def decode(self, ids: list[int]) -> str:
        return "".join(chr(i + 32) for i in ids)

    def bos_id(self) -> None:
        return None

    def eos_id(self) -> int:
        return -1

    pad_id = eos_id


def clock() -> np.ndarray:
    return np.array([time.perf_counter(), time.process_time()])


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
    parser.add_argument("--remat", default="none", choices=("none",))
    parser.add_argument("--credit", default="grpo", choices=("grpo",))
    parser.add_argument("--json")
    parser.add_argument(
        "--against", help="file of step.py --json: prints its numbers relative to these"
    )
    a = parser.parse_args()
    cfg = ModelConfig(
        num_layers=a.layers,
        vocab_size=a.vocab,
        embed_dim=a.width,
        hidden_dim=a.ffn,
        num_heads=a.heads,
        head_dim=a.width // a.heads,
        num_kv_heads=a.heads,
        rope_theta=10_000,
        norm_eps=1e-6,
        weight_tying=True,
    )
    N, R, P, S = a.prompts, a.group, a.prompt, a.max_new_tokens
    rng, tokenizer = np.random.default_rng(0), Characters()
    prompts = np.array([tokenizer.decode(ids) for ids in rng.integers(0, a.vocab, (N, P)).tolist()])

    def weight(spec):
        """Initial value: 1 for norms, random for matrices. Llama3() leaves its MLPs at 0, where
        they would stay.
        """
        return (
            np.ones(spec.shape, spec.dtype)
            if spec.ndim == 1
            else rng.normal(0, a.width**-0.5, spec.shape).astype(spec.dtype)
        )

    @jax.jit
    def matmul(x, w):
        return x @ w

    x, w = jax.device_put(
        [np.ones((N * (P + R * S), a.width), np.float32), np.ones((a.width, a.ffn), np.float32)]
    )
    graph, specs = nnx.split(nnx.eval_shape(lambda: Llama3(cfg, rngs=nnx.Rngs(0))))
    model = nnx.merge(graph, jax.device_put(jax.tree.map(weight, specs)))
    first, rewarded, times = 0.0, clock(), []

    def reward(prompts, completions, **_):
        """The share of even token ids, as in step.py. Also checks that every token was sampled."""
        nonlocal rewarded
        ids = np.array([tokenizer.encode(text) for text in completions])
        assert ids.shape == (N * R, S) and 0 <= ids.min() < ids.max() < a.vocab
        rewarded = clock()
        return (ids % 2 == 0).mean(-1).tolist()

    def batches():
        nonlocal first
        for i in range(a.steps + 1):
            begin = clock()
            yield {"prompts": prompts}
            jax.block_until_ready(nnx.state(model))
            end = clock()
            if i == 0:
                first = end[0] - BEGIN
                continue
            (step, cpu), (rollout, rollout_cpu) = end - begin, rewarded - begin
            times.append(
                {
                    "step_s": step,
                    "step_cpu_s": cpu,
                    "rollout_s": rollout,
                    "train_s": step - rollout,
                    "rollout_cpu_s": rollout_cpu,
                }
            )
            for _ in range(10):
                jax.block_until_ready(matmul(x, w))
            times[-1]["matmul_gflop_per_cpu_s"] = (
                10 * 2 * x.size * a.ffn / (time.process_time() - end[1]) / 1e9
            )

    mesh = jax.sharding.Mesh(
        np.empty((), object), ()
    )  # no mesh, as in tunix's tests: no array is resharded in a step
    config = ClusterConfig(
        role_to_mesh={Role.ACTOR: mesh, Role.ROLLOUT: mesh},
        training_config=RLTrainingConfig(
            actor_optimizer=optax.adamw(1e-4), eval_every_n_steps=10**9, max_steps=10**9
        ),
        rollout_config=RolloutConfig(
            max_tokens_to_generate=S, max_prompt_length=P, kv_cache_size=P + S, temperature=1.0
        ),
    )
    cluster = RLCluster(actor=model, tokenizer=tokenizer, cluster_config=config)
    GRPOLearner(cluster, GRPOConfig(num_generations=R, beta=0.0), reward).train(batches())
    loss = cluster.actor_trainer.metrics_logger.get_metric_history("actor", "loss", "train")
    assert (
        len(loss) == a.steps + 1
        and np.isfinite(loss).all()
        and (cluster.rollout.model().final_norm.w[...] != 1).any()
    )
    out = {name: statistics.median(t[name] for t in times) for name in times[0]}
    out["tokens_per_s"] = N * R * S / out["step_s"]
    out["first_step_s"] = first
    out["peak_rss_mb"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    out = {name: round(float(value), 3) for name, value in out.items()}
    print(json.dumps(out, indent=2))
    if a.json:
        with open(a.json, "w") as f:
            json.dump(out, f, indent=2)
    if a.against:
        with open(a.against) as f:
            ours = json.load(f)
        print(
            "step.py over this:",
            json.dumps(
                {name: round(ours[name] / value, 3) for name, value in out.items()}, indent=2
            ),
        )


if __name__ == "__main__":
    main()
