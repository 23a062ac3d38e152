"""Allowed imports: each folder imports only the folders that the table allows, also inside
functions; no import circles.
"""

import ast
from collections.abc import Iterator
from pathlib import Path

ROOT = Path(__file__).parents[2] / "jaxcredit"

# Folder: the folders that its modules may import. `utils` is free of JAX; every folder outside of
# the base library may import it.
ALLOWED = {
    "utils": "",
    "kernels": "",
    "losses": "kernels",
    "rewards": "kernels",
    "rollout": "kernels",
    "credit": "rollout kernels utils",
    "parallel": "utils",
    "policy": "parallel kernels utils",
    "tasks": "utils",
    "collect": "rollout kernels policy tasks parallel utils",
    "signals": "rollout losses policy kernels parallel tasks collect utils",
    "train": "credit losses policy rollout tasks collect signals parallel kernels utils",
    "arena": "credit rollout kernels policy signals utils",
    "analysis": "train credit rollout tasks parallel utils",
    "cli": "utils kernels losses rewards rollout credit parallel policy tasks collect signals train "
    "arena analysis",
    "__init__": "credit kernels losses rollout utils",
}
# Inside train/ every module imports only modules of earlier lines.
TRAIN = [
    "experiment learning_rate",
    "runs update",
    "programs",
    "planning evaluation supervised",
    "failures",
    "loop",
    "run",
    "restore",
]
# Imports that break a rule for now, as "importer imported".
EXCEPTIONS: set[str] = set()


def modules() -> dict[str, Path]:
    """{dotted name below jaxcredit: file} of every module; a package has the name of its folder."""
    named = {
        path: path.relative_to(ROOT).with_suffix("").parts for path in sorted(ROOT.rglob("*.py"))
    }
    return {
        ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 1 else parts): path
        for path, parts in named.items()
    }


def imports(path: Path, known: dict[str, Path]) -> Iterator[str]:
    """The modules of this package that a file imports, at its top or inside functions."""
    for node in ast.walk(ast.parse(path.read_text())):
        names = []
        if isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path} has a relative import"
            names = [f"{node.module}.{alias.name}" for alias in node.names]
        elif isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        for name in names:
            if name.partition(".")[0] == "jaxcredit":
                inner = name.partition(".")[2]
                yield inner if inner in known else inner.rpartition(".")[0] or "__init__"


def graph() -> dict[str, set[str]]:
    """Every module with the modules that it imports."""
    known = modules()
    return {
        name: {other for other in imports(path, known) if other != name}
        for name, path in known.items()
    }


def allowed(importer: str, imported: str) -> bool:
    """Whether the tables allow an import."""
    folder, other = importer.partition(".")[0], imported.partition(".")[0]
    if folder != other:
        return other in ALLOWED[folder].split()
    if folder != "train" or "train" in (importer, imported):
        return True
    floor = {name: n for n, line in enumerate(TRAIN) for name in line.split()}
    inner, below = (name.split(".")[1] for name in (importer, imported))
    return inner == below or floor[below] < floor[inner]


def circles(edges: dict[str, set[str]]) -> set[str]:
    """Modules on a circle of imports: what remains after repeatedly removing modules without
    remaining imports or importers.
    """
    left = {name: set(others) for name, others in edges.items()}
    while free := {name for name, others in left.items() if not others & left.keys()}:
        left = {name: others for name, others in left.items() if name not in free}
    while free := {name for name in left if not any(name in others for others in left.values())}:
        left = {name: others for name, others in left.items() if name not in free}
    return set(left)


def test_every_import_is_allowed():
    broken = {f"{a} {b}" for a, others in graph().items() for b in others if not allowed(a, b)}
    assert broken - EXCEPTIONS == set(), (
        "import only allowed folders, or move the code: see docs/architecture.md"
    )
    assert EXCEPTIONS <= broken, (
        f"no longer broken, delete from EXCEPTIONS: {sorted(EXCEPTIONS - broken)}"
    )


def test_no_modules_form_a_circle():
    # A package's `__init__` imports its modules; a module may import its package by name only.
    assert circles(graph()) == set()


def test_the_package_has_at_most_fifteen_folders():
    folders = {
        path.stem
        for path in ROOT.iterdir()
        if path.name not in ("__pycache__", "__init__.py", "py.typed")
    }
    assert folders == ALLOWED.keys() - {"__init__"}
    assert len(folders) <= 15
