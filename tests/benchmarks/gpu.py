"""Measurements on one GPU: errors of cuDNN attention; speed of training, sampling and credit
relative to the device's rates.

    python tests/benchmarks/gpu.py devices        # the device as JAX reports it
    python tests/benchmarks/gpu.py attention      # errors of cuDNN attention, forward and backward
    python tests/benchmarks/gpu.py scale          # model FLOP/s and memory bandwidth
    python tests/benchmarks/gpu.py scale --dry    # the same with very small shapes, on any device

Each result is printed as one line of JSON as soon as it is known. A failed measurement prints a
line with `error`, and the next measurement starts. `.ci/gpu` runs all three parts, each with a time
limit. Weights are random, because speed does not depend on them.
"""

import argparse
import dataclasses
import functools
import gc
import json
import os
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from importlib.metadata import distributions, version

os.environ.setdefault("XLA_PYTHON_CLIENT_MEM_FRACTION", "0.92")

import jax
import jax.numpy as jnp
import numpy as np
import optax

from jaxcredit import credit
from jaxcredit.collect.single_turn import assemble
from jaxcredit.credit import columns
from jaxcredit.parallel import params
from jaxcredit.policy import PlaceholderTokenizer, presets, sampler, transformer
from jaxcredit.policy import fused_attention as fused
from jaxcredit.policy.positions import NO_WINDOW
from jaxcredit.rollout import Rollout
from jaxcredit.tasks import Task
from jaxcredit.train import programs
from jaxcredit.train.experiment import Experiment
from jaxcredit.train.planning import flops
from jaxcredit.train.runs import timing


def report(label: str, result: str, details: str = "", ok: bool = True, **numbers) -> None:
    """Print one result as JSON: the measurement, its main number, the numbers to compare with, and
    all raw numbers.
    """
    print(
        json.dumps({"label": label, "result": result, "details": details, "ok": ok, **numbers}),
        flush=True,
    )


def attempt(label: str, measure, *args) -> None:
    """Run one measurement, report its failure as a result, and free the memory of the device."""
    try:
        measure(label, *args)
    except Exception as error:
        text = f"{type(error).__name__}: {error}"
        report(label, "failed: " + text.splitlines()[0][:160], ok=False, error=text[:4000])
    gc.collect()
    jax.clear_caches()


def compile_together(*measurements) -> None:
    """Compile several measurements in threads, up to their `yield`, then run one after the other on
    the device.
    """
    running = [(label, measure(label, *args)) for label, measure, *args in measurements]

    def compiled(generator):
        try:
            next(generator)
        except Exception as error:
            return error
        return None

    def run(_, generator, error):
        if error:
            raise error
        next(generator, None)

    with ThreadPoolExecutor(len(running)) as pool:
        errors = list(pool.map(compiled, [generator for _, generator in running]))
    for (label, generator), error in zip(running, errors, strict=True):
        attempt(label, run, generator, error)


def seconds(call, rounds: int = 5, calls: int = 1) -> float:
    """Median seconds of a compiled call. `calls` calls are queued at once, which hides the time to
    dispatch them.
    """
    jax.block_until_ready(call())
    times = []
    for _ in range(rounds):
        begun = time.perf_counter()
        jax.block_until_ready([call() for _ in range(calls)][-1])
        times.append((time.perf_counter() - begun) / calls)
    return float(np.median(times))


def devices() -> None:
    device = jax.devices()[0]
    numbers = {
        "kind": device.device_kind,
        "platform": device.platform,
        "count": jax.device_count(),
        "jax": jax.__version__,
    }
    memory = (device.memory_stats() or {}).get("bytes_limit", 0)
    platform_version = device.client.platform_version.replace("\n", " ")
    names = ("nvidia-cudnn-cu13", "nvidia-cudnn-cu12")
    cudnn = [
        version(name) for name in names if any(d.metadata["Name"] == name for d in distributions())
    ] or None
    report(
        "device",
        f"{numbers['count']} x {device.device_kind}, {memory / 2**30:.0f} GiB",
        f"jax {jax.__version__}, cuDNN {cudnn}",
        memory=memory,
        platform_version=platform_version,
        cudnn=cudnn,
        capability=getattr(device, "compute_capability", None),
        peak=timing.peak_flops(device.device_kind),
        **numbers,
    )


