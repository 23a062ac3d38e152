"""Loads thousands of damaged or malicious checkpoint files: each must load, or raise a ValueError
or OSError that names the file.

python tests/helpers/fuzz_checkpoints.py SEED MOST

tries at most MOST cases of each kind, drawn with the seed, in a process with limited memory and
limited seconds a case. Prints a line for every case that ended otherwise, then the counts.
"""

import json
import math
import random
import resource
import shutil
import signal
import sys
import tempfile
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path

import gguf as gguf_package
import transformers
from checkpoint_files import FAMILIES, write_gguf
from paths import GOLDENS
from safetensors.numpy import load_file
from tiny_checkpoint import tiny_tokenizer

from jaxcredit.policy.formats import gguf, pretrained
from jaxcredit.policy.tokenizer import HF

SECONDS = 20  # time limit of a case, far above the usual time
MEMORY = 4 << 30
VALUES = [
    None, 0, -1, 1, 2, 3, 7, 10**9, 10**30, 0.0, 1.5, -0.5, 1e300, math.nan, math.inf, "", "x", "4",
    "yarn", "\x1b[2J", True, False, [], {}, [1], ["x"], [None], {"a": 1}, {"factor": 2},
    {"rope_type": "yarn"}, {"rope_type": "dynamic", "factor": 1e29}, {"rope_type": ["yarn"]},
]  # fmt: skip
# Keys that the loader reads and that the goldens do not contain.
OTHER_KEYS = """
rope_scaling rope_theta partial_rotary_factor original_max_position_embeddings rope_local_base_freq
text_config hidden_activation mlp_bias quantization_config use_bidirectional_attention
decoder_sparse_step mlp_only_layers sliding_window_pattern max_window_layers layer_types
use_sliding_window num_experts num_local_experts query_pre_attn_scalar head_dim num_key_value_heads
""".split()
ROPE = """
type attention_factor beta_fast beta_slow mscale mscale_all_dim truncate short_factor long_factor
""".split()


def settings(c: dict) -> Iterator[dict]:
    """The config with each of its keys, at any depth, set to each of VALUES."""
    for key in [*c, *(key for key in OTHER_KEYS if key not in c)]:
        for value in VALUES:
            yield c | {key: value}
        if isinstance(c.get(key), dict):
            yield from (c | {key: inner} for inner in settings_within(c[key]))


