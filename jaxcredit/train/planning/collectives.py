"""Communication of compiled programs: bytes of each collective, by mesh axis, from the HLO text."""

import collections
import itertools
import math
import re
from collections.abc import Iterable

import numpy as np
from jax.sharding import Mesh

KINDS = "all-gather|all-reduce|reduce-scatter|all-to-all|ragged-all-to-all|collective-permute"
_OPERATION = re.compile(rf"^\s*(?:ROOT )?%?\S+ = (.*?) ({KINDS}|collective-broadcast)(?:-start)?\(")
# Collectives between slices of a pod: each device sends its part to the host's runtime (Megascale).
_BETWEEN = re.compile(
    r"^\s*(?:ROOT )?%?\S+ = \((\w+\[[\d,]*\]).*? send\(.*_xla_megascale_transfer_type=\"(\w+)\""
)
_BODY = re.compile(
    r"(?:body|to_apply|calls|condition|true_computation|false_computation)=%?([\w.\-]+)|branch_computations=\{([^}]*)\}"
)
_WHILE = re.compile(r" while\(.*condition=%?([\w.\-]+), body=%?([\w.\-]+)")
_TRIPS = re.compile(r'"known_trip_count":\{"n":"(\d+)"\}')
_CHANNEL = re.compile(r"channel_id=(\d+)")
_ARRAY = re.compile(r"\b([a-z]+\d*)\[([\d,]*)\]")
_WIDTH = (
    {"pred": 1, "s4": 0.5, "u4": 0.5}
    | {f"{k}{bits}": bits // 8 for k in "suf" for bits in (8, 16, 32, 64)}
    | {"bf16": 2, "c64": 8}
)


def bytes_sent(text: str, mesh: Mesh) -> dict[tuple[str, str], float]:
    """Bytes that one device sends in one execution of a program.

    For g devices in a ring, a gather, a scatter or an exchange sends (g - 1) / g of the whole
    array, and an all-reduce twice that. Collectives in a loop count once for each iteration. A loop
    whose number of iterations depends on data, such as the sampler's, counts with its largest
    number.

    Args:
        text: HLO text, `lowered.compile().as_text()`.
        mesh: mesh of the program.

    Returns:
        {(kind of collective, mesh axis): bytes}, for example {("all-gather", "fsdp"): 1.2e9}.
    """
    bodies, entry = _computations(text)
    # By channel: an asynchronous collective appears in each computation that overlaps with it.
    by_channel: dict[str, tuple[str, float, str]] = {}

    def walk(name: str, times: float) -> None:
        for line in bodies.get(name, ()):
            if match := _OPERATION.match(line):
                # On TPUs, a reduce-scatter is an all-reduce of which a part is used.
                scatter = match[2] == "all-reduce" and name.startswith("all-reduce-scatter")
                kind, size, axis = _collective(line, match[1], match[2], mesh)
                kind, size = ("reduce-scatter", size / 2) if scatter else (kind, size)
                channel = _CHANNEL.search(line)
                key = channel[1] if channel else f"{name} {line}"
                if key not in by_channel or times * size < by_channel[key][1]:
                    by_channel[key] = kind, times * size, axis
            elif match := _BETWEEN.match(line):
                kind, size, axis = _between_slices(
                    match[1], match[2].lower().replace("_", "-"), mesh
                )
                by_channel[f"send {name} {line}"] = kind, times * size, axis
            elif loop := _WHILE.search(line):
                condition, body = loop.groups()
                known = _TRIPS.search(line)
                iterations = int(known[1]) if known else _iterations(bodies.get(condition, ()))
                walk(condition, times * iterations)
                walk(body, times * iterations)
            elif (
                " fusion(" in line
                or " call(" in line
                or " conditional(" in line
                or "async-start(" in line
            ):
                for one, several in _BODY.findall(line):
                    for called in [one] if one else re.findall(r"[\w.\-]+", several):
                        walk(called, times)

    walk(entry, 1)
    total: dict[tuple[str, str], float] = collections.defaultdict(float)
    for kind, size, axis in by_channel.values():
        total[kind, axis] += size
    return {key: size for key, size in total.items() if size}


def sum_by_axis(sent: dict[tuple[str, str], float]) -> dict[str, float]:
    """Sum over the kinds of collectives: bytes by mesh axis.

    >>> sum_by_axis({("all-gather", "fsdp"): 2.0, ("all-reduce", "fsdp"): 1.0})
    {'fsdp': 3.0}
    """
    total: dict[str, float] = collections.defaultdict(float)
    for (_, axis), n in sent.items():
        total[axis] += n
    return dict(total)


def _computations(text: str) -> tuple[dict[str, list[str]], str]:
    bodies, entry, current = {}, "", None
    for line in text.splitlines():
        if (
            current is None
            and line.rstrip().endswith("{")
            and (match := re.match(r"(ENTRY )?%?([\w.\-]+) ", line))
        ):
            current = bodies.setdefault(match[2], [])
            entry = match[2] if match[1] else entry
        elif line.rstrip() == "}":  # not "}}", which may end the configuration of a Pallas kernel
            current = None
        elif current is not None:
            current.append(line)
    return bodies, entry


def _iterations(condition: Iterable[str]) -> int:
    """Iterations of a loop: the largest constant of its condition."""
    return max(
        [int(n) for line in condition for n in re.findall(r" s32\[\]\S* constant\((\d+)\)", line)],
        default=1,
    )


def _collective(line: str, out: str, kind: str, mesh: Mesh) -> tuple[str, float, str]:
    group = _group(line, mesh.size)
    shapes = [_nbytes(*shape) for shape in _ARRAY.findall(out)]
    # An asynchronous start returns operand and result; the larger one is the whole array.
    whole = max(shapes, default=0) if "-start(" in line else sum(shapes)
    g = len(group)
    if kind == "collective-permute":
        size = whole
    elif kind == "reduce-scatter":
        size = whole * (g - 1) * (1 / g if "-start(" in line else 1)
    else:
        size = whole * (g - 1) / g * (2 if kind == "all-reduce" else 1)
    return kind, size, _axes(group, mesh)


def _between_slices(part: str, kind: str, mesh: Mesh) -> tuple[str, float, str]:
    slices = np.array(
        [getattr(device, "slice_index", None) or 0 for device in mesh.devices.flat]
    ).reshape(mesh.devices.shape)
    others = len(np.unique(slices)) - 1
    apart = (
        name for i, name in enumerate(mesh.axis_names) if (slices != slices.take([0], i)).any()
    )
    # The part in a gather is that of one device; in the other collectives it is the whole array.
    share = {"all-reduce": 2 / (others + 1), "all-gather": 1}.get(kind, 1 / (others + 1))
    return (
        kind,
        sum(_nbytes(*shape) for shape in _ARRAY.findall(part)) * others * share,
        " x ".join(apart) or "none",
    )


def _nbytes(dtype: str, shape: str) -> float:
    return _WIDTH.get(dtype, 0) * math.prod(int(n) for n in shape.split(",") if n)


def _group(line: str, devices: int) -> list[int]:
    """Mesh indices of the first group of communicating devices, or first pair of a permutation."""
    if pairs := re.search(r"source_target_pairs=\{(.*?)\}\}", line):
        apart = [p for p in re.findall(r"\{(\d+),(\d+)", pairs[0]) if p[0] != p[1]]
        return [int(i) for i in apart[0]] if apart else [0]
    if listed := re.search(r"replica_groups=\{\{([\d,]*)\}", line):
        return [int(i) for i in listed[1].split(",")]
    if iota := re.search(r"replica_groups=\[(\d+),(\d+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", line):
        grid = np.arange(math.prod(dims := [int(n) for n in iota[3].split(",")])).reshape(dims)
        grid = grid.transpose([int(n) for n in iota[4].split(",")]) if iota[4] else grid
        return grid.reshape(int(iota[1]), int(iota[2]))[0].tolist()
    if named := re.search(
        r"replica_groups=mesh\[([^\]]*)\](?:, *device_ids=\(?\[?[\d,]*\]?\)?)? *\{([^}]*)\}", line
    ):
        dims = {axis: int(n) for axis, n in re.findall(r"'([^']+)'=(\d+)", named[1])}
        chosen = re.findall(r"'([^']+)'", named[2])
        grid = np.arange(math.prod(dims.values())).reshape(list(dims.values()))
        return grid[tuple(slice(None) if axis in chosen else 0 for axis in dims)].ravel().tolist()
    return list(range(devices))  # no groups: all


def _axes(group: list[int], mesh: Mesh) -> str:
    """Mesh axes along which the members of a group differ."""
    places = np.array(np.unravel_index(group, mesh.devices.shape))
    return (
        " x ".join(itertools.compress(mesh.axis_names, (places != places[:, :1]).any(-1))) or "none"
    )