# -- attention


def attention_mask(valid: np.ndarray, P: int, S: int, window: int) -> np.ndarray:
    """Mask `[N, T, T]` of packed groups: valid tokens of the prompt and the own row, among the last
    `window` up to the token itself.
    """
    N, T = valid.shape
    row = np.where(np.arange(T) < P, -1, (np.arange(T) - P) // max(S, 1))
    earlier = (
        np.tril(np.ones((T, T), bool))
        & ((row[None] == -1) | (row[None] == row[:, None]))
        & valid[:, None, :]
    )
    position = (earlier & valid[:, :, None]).sum(-1)  # 1, 2, ... along the valid tokens of a row
    return earlier & (position[:, :, None] - position[:, None, :] < window)


def reference_attention(q, k, v, mask, cfg):
    """Softmax attention in float32."""
    q, k, v = (x.astype(jnp.float32) for x in (q, k, v))
    k, v = (jnp.repeat(x, q.shape[2] // x.shape[2], 2) for x in (k, v))
    precision = {"precision": "highest"}
    z = jnp.einsum("nihd,njhd->nhij", q, k, **precision) / (cfg.score_dim or cfg.head_dim) ** 0.5
    return jnp.einsum(
        "nhij,njhd->nihd", jax.nn.softmax(jnp.where(mask[:, None], z, -1e30), -1), v, **precision
    )


def relative_error(a, b) -> float:
    """|a - b| / |b|."""
    a, b = (np.asarray(x, np.float64) for x in (a, b))
    return float(np.linalg.norm(a - b) / max(np.linalg.norm(b), 1e-30))


def padding(kind: str, N: int, P: int, R: int, S: int) -> np.ndarray:
    """Mask of valid tokens of packed groups `[N, P + R S]`, with the given kind of padding."""
    rng = np.random.default_rng(0)
    prompt, rows = np.ones((N, P), bool), np.ones((N, R, S), bool)
    if kind != "none":
        prompt = np.arange(P) >= rng.integers(1, max(P, 2), (N, 1))  # on the left
        rows = np.arange(S) < rng.integers(1, max(S, 2), (N, R, 1))
    if kind == "holes":
        prompt[0], rows[-1, 0] = False, False  # an empty prompt, an empty row
        rows &= rng.random((N, R, S)) < 0.8
    return np.concatenate([prompt, rows.reshape(N, -1)], 1)


# name: heads, kv heads, head size, prompts, prompt length, rows, row length, window (0: all),
# padding
ATTENTION = {
    "Qwen3's heads, no padding": (16, 8, 128, 2, 128, 4, 256, 0, "none"),
    "Qwen3's heads, padding left and right": (16, 8, 128, 2, 128, 4, 256, 0, "both"),
    "holes, an empty row, an empty prompt": (16, 8, 128, 2, 128, 4, 256, 0, "holes"),
    "odd lengths": (14, 2, 64, 2, 37, 3, 101, 0, "both"),
    "a window of 64": (4, 1, 256, 2, 128, 4, 256, 64, "both"),
    "a window of 64, holes": (8, 8, 96, 2, 65, 4, 131, 64, "holes"),
    "a prompt alone": (16, 8, 128, 4, 512, 1, 0, 0, "both"),
    "one row of 4096": (16, 8, 128, 1, 256, 1, 3840, 0, "both"),
}
MICRO = {
    "holes, an empty row, an empty prompt": (4, 2, 8, 2, 9, 3, 12, 0, "holes"),
    "a window of 4": (4, 1, 16, 2, 9, 3, 12, 4, "holes"),
    "a prompt alone": (4, 2, 8, 2, 16, 1, 0, 0, "both"),
}
# The 8 bits of a bfloat16 lead to errors of a few thousandths in a matmul.
TOLERANCE = 2e-2


def cudnn_error(label, heads, kv_heads, head_dim, N, P, R, S, window, pads) -> None:
    """Relative errors of output and gradients of cuDNN attention in bfloat16 against float32
    attention.
    """
    cfg = presets.micro(
        16,
        heads=heads,
        width=heads * head_dim,
        kv_heads=kv_heads,
        dtype="bfloat16",
        attention="cudnn",
    )
    cfg = dataclasses.replace(cfg, windows=(window,) if window else ())
    valid = padding(pads, N, P, R, S)
    T, rng = valid.shape[1], np.random.default_rng(1)
    q, k, v, g = (
        jnp.asarray(rng.normal(size=(N, T, n, head_dim)), jnp.bfloat16)
        for n in (heads, kv_heads, kv_heads, heads)
    )
    g = jnp.where(valid[..., None, None], g, 0)  # no gradient from padding
    mask = jnp.asarray(attention_mask(valid, P, S, window or NO_WINDOW))
    kernel = functools.partial(
        fused.fused_kernel(cfg, jnp.asarray(valid), P, S), window=jnp.int32(window or NO_WINDOW)
    )

    def output_and_gradients(f):
        def call(q, k, v, g):
            out, back = jax.vjp(f, q, k, v)
            return out, *back(g.astype(out.dtype))

        return jax.jit(call)(q, k, v, g)

    actual, expected = (
        output_and_gradients(kernel),
        output_and_gradients(lambda q, k, v: reference_attention(q, k, v, mask, cfg)),
    )
    pairs = zip(("out", "dq", "dk", "dv"), actual, expected, strict=True)
    errors = {
        name: relative_error(a[valid] if name == "out" else a, b[valid] if name == "out" else b)
        for name, a, b in pairs
    }
    finite = all(bool(jnp.isfinite(a).all()) for a in actual)
    name, worst = max(errors.items(), key=lambda x: x[1])
    ok = finite and worst < TOLERANCE
    note = (
        ""
        if jax.devices()[0].platform == "gpu"
        else "; not cuDNN: XLA's implementation of the same call"
    )
    result = f"largest relative error {worst:.1e} ({name})" if finite else "not finite"
    report(
        label,
        result,
        f"at most {TOLERANCE:.0e}{note}",
        ok,
        errors=errors,
        shape=[heads, kv_heads, head_dim, N, P, R, S, window, pads],
    )


def policy_error(label, dry: bool, windows: tuple[int, ...]) -> None:
    """Relative errors of log-probabilities and gradients in bfloat16 against float32, with cuDNN
    and with plain attention.
    """
    N, P, R, S, width = (2, 9, 3, 12, 64) if dry else (2, 128, 4, 256, 1024)
    cfg = presets.micro(
        512,
        width=width,
        layers=2,
        heads=4 if dry else 8,
        kv_heads=2,
        qk_norm=True,
        windows=windows,
        attention="plain",
    )
    weights = params.init(transformer.specs(cfg), jax.random.key(0))
    valid = padding("both", N, P, R, S)
    valid = np.concatenate(
        [np.broadcast_to(valid[:, None, :P], (N, R, P)), valid[:, P:].reshape(N, R, S)], 2
    )
    tokens = jax.random.randint(jax.random.key(1), valid.shape, 1, cfg.vocab)
    chosen = jnp.asarray(valid[:, :, P:] & valid[:, :, P - 1 : -1])
    weight = jnp.where(chosen, jax.random.normal(jax.random.key(2), chosen.shape), 0)

    def run(**fields):
        def loss(weights):
            logp = transformer.logprob(
                weights, tokens, valid, dataclasses.replace(cfg, **fields), prompt=P
            )["logp"]
            return jnp.where(chosen, logp * weight, 0).sum(), jnp.where(chosen, logp, 0)

        gradient, logp = jax.jit(jax.grad(loss, has_aux=True))(weights)
        return logp, jnp.concatenate([x.ravel() for x in jax.tree.leaves(gradient)])

    with jax.default_matmul_precision("highest"):
        exact = run()
    errors = {
        name: [
            relative_error(a, b)
            for a, b in zip(run(dtype="bfloat16", attention=name), exact, strict=True)
        ]
        for name in ("cudnn", "plain")
    }
    ok = all(
        a <= 2 * b + 1e-3 for a, b in zip(errors["cudnn"], errors["plain"], strict=True)
    )  # a NaN fails too
    text = {name: f"log-probs {a:.1e}, gradient {b:.1e}" for name, (a, b) in errors.items()}
    report(label, text["cudnn"], f"plain, bfloat16: {text['plain']}", ok, errors=errors)


def attention(dry: bool) -> None:
    for name, shape in (MICRO if dry else ATTENTION).items():
        attempt(f"attention: {name}", cudnn_error, *shape)
    for name, windows in (
        (("two windows", (4, 0)),) if dry else (("all tokens", ()), ("two windows", (64, 0)))
    ):
        attempt(f"policy of two layers, {name}", policy_error, dry, windows)


# -- speed

RATE: dict[
    str, float
] = {}  # measured rates of this device: floating-point operations and bytes moved a second


def device_rates(label, dry: bool) -> None:
    """Rates of a large matmul and of a large copy, the upper bounds of the measurements below."""
    side, length = (256, 2**20) if dry else (8192, 2**30)
    a, b = (jax.random.normal(jax.random.key(i), (side, side), jnp.bfloat16) for i in range(2))
    product = jax.jit(jnp.matmul)
    RATE["flops"] = 2 * side**3 / seconds(lambda: product(a, b), calls=10)
    line, copy = jnp.ones(length, jnp.bfloat16), jax.jit(lambda x: -x)
    RATE["bytes"] = 2 * line.nbytes / seconds(lambda: copy(line), calls=3)
    peak = timing.peak_flops(jax.devices()[0].device_kind)
    details = f"data sheet: {peak / 1e12:.0f} TFLOP/s" if peak else "no data sheet"
    report(
        f"bfloat16 matmul of {side} by {side}",
        f"{RATE['flops'] / 1e12:.3g} TFLOP/s",
        details,
        flops=RATE["flops"],
        peak=peak,
    )
    report(
        f"copy of {line.nbytes / 2**20:.0f} MiB",
        f"{RATE['bytes'] / 1e9:.4g} GB/s",
        "bytes read and written",
        bytes=RATE["bytes"],
    )


def experiment(cfg, N: int, R: int, P: int, S: int) -> Experiment:
    item = {"prompt": "", "meta": ""}
    return Experiment(
        name="gpu",
        task=Task("none", [item] * N, [item], lambda meta, text, ids: 0.0),
        tokenizer=PlaceholderTokenizer(cfg.vocab, "shapes only"),
        policy=cfg,
        optimizer=optax.chain(optax.clip_by_global_norm(1.0), optax.adam(1e-6)),
        prompts_per_step=N,
        group_size=R,
        buckets=(P,),
        max_new_tokens=S,
    )


def train(label, cfg, N: int, R: int, P: int, S: int, rounds: int) -> Iterator[None]:
    """FLOP/s of the trainer's update with float32 weights, Adam and bfloat16 matmuls, without the
    FLOPs of rematerialization.
    """
    made = programs.build(experiment(cfg, N, R, P, S))

    def collected(prompt, tokens, reward):
        drawn = {
            "tokens": tokens,
            "logp": jnp.zeros((N, R, S)),
            "mask": jnp.ones((N, R, S), bool),
            "done": jnp.ones((N, R), bool),
        }
        return assemble(
            prompt, jnp.ones((N, P), bool), drawn, reward, jnp.ones((N, R, 1), bool)
        ).with_signals(prompt=prompt[:, 0])

    begun = time.perf_counter()
    shapes = [
        jax.ShapeDtypeStruct(shape, t)
        for shape, t in (((N, P), jnp.int32), ((N, R, S), jnp.int32), ((N, R, 1), jnp.float32))
    ]
    abstract = jax.eval_shape(collected, *shapes)
    credit_program = made.credit.lower(abstract)
    update = made.update.lower(made.state, abstract, credit_program.out_info).compile()
    credit_program = credit_program.compile()
    compiling = time.perf_counter() - begun
    yield

    rng = np.random.default_rng(0)
    draw = lambda *shape: jnp.asarray(rng.integers(1, cfg.vocab, shape, np.int32))  # noqa: E731
    rollout = collected(draw(N, P), draw(N, R, S), jnp.asarray(rng.random((N, R, 1), np.float32)))
    advantages, state = credit_program(rollout), [made.init(jax.random.key(0))]

    def step():
        state[0], metrics = update(state[0], rollout, advantages)
        return metrics

    took = seconds(step, rounds)
    needed = 3 * float(flops.forward_flops(cfg, jnp.full(N, P), jnp.full((N, R), S)))
    peak = timing.peak_flops(jax.devices()[0].device_kind)
    mfu = needed / took / peak if peak else None
    share = needed / took / RATE["flops"]
    memory = (jax.devices()[0].memory_stats() or {}).get("peak_bytes_in_use", 0)
    report(
        f"{label}, {N * R} rows of {P + S}, attention {made.attention}",
        f"{share:.2f} of the matmul's FLOP/s" + (f", MFU {mfu:.2f}" if mfu else ""),
        f"{needed / took / 1e12:.3g} of {RATE['flops'] / 1e12:.3g} TFLOP/s; "
        f"{N * R * (P + S) / took:.0f} tokens/s",
        ok=bool(jnp.isfinite(step()["loss"])),
        seconds=took,
        compile_s=compiling,
        of_matmul=share,
        mfu=mfu,
        flops=needed,
        memory=memory,
    )


def sampling(label, cfg, batch: int, group: int, P: int, S: int) -> Iterator[None]:
    """Memory bandwidth of decoding in bfloat16: each step reads all weights and the KV cache. The
    first token is left out.
    """
    cfg = dataclasses.replace(cfg, param_dtype="bfloat16")
    N, specs = batch // group, transformer.specs(cfg)
    begun = time.perf_counter()
    shapes = (
        params.abstract(specs, "bfloat16"),
        *(jax.ShapeDtypeStruct((N, P), t) for t in (jnp.int32, bool)),
    )
    key = jax.eval_shape(lambda: jax.random.key(0))
    compiled = sampler.sample.lower(*shapes, key, cfg, rows=group, max_new_tokens=S).compile()
    compiling = time.perf_counter() - begun
    yield

    weights = jax.jit(lambda key: params.init(specs, key, "bfloat16"))(jax.random.key(0))
    prompt, key = jnp.ones((N, P), jnp.int32), jax.random.key(0)

    def sample(valid):
        return compiled(weights, prompt, jnp.full((N, P), valid), key)

    took = seconds(lambda: sample(True), 3) - seconds(
        lambda: sample(False), 3
    )  # without a valid prompt only the prefill runs
    token_bytes = 2 * cfg.layers * cfg.kv_heads * cfg.head_dim * 2  # keys and values of one token
    moved = (S - 1) * (
        2 * params.count(weights) + N * P * token_bytes + batch * S / 2 * token_bytes
    )
    share = moved / took / RATE["bytes"]
    report(
        f"{label}, batch {batch}, prompts of {P} in groups of {group}, {S} new tokens",
        f"{share:.2f} of the copy's bandwidth",
        f"{moved / took / 1e9:.4g} of {RATE['bytes'] / 1e9:.4g} GB/s; "
        f"{batch * (S - 1) / took:.0f} tokens/s",
        of_bandwidth=share,
        seconds=took,
        bytes=moved,
        compile_s=compiling,
    )


def prefix_credit(label, N: int, R: int, T: int) -> None:
    """Time of TEMPO on answers that branch at half of their length, relative to a copy of its
    inputs and outputs.
    """
    key, half = jax.random.key(1), jnp.arange(T) < T // 2
    mask = jnp.broadcast_to(jnp.arange(T) >= T // 8, (N, R, T))
    rollout = Rollout(
        tokens=jnp.where(half, 5, jax.random.randint(key, (N, R, T), 1, 1000)),
        action_mask=mask,
        logp=jnp.zeros((N, R, T)),
        segment=mask.astype(jnp.int32) - 1,
        reward=jax.random.uniform(key, (N, R, 1)),
        segment_mask=jnp.ones((N, R, 1), bool),
        token_mask=jnp.ones((N, R, T), bool),
    )
    tempo = jax.jit(lambda r: columns(credit.tempo(r), r))
    copy = jax.jit(
        lambda r: jnp.where(r.action_mask & r.token_mask, r.tokens, 0).astype(jnp.float32)
    )
    took, copy_took = seconds(lambda: tempo(rollout)), seconds(lambda: copy(rollout), calls=5)
    size = (
        rollout.tokens.nbytes
        + rollout.action_mask.nbytes
        + rollout.token_mask.nbytes
        + 4 * rollout.tokens.size
    )
    report(
        f"{label} of [{N}, {R}, {T}]",
        f"{took / copy_took:.1f} times a copy of its inputs",
        f"{took * 1e3:.3g} ms, the copy {copy_took * 1e3:.3g} ms; "
        f"{size / took / 1e9:.4g} of {RATE['bytes'] / 1e9:.4g} GB/s",
        seconds=took,
        copy_s=copy_took,
        of_bandwidth=size / took / RATE["bytes"],
    )


def scale(dry: bool) -> None:
    """All speed measurements, the most important first, because the time limit may cut the last
    ones.
    """
    fields = {"dtype": "bfloat16", "param_dtype": "float32", "remat": "full"}
    attempt("rates of the device", device_rates, dry)
    if not RATE:
        return
    if dry:
        cfg = presets.micro(512, width=32, layers=2, heads=4, kv_heads=2, qk_norm=True, **fields)
        compile_together(
            ("train step, micro", train, cfg, 2, 2, 16, 48, 1),
            ("sampling, micro", sampling, cfg, 8, 4, 8, 16),
        )
        attempt("TEMPO", prefix_credit, 4, 4, 64)
        return
    small, large = (
        ("Qwen3-0.6B's shape", presets.qwen3_0p6b(**fields)),
        ("Qwen3-1.7B's shape", presets.qwen3_1p7b(**fields)),
    )
    for (name, cfg), rounds in ((small, 5), (large, 3)):
        samplings = [
            (f"sampling, {name}", sampling, cfg, batch, 8, 128, 128) for batch in (64, 256)
        ]
        plain = (
            f"train step, {name}",
            train,
            dataclasses.replace(cfg, attention="plain"),
            4,
            4,
            256,
            3840,
            2,
        )
        compile_together(
            (f"train step, {name}", train, cfg, 4, 4, 256, 3840, rounds),
            *samplings,
            *[plain] * (cfg is small[1]),
        )
        if cfg is small[1]:
            attempt("TEMPO", prefix_credit, 1024, 16, 2048)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("part", choices=["devices", "attention", "scale"])
    parser.add_argument("--dry", action="store_true", help="very small shapes, on any device")
    a = parser.parse_args()
    if not a.dry and jax.devices()[0].platform != "gpu":
        raise SystemExit(
            f"no GPU: jax.devices() are of platform {jax.devices()[0].platform}; "
            "pip install 'jaxcredit[cuda]', or use --dry"
        )
    if a.part == "devices":
        devices()
    else:
        {"attention": attention, "scale": scale}[a.part](a.dry)


if __name__ == "__main__":
    main()
