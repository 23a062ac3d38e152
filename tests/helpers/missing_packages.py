"""Tools to run tests as if some packages were not installed."""

import sys
from importlib.machinery import PathFinder

NO_LIBTPU = "libtpu is not installed (pip install 'jaxcredit[tpu]'): nothing was compiled for a TPU"


class Without:
    """Path finder of Python's imports that hides the given packages."""

    find_distributions = staticmethod(PathFinder.find_distributions)

    def __init__(self, packages):
        self.packages = packages

    def find_spec(self, name, path=None, target=None):
        return (
            None
            if name.partition(".")[0] in self.packages
            else PathFinder.find_spec(name, path, target)
        )


def hide_packages(monkeypatch, *packages: str) -> None:
    """Hide packages and their imported modules until the end of the test."""
    monkeypatch.setattr(
        sys,
        "meta_path",
        [Without(packages) if finder is PathFinder else finder for finder in sys.meta_path],
    )
    for name in list(sys.modules):
        if name.partition(".")[0] in packages:
            monkeypatch.delitem(sys.modules, name)


def program_with_only(packages, code: str) -> str:
    """Source of a program that finds only `packages`, jaxcredit and Python's own modules."""
    allowed = {*packages, "jaxcredit"}
    return f"""
import importlib.machinery, os, sys
real = importlib.machinery.PathFinder
class Only:
    find_distributions = staticmethod(real.find_distributions)
    def find_spec(self, name, path=None, target=None):
        spec = real.find_spec(name, path, target)
        places = [spec.origin, *(spec.submodule_search_locations or [])] if spec else []
        installed = "site-packages" in str(places)
        return None if installed and name.partition(".")[0] not in {sorted(allowed)!r} else spec
sys.meta_path = [Only() if finder is real else finder for finder in sys.meta_path]
{code}
"""
