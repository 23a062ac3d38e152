"""TPU topologies to compile for, without TPUs."""

import importlib.util
import os
import re
from typing import Any, NamedTuple

import jax

from jaxcredit.parallel import compat
from jaxcredit.utils import extras

# GiB of a device that a program may use; the compiler reserves the rest. A device of a TPU7x is
# half a chip.
GIB = {"TPU v4": 15.25, "TPU v5 lite": 15.75, "TPU v5": 95.74, "TPU v6 lite": 31.25, "TPU7x": 94.75}


class Topology(NamedTuple):
    """TPU pod, or several slices that are connected by a data center network.

    Attributes:
        name: name of the topology.
        devices: descriptions of its devices.
        memory: bytes of a device that a program may use.
    """

    name: str
    devices: list[Any]
    memory: int


def tpu_topology(name: str) -> Topology:
    """Description of a TPU topology.

    Sets environment variables of libtpu and the CPU as JAX's platform for the rest of the process.

    Args:
        name: TYPE:SHAPE, for example v5e:16x16; NxTYPE:SHAPE for N slices.

    Raises:
        MissingExtra: libtpu is not installed.
        ValueError: there is no such topology, or the memory of its devices is unknown.
    """
    if importlib.util.find_spec("libtpu") is None:
        raise extras.missing(
            "libtpu",
            f"--topology {name} (without it, the plan is for this machine; no TPU is needed)",
        )
    # Without these, libtpu waits for a cloud machine's metadata server, and cannot be loaded twice.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-1")
    jax.config.update("jax_platforms", "cpu")  # all other computations
    slices, one = re.fullmatch(r"(?:(\d+)x)?(.+)", name, re.S).groups()  # pyright: ignore[reportOptionalMemberAccess]
    several = {"num_slices": int(slices)} if slices else {}
    try:
        devices = compat.tpu_devices(one, **several)
    except jax.errors.JaxRuntimeError as error:
        raise ValueError(
            f"unknown TPU topology {name!r}: examples are v5e:16x16, v5p:4x4x8, 2xv6e:8x8 "
            f"({str(error).splitlines()[0]})"
        ) from error
    kind = devices[0].device_kind
    if kind not in GIB:
        raise ValueError(
            f"the memory of a {kind} is unknown: "
            "add it to GIB of jaxcredit/train/planning/topology.py"
        )
    return Topology(name, devices, int(GIB[kind] * 2**30))
