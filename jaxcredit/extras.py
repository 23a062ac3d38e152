"""Optional dependencies: importing one that is not installed is an error that names the extra of jaxcredit that brings it.

`import jaxcredit` needs jax, jaxtyping and numpy. What the trainer and the other parts import besides is listed in `PACKAGES`, by extra.
"""

import sys
from importlib.abc import MetaPathFinder

PACKAGES = {
    "train": (
        *("cloudpickle", "etils", "filelock", "flax", "grain", "huggingface_hub", "matplotlib", "optax", "orbax", "reasoning_gym"),
        *("rich", "safetensors", "scipy", "tensorboardX", "tokenizers", "transformers", "tyro"),
    ),
    "tpu": ("libtpu",),
    "gcs": ("gcsfs",),
    "models": ("gguf",),
    "data": ("math_verify", "tensorflow_datasets"),
}
EXTRA = {package: extra for extra, packages in PACKAGES.items() for package in packages}


class MissingExtra(ModuleNotFoundError):
    """A package that an extra of jaxcredit brings is not installed."""


def missing(module: str, user: str) -> MissingExtra:
    """The error that `user` needs a module which is not installed, with the command that installs its extra."""
    package = module.partition(".")[0]
    return MissingExtra(f"{user} needs {package}, which is not installed: pip install 'jaxcredit[{EXTRA[package]}]'", name=module)


class Finder(MetaPathFinder):
    """Asked last, about modules that were found nowhere; it answers for imports by jaxcredit's own modules alone."""

    def find_spec(self, fullname, path, target=None):
        if fullname.partition(".")[0] in EXTRA and (user := _importer()).startswith("jaxcredit."):
            raise missing(fullname, user)
        return None


def install() -> None:
    """Ask `Finder` after all other finders."""
    if not any(isinstance(finder, Finder) for finder in sys.meta_path):
        sys.meta_path.append(Finder())


def _importer() -> str:
    """The module whose import statement is running: the first caller that is no part of the import system."""
    frame = sys._getframe(2)
    while frame is not None and frame.f_globals.get("__name__") in ("importlib._bootstrap", "importlib._bootstrap_external"):
        frame = frame.f_back
    return frame.f_globals.get("__name__", "") if frame else ""
