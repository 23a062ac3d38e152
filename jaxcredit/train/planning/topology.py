"""TPUs that are not there: enough of them to compile for, and how much memory they have."""

import importlib.util
import os
import re
from typing import Any, NamedTuple

import jax

from jaxcredit.parallel import compat
from jaxcredit.utils import extras

# GiB that a program may use of a device; the compiler keeps the rest, and says so when a program is too large. Of a v4 and a 7x a device is
# half a chip.
GIB = {"TPU v4": 15.25, "TPU v5 lite": 15.75, "TPU v5": 95.74, "TPU v6 lite": 31.25, "TPU7x": 94.75}


class Topology(NamedTuple):
    """A TPU pod, or several slices joined by the network of a data centre."""

    name: str
    devices: list[Any]
    memory: int  # bytes a program may use on one


def tpu_topology(name: str) -> Topology:
    """The chips of `v5e:16x16`, of any TPU topology; of `2xv5e:16x16`, two such slices, joined by the data centre's network."""
    if importlib.util.find_spec("libtpu") is None:
        raise extras.missing(
            "libtpu",
            f"--topology {name} (without it the plan is for the devices of this machine; no TPU is needed)",
        )
    # Without these libtpu asks the metadata server of a cloud machine, and waits; and it refuses to be loaded beside another job's.
    os.environ.setdefault("TPU_SKIP_MDS_QUERY", "1")
    os.environ.setdefault("ALLOW_MULTIPLE_LIBTPU_LOAD", "1")
    os.environ.setdefault("TPU_WORKER_HOSTNAMES", "localhost")
    os.environ.setdefault("TPU_ACCELERATOR_TYPE", "v5litepod-1")
    jax.config.update("jax_platforms", "cpu")  # whatever else is computed is computed here
    slices, one = re.fullmatch(r"(?:(\d+)x)?(.+)", name, re.S).groups()  # pyright: ignore[reportOptionalMemberAccess] (matches all)
    several = {"num_slices": int(slices)} if slices else {}
    try:
        devices = compat.tpu_devices(one, **several)
    except jax.errors.JaxRuntimeError as error:
        raise ValueError(
            f"no TPU topology is called {name!r}: v5e:16x16, v5p:4x4x8, 2xv6e:8x8 are ({str(error).splitlines()[0]})"
        ) from error
    kind = devices[0].device_kind
    if kind not in GIB:
        raise ValueError(
            f"how much memory a {kind} has is not written down here: add it to GIB of jaxcredit/train/planning/topology.py"
        )
    return Topology(name, devices, int(GIB[kind] * 2**30))
