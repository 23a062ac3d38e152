"""Optional dependencies, and errors that name the extra of jaxcredit that installs them.

`import jaxcredit` needs jax, jaxtyping and numpy. `PACKAGES` lists the other dependencies by extra.
"""

import sys
from importlib.abc import MetaPathFinder

PACKAGES = {
    "train": (
        *(
            "cloudpickle",
            "etils",
            "filelock",
            "flax",
            "grain",
            "huggingface_hub",
            "matplotlib",
            "optax",
            "orbax",
            "reasoning_gym",
        ),
        *("rich", "safetensors", "scipy", "tensorboardX", "tokenizers", "transformers", "tyro"),
    ),
    "tpu": ("libtpu",),
    "gcs": ("gcsfs",),
    "models": ("gguf",),
    "data": ("math_verify", "tensorflow_datasets"),
}
EXTRA = {package: extra for extra, packages in PACKAGES.items() for package in packages}


class MissingExtra(ModuleNotFoundError):
    """Import of an optional dependency that is not installed."""


def missing(module: str, user: str) -> MissingExtra:
    """Error for a missing dependency, with the command that installs its extra.

    Args:
        module: the module that was not found, e.g. "optax.losses".
        user: the importing module or feature, the first word of the message.

    >>> str(missing("optax.losses", "jaxcredit.train"))
    "jaxcredit.train needs optax, which is not installed: pip install 'jaxcredit[train]'"
    """
    package = module.partition(".")[0]
    return MissingExtra(
        f"{user} needs {package}, which is not installed: "
        f"pip install 'jaxcredit[{EXTRA[package]}]'",
        name=module,
    )


class Finder(MetaPathFinder):
    """Finder that raises `MissingExtra` when a module of jaxcredit imports a missing dependency.

    It has to be the last finder in sys.meta_path.
    """

    def find_spec(self, fullname, path, target=None):
        if fullname.partition(".")[0] in EXTRA and (user := _importer()).startswith("jaxcredit."):
            raise missing(fullname, user)
        return None


def install() -> None:
    """Append `Finder` to sys.meta_path."""
    if not any(isinstance(finder, Finder) for finder in sys.meta_path):
        sys.meta_path.append(Finder())


def _importer() -> str:
    """Name of the importing module, the nearest caller outside the import system."""
    frame = sys._getframe(2)
    while frame is not None and frame.f_globals.get("__name__") in (
        "importlib._bootstrap",
        "importlib._bootstrap_external",
    ):
        frame = frame.f_back
    return frame.f_globals.get("__name__", "") if frame else ""
