"""Copies of the Python modules that a config file imports from its own folder.

A run is reopened with these copies, so that later edits do not change it.
"""

import ast
import contextlib
import importlib.abc
import importlib.machinery
import importlib.util
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

from jaxcredit.train.runs.file_names import CONFIG_MODULES
from jaxcredit.utils import files


def local_imports(file: Path) -> dict[str, Path]:
    """Python files below the folder of `file` that it imports, directly or indirectly.

    Returns:
        {path relative to the folder: path}.
    """
    base, modules, todo = file.resolve().parent, {}, [(file, "")]
    while todo:
        path, package = todo.pop()
        for name in _imported(path, package):
            parts = name.split(".")
            if not _is_beside(parts[0], base):
                continue
            for i in range(1, len(parts) + 1):
                stem = "/".join(parts[:i])
                for relative, inside in (
                    (f"{stem}.py", ".".join(parts[: i - 1])),
                    (f"{stem}/__init__.py", ".".join(parts[:i])),
                ):
                    if (
                        relative not in modules
                        and (base / relative).is_file()
                        and (base / relative) != file.resolve()
                    ):
                        modules[relative] = base / relative
                        todo.append((base / relative, inside))
    return modules


def save_copies(file: Path, folder: Path) -> None:
    """Replace `folder/code` with copies of the local modules that `file` imports."""
    copies = {relative: path.read_bytes() for relative, path in local_imports(file).items()}
    shutil.rmtree(folder / CONFIG_MODULES, ignore_errors=True)
    for relative, text in copies.items():
        (folder / CONFIG_MODULES / relative).parent.mkdir(parents=True, exist_ok=True)
        files.write_atomic(folder / CONFIG_MODULES / relative, text)


def redirect_imports(file: Path, origin: Path) -> None:
    """Redirect imports to the copies of a run.

    Args:
        file: copy of the config file; copies of its modules are in the folder `code` beside it.
            Without such copies, redirections of another run for modules beside `origin` are undone.
        origin: original path of the config file. The `__file__` of a copied module is its original
            path too.
    """
    copies = {
        path.relative_to(file.parent / CONFIG_MODULES): path
        for path in sorted((file.parent / CONFIG_MODULES).rglob("*.py"))
    }
    if not copies:
        tops = {name.partition(".")[0] for name in _finder.copies}
        local = {
            top
            for top in tops
            if (origin.parent / f"{top}.py").is_file() or (origin.parent / top).is_dir()
        }
        for name in [name for name in _finder.copies if name.partition(".")[0] in local]:
            _forget(name)
        return
    for relative, path in copies.items():
        name = ".".join(relative.with_suffix("").parts).removesuffix(".__init__")
        if _finder.copies.get(name) != (path, origin.parent / relative):
            _forget(name)
            _finder.copies[name] = path, origin.parent / relative
    if _finder not in sys.meta_path:
        sys.meta_path.insert(0, _finder)


class _Finder(importlib.abc.MetaPathFinder):
    def __init__(self):
        self.copies: dict[str, tuple[Path, Path]] = {}  # module name to (copy, original path)

    def find_spec(self, fullname, path=None, target=None):
        if fullname not in self.copies:
            return None
        copy, origin = self.copies[fullname]
        package = copy.name == "__init__.py"
        spec = importlib.machinery.ModuleSpec(
            fullname, _Loader(copy), origin=str(origin), is_package=package
        )
        spec.has_location = True
        if package:
            spec.submodule_search_locations = [str(origin.parent)]
        return spec


class _Loader(importlib.abc.Loader):
    def __init__(self, copy: Path):
        self.copy = copy

    def create_module(self, spec):
        return None

    def exec_module(self, module):
        exec(compile(self.copy.read_bytes(), str(self.copy), "exec"), vars(module))


_finder = _Finder()


def _forget(name: str) -> None:
    """Drop a module and its redirection, so that the next import loads the file again."""
    _finder.copies.pop(name, None)
    for module in [m for m in sys.modules if m == name or m.startswith(f"{name}.")]:
        del sys.modules[module]


def _imported(path: Path, package: str) -> Iterator[str]:
    """Names in the import statements of a file, at any depth.

    `from a import b` gives a.b, because b may be a module.
    """
    try:
        tree = ast.parse(path.read_bytes())
    except (SyntaxError, ValueError, RecursionError):
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            head = (
                package.split(".")[: len(package.split(".")) - node.level + 1] if node.level else []
            )
            head = ".".join([*filter(None, head), *filter(None, [node.module])])
            yield from (f"{head}.{alias.name}" if head else alias.name for alias in node.names)


def _is_beside(top: str, base: Path) -> bool:
    """Whether a module is imported from the folder `base`, not from an installed package."""
    if top == "jaxcredit" or not (
        (base / f"{top}.py").is_file() or (base / top / "__init__.py").is_file()
    ):
        return False
    spec = getattr(sys.modules.get(top), "__spec__", None)
    if spec is None:
        with contextlib.suppress(ImportError, ValueError, AttributeError):
            spec = importlib.util.find_spec(top)
    origin = getattr(spec, "origin", None)
    return origin is None or Path(origin).resolve().is_relative_to(base)