def settings_within(c: dict) -> Iterator[dict]:
    """Rope scalings of every type with each key set to each of VALUES."""
    for scaling in ("yarn", "dynamic", "longrope", "llama3", "linear"):
        for key in [*c, *ROPE, "factor", "original_max_position_embeddings"]:
            whole = c | {
                "rope_type": scaling,
                "factor": 2.0,
                "low_freq_factor": 1.0,
                "high_freq_factor": 4.0,
            }
            whole |= {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
            for value in VALUES:
                yield whole | {key: value}


def flips(data: bytes, end: int, rng: random.Random) -> Iterator[bytes]:
    """The file with bytes among its first `end` flipped, overwritten, removed or inserted, without
    end.
    """
    while True:
        out, at = bytearray(data), rng.randrange(end)
        kind = rng.randrange(5)
        if kind == 0:
            out[at] ^= 1 << rng.randrange(8)
        elif kind == 1:
            out[at] = rng.randrange(256)
        elif kind == 2:
            out[at : at + 8] = rng.choice(
                [
                    b"\xff" * 8,
                    b"\0" * 8,
                    (10**6).to_bytes(8, "little"),
                    (2**63).to_bytes(8, "little"),
                ]
            )
        elif kind == 3:
            del out[at:]
        else:
            out[at:at] = out[rng.randrange(end) :][: rng.randrange(64)]
        yield bytes(out)


def headers(file: Path) -> Iterator[bytes]:
    """The safetensors file with wrong shapes, dtypes, offsets and sizes in its header."""
    data = file.read_bytes()
    n = int.from_bytes(data[:8], "little")
    header = json.loads(data[8 : 8 + n])
    for name, x in [(name, x) for name, x in header.items() if name != "__metadata__"][:3]:
        changes: list[dict] = [
            {"dtype": d} for d in ("I32", "BOOL", "U8", "F8_E4M3", "C64", "", 3, None)
        ]
        changes += [
            {"shape": s}
            for s in (
                [],
                [-1, 2],
                [2**40, 2**40],
                [0, 0],
                x["shape"][::-1],
                [1.5],
                None,
                x["shape"] + [1],
            )
        ]
        changes += [
            {"data_offsets": o}
            for o in ([0, 0], [-4, 4], [0, 2**62], [8, 4], [0, len(data)], [], None, ["0", "4"])
        ]
        for change in changes:
            text = json.dumps(header | {name: x | change}).encode()
            yield len(text).to_bytes(8, "little") + text + data[8 + n :]
    for size in (0, 1, n - 1, n + 1, len(data), 2**31, 2**63, 2**64 - 1):
        yield size.to_bytes(8, "little") + data[8:]


def cases(folder: Path, seed: int, most: int) -> Iterator[tuple[str, Callable]]:
    """(a description, the call) of each case; its file is in `folder` when the call is made."""
    rng = random.Random(seed)

    def drawn(whole: Iterator) -> list:
        every = list(whole)
        return every if len(every) <= most else rng.sample(every, most)

    for family in FAMILIES:
        shutil.copytree(GOLDENS / family, at := folder / family)
        for c in drawn(settings(json.loads((at / "config.json").read_text()))):
            (at / "config.json").write_text(text := json.dumps(c))
            yield f"{family} {text}", lambda at=at: pretrained.load(at)
    shutil.copytree(GOLDENS / "qwen3", at := folder / "header")
    file = at / "model.safetensors"
    whole = file.read_bytes()
    n = 8 + int.from_bytes(whole[:8], "little")
    damaged = flips(whole, n, rng)
    for i, data in enumerate([*headers(file), *(next(damaged) for _ in range(most))]):
        file.write_bytes(data)
        yield f"safetensors {i} {data[:n][:3000]!r}", lambda at=at: pretrained.load(at)
    shutil.copytree(GOLDENS / "qwen2", at := folder / "index")
    index = at / "model.safetensors.index.json"
    c = json.loads(index.read_text())
    name = next(iter(c["weight_map"]))
    files = [
        "../x.safetensors",
        "/etc/passwd",
        "a/../x.safetensors",
        ".",
        "..",
        "x",
        "\0.safetensors",
        "C:\\x.safetensors",
        *VALUES,
    ]
    for x in [
        *({"weight_map": value} for value in VALUES),
        *({"weight_map": c["weight_map"] | {name: file}} for file in files),
    ]:
        index.write_text(json.dumps(c | x))
        yield f"index {json.dumps(x)[:200]}", lambda at=at: pretrained.load(at)
    kind = gguf_package.GGMLQuantizationType.Q8_0
    write_gguf(path := folder / "m.gguf", kind=kind)
    whole = path.read_bytes()
    damaged = flips(whole, gguf.header(path).start, rng)
    for i in range(most):
        path.write_bytes(next(damaged))
        yield f"gguf {i}", lambda path=path: gguf.load(path)
        yield f"gguf tokenizer {i}", lambda path=path: gguf.tokenizer(path)
    tiny_tokenizer().save(at := folder / "tokenizer")
    for name in ("tokenizer_config.json", "tokenizer.json"):
        whole = (at / name).read_bytes()
        damaged = flips(whole, len(whole), rng)
        changed = (
            [json.dumps(c).encode() for c in settings(json.loads(whole))]
            if name == "tokenizer_config.json"
            else []
        )
        for data in [*drawn(iter(changed)), *(next(damaged) for _ in range(most))]:
            (at / name).write_bytes(data)
            yield f"{name} {data[:300]!r}", lambda at=at: HF(at).encode("2 + 2?")
        (at / name).write_bytes(whole)


def expire(*_):
    raise TimeoutError(f"{SECONDS} s")


def main(seed: int, most: int) -> None:
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity_error()
    load_file(GOLDENS / "qwen3/model.safetensors")
    pretrained.load(GOLDENS / "qwen3")  # import and compile before the memory is limited
    with open("/proc/self/statm") as f:
        resource.setrlimit(
            resource.RLIMIT_AS,
            (int(f.read().split()[0]) * resource.getpagesize() + MEMORY, resource.RLIM_INFINITY),
        )
    signal.signal(signal.SIGALRM, expire)
    count = {"loaded": 0, "refused": 0, "wrong": 0}
    with tempfile.TemporaryDirectory() as folder:
        for what, call in cases(Path(folder), seed, most):
            signal.alarm(SECONDS)
            try:
                call()
                end = "loaded"
            except (ValueError, OSError) as error:
                end = (
                    "refused"
                    if folder in str(error) and str(error).isprintable()
                    else f"unnamed {type(error).__name__}: {error}"
                )
            except BaseException as error:
                end = f"{type(error).__name__}: {error}"
            signal.alarm(0)
            if end not in count:
                print("WRONG", what[:600], "->", end[:300], flush=True)
            count[end if end in count else "wrong"] += 1
    print(json.dumps(count))


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]))
