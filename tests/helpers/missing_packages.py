"""Packages that are not there, for tests: they are found nowhere, and what was imported of them is forgotten."""

import sys
from importlib.machinery import PathFinder

NO_LIBTPU = "libtpu is not here (pip install 'jaxcredit[tpu]'): NOTHING WAS COMPILED FOR A TPU"


class Without:
    """A path finder that does not find some packages."""

    find_distributions = staticmethod(PathFinder.find_distributions)

    def __init__(self, packages):
        self.packages = packages

    def find_spec(self, name, path=None, target=None):
        return (
            None
            if name.partition(".")[0] in self.packages
            else PathFinder.find_spec(name, path, target)
        )


def absent(monkeypatch, *packages: str) -> None:
    """Until the test ends."""
    monkeypatch.setattr(
        sys,
        "meta_path",
        [Without(packages) if finder is PathFinder else finder for finder in sys.meta_path],
    )
    for name in list(sys.modules):
        if name.partition(".")[0] in packages:
            monkeypatch.delitem(sys.modules, name)


def only(packages, code: str) -> str:
    """A program for a process in which no package is found but these, jaxcredit's own and Python's."""
    keep = {*packages, "jaxcredit"}
    return f"""
import importlib.machinery, os, sys
real = importlib.machinery.PathFinder
class Only:
    find_distributions = staticmethod(real.find_distributions)
    def find_spec(self, name, path=None, target=None):
        spec = real.find_spec(name, path, target)
        theirs = spec is not None and "site-packages" in (spec.origin or next(iter(spec.submodule_search_locations or []), ""))
        return None if theirs and name.partition(".")[0] not in {sorted(keep)!r} else spec
sys.meta_path = [Only() if finder is real else finder for finder in sys.meta_path]
{code}
"""
