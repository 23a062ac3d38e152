"""The public API: names and signatures of every package face equal tests/project/api.txt, and no
face hides one of its own modules.

`python tests/project/test_api.py` rewrites the list. A removed or changed line is a breaking change
and belongs in CHANGELOG.md.
"""

import ast
import importlib
import inspect
import pkgutil
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

LIST = Path(__file__).with_name("api.txt")
ROOT = LIST.parents[2]
COMMAND = "python tests/project/test_api.py"

# Public names that hide a module of their package: `face.name`. Empty it, never extend it.
KNOWN: set[str] = set()


def faces() -> Iterator[ModuleType]:
    """Every package below jaxcredit, itself included, whose `__init__` defines `__all__`, and the
    plain modules that it exports.
    """
    for init in sorted((ROOT / "jaxcredit").rglob("__init__.py")):
        package = importlib.import_module(".".join(init.relative_to(ROOT).parent.parts))
        if hasattr(package, "__all__"):
            yield package
            exported = (getattr(package, name) for name in package.__all__)
            yield from (
                value
                for value in exported
                if inspect.ismodule(value) and not hasattr(value, "__path__")
            )


def public(face: ModuleType) -> list[str]:
    """Names of `__all__`, and those that the `__init__` imports as themselves (`from x import y as
    y`); of a plain module its functions and classes, unless it has `__all__`.
    """
    if not hasattr(face, "__all__"):
        return sorted(
            name
            for name, value in vars(face).items()
            if name[0] != "_" and getattr(value, "__module__", "") == face.__name__
        )
    tree = ast.parse(Path(str(face.__file__)).read_text())
    imported = [
        alias for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) for alias in node.names
    ]
    return sorted(
        [*face.__all__, *(alias.name for alias in imported if alias.asname == alias.name)]
    )


def definition(value) -> ast.stmt:
    """Syntax tree of a function or class, as its file has it: annotations read the same in every
    version of Python and jax.
    """
    return ast.parse(textwrap.dedent(inspect.getsource(inspect.unwrap(value)))).body[0]


def call(node: ast.FunctionDef | ast.AsyncFunctionDef) -> str:
    """Parameters and return type of a function definition."""
    return f"({ast.unparse(node.args)})" + (
        f" -> {ast.unparse(node.returns)}" if node.returns else ""
    )


def described(name: str, value) -> Iterator[str]:
    """The lines of one public name: a function's signature; a class with its fields and methods;
    else the type of the value.
    """
    if inspect.ismodule(value):
        yield f"{name}: module"
    elif inspect.isclass(value) and value.__module__.startswith("jaxcredit"):
        node = definition(value)
        assert isinstance(node, ast.ClassDef)
        yield f"class {name}({', '.join(map(ast.unparse, node.bases))})"
        for part in node.body:
            if isinstance(part, ast.AnnAssign) and not ast.unparse(part.target).startswith("_"):
                default = f" = {ast.unparse(part.value)}" if part.value else ""
                yield f"    {ast.unparse(part.target)}: {ast.unparse(part.annotation)}{default}"
            elif isinstance(part, (ast.FunctionDef, ast.AsyncFunctionDef)) and (
                part.name == "__init__" or part.name[0] != "_"
            ):
                marks = "".join(f"@{ast.unparse(mark)} " for mark in part.decorator_list)
                yield f"    {marks}{part.name}{call(part)}"
    elif inspect.isfunction(inspect.unwrap(value)):
        node = definition(value)
        is_function = isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef))
        yield f"{name}{call(node)}" if is_function else f"{name}: function"
    else:
        yield f"{name}: {type(value).__name__}"


def listing() -> str:
    """The whole public API as text, one face after the other."""
    lines = [f"# Written by `{COMMAND}`: every public name, with its signature."]
    for face in faces():
        lines += ["", face.__name__]
        for name in public(face):
            lines += [f"    {line}" for line in described(name, getattr(face, name))]
    return "\n".join(lines) + "\n"


def hidden(face: ModuleType) -> set[str]:
    """Public names that are not modules and equal the name of one of the face's own modules."""
    modules = {module.name for module in pkgutil.iter_modules(getattr(face, "__path__", []))}
    return {
        f"{face.__name__}.{name}"
        for name in modules & set(public(face))
        if not inspect.ismodule(getattr(face, name))
    }


def test_public_names_and_signatures_are_those_of_the_list():
    assert LIST.read_text() == listing(), (
        f"the public API changed: `{COMMAND}` rewrites tests/project/api.txt; "
        "note a breaking change in CHANGELOG.md"
    )


def test_every_public_name_is_there_once_and_documented():
    undocumented = []
    for face in faces():
        names = public(face)
        assert len(names) == len(set(names)), f"{face.__name__} exports something twice"
        for name in names:
            value = getattr(face, name, None)
            assert value is not None, f"{face.__name__} exports {name}, which is not there"
            if (inspect.isfunction(value) or inspect.isclass(value)) and not value.__doc__:
                undocumented.append(f"{face.__name__}.{name}")
    assert not undocumented


def test_no_face_hides_one_of_its_modules():
    found = set().union(*map(hidden, faces()))
    assert found <= KNOWN, f"rename the module or the name: {sorted(found - KNOWN)}"
    assert found >= KNOWN, f"no longer hidden, delete from KNOWN: {sorted(KNOWN - found)}"


def test_the_main_faces_are_found():
    names = {face.__name__ for face in faces()}
    rooms = "arena credit credit.laws kernels losses policy rewards rollout signals tasks train"
    assert {"jaxcredit", *(f"jaxcredit.{room}" for room in rooms.split())} <= names


if __name__ == "__main__":
    sys.path.insert(0, str(ROOT))
    LIST.write_text(listing())
