"""Files for those who carry on the project: packaging, workflow, hooks, templates and pages name
what exists.
"""

import ast
import importlib
import os
import re
import shlex
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
WORKFLOWS = sorted((ROOT / ".github/workflows").glob("*.yml"))
TEMPLATES = sorted((ROOT / ".github/ISSUE_TEMPLATE").glob("*.yml"))
HOOKS = ROOT / ".pre-commit-config.yaml"
CITATION = ROOT / "CITATION.cff"
PAGES = [ROOT / "CONTRIBUTING.md", ROOT / "CHANGELOG.md", ROOT / "docs/architecture.md"]


def distribution(requirement: str) -> str:
    return re.split(r"[\[<>=; ]", requirement)[0].lower()


DEV = {distribution(need) for need in PROJECT["optional-dependencies"]["dev"]}


def runs(command: str) -> bool:
    """Whether a command line begins with a file of the project, Python, or a program that the extra
    dev installs.
    """
    first = shlex.split(command)[0]
    if "/" in first:
        return os.access(ROOT / first, os.X_OK)
    return first == "python" or first in DEV


def subcommands(text: str) -> set[str]:
    return set(re.findall(r"`jaxcredit (\w+)", text))


# Packaging


def test_the_version_is_in_one_place():
    assert "version" not in PROJECT and PROJECT["dynamic"] == ["version"]
    text = (ROOT / PYPROJECT["tool"]["hatch"]["version"]["path"]).read_text()
    (version,) = re.findall(r'^__version__ = "(\d+\.\d+\.\d+)"$', text, re.M)
    for file in (ROOT / "pyproject.toml", CITATION, ROOT / "README.md"):
        assert (
            f'"{version}"' not in file.read_text() and f"version: {version}" not in file.read_text()
        ), file.name


def test_the_sdist_and_the_type_marker_are_there():
    assert (ROOT / "jaxcredit/py.typed").is_file()
    for path in PYPROJECT["tool"]["hatch"]["build"]["targets"]["sdist"]["include"]:
        assert (ROOT / path.lstrip("/")).exists(), path


def test_citation_and_package_agree():
    cited = yaml.safe_load(CITATION.read_text())
    assert cited["license"] == PROJECT["license"] and cited["title"].startswith(
        f"{PROJECT['name']}: "
    )
    assert [author["name"].lower() for author in cited["authors"]] == [
        author["name"].lower() for author in PROJECT["authors"]
    ]
    assert {"cff-version", "message", "type"} <= cited.keys() and "version" not in cited


# Workflow and hooks


@pytest.mark.parametrize("path", WORKFLOWS, ids=lambda path: path.name)
def test_a_workflow_runs_what_is_there(path):
    text = path.read_text()
    workflow = yaml.safe_load(text)
    assert workflow["permissions"] == {"contents": "read"} and "secrets" not in text
    for name, job in workflow["jobs"].items():
        for step in job["steps"]:
            assert ("run" in step) != ("uses" in step), name
            if "uses" in step:
                assert re.fullmatch(r"actions/[\w-]+@v\d+", step["uses"])
                needed = step.get("with", {}).get("cache-dependency-path")
                assert needed is None or (ROOT / needed).is_file(), needed
            else:
                assert runs(step["run"]), f"{name}: {step['run']}"
                for extras in re.findall(r"\.\[([\w,]+)\]", step["run"]):
                    assert set(extras.split(",")) <= PROJECT["optional-dependencies"].keys(), extras


def test_the_workflow_checks_what_ci_checks():
    jobs = yaml.safe_load((ROOT / ".github/workflows/test.yml").read_text())["jobs"]
    commands = {
        name: [step["run"] for step in job["steps"] if "run" in step] for name, job in jobs.items()
    }
    install = "python -m pip install -e '.[dev]'"
    stages = re.findall(r"^stage ((?:ruff|pyright).*)$", (ROOT / ".ci/run").read_text(), re.M)
    assert commands == {
        "static": [install, *stages],
        "fast": [install, "pytest"],
        "floors": [".ci/floors"],
    }
    versions = jobs["fast"]["strategy"]["matrix"]["python-version"]
    classified = {
        line.rpartition(" ")[2]
        for line in PROJECT["classifiers"]
        if re.search(r"Python :: 3\.\d+$", line)
    }
    assert versions == ["3.11", "3.13"] and set(versions) <= classified


def test_hooks_install_what_they_run():
    hooks = {
        hook["id"]: hook
        for repo in yaml.safe_load(HOOKS.read_text())["repos"]
        for hook in repo["hooks"]
    }
    assert hooks.keys() == {"ruff-check", "ruff-format", "codespell", "nbstripout"}
    for name, hook in hooks.items():
        first = hook["entry"].split()[0]
        installed = (
            DEV
            if hook["language"] == "system"
            else {distribution(need) for need in hook["additional_dependencies"]}
        )
        assert first in installed, name
    # The committed notebook keeps its pictures, and tests/project/test_notebook.py asks for them.
    assert "--keep-output" in hooks["nbstripout"]["entry"]


# Issue templates


@pytest.mark.parametrize("path", TEMPLATES, ids=lambda path: path.name)
def test_an_issue_template_is_a_form(path):
    form = yaml.safe_load(path.read_text())
    assert form["name"] and form["description"] and form["body"]
    ids = [field["id"] for field in form["body"]]
    assert len(ids) == len(set(ids)) and any(
        field.get("validations", {}).get("required") for field in form["body"]
    )
    for field in form["body"]:
        assert field["type"] in ("input", "textarea") and field["attributes"]["label"]


def test_commands_in_templates_and_pages_are_commands(capsys):
    module, function = PROJECT["scripts"]["jaxcredit"].split(":")
    main = getattr(importlib.import_module(module), function)
    named = set().union(*(subcommands(path.read_text()) for path in [*TEMPLATES, *PAGES, CITATION]))
    assert {"plan", "methods", "check"} <= named
    for command in named:
        try:
            main([command, "--help"])
        except SystemExit as end:
            assert not end.code, capsys.readouterr().err
        assert f"jaxcredit {command}" in capsys.readouterr().out


# Pages


@pytest.mark.parametrize("page", [*PAGES, *TEMPLATES], ids=lambda page: page.name)
def test_files_that_a_page_names_exist(page):
    text = page.read_text()
    names = set(
        re.findall(
            r"`((?:\.ci|\.github|configs|docs|jaxcredit|launch|notebooks|tests)/[\w./-]*)`", text
        )
    )
    links = {link for link in re.findall(r"\]\(([^)#]+)", text) if "://" not in link}
    missing = [name for name in names if not (ROOT / name).exists()]
    missing += [link for link in links if not (page.parent / link).exists()]
    assert not missing
    if page.name in ("CONTRIBUTING.md", "architecture.md"):
        assert names


def resolves(name: str) -> bool:
    """Whether a dotted name is a module or an attribute of one."""
    module, parts = name, []
    while module:
        try:
            value = importlib.import_module(module)
        except ModuleNotFoundError:
            module, _, part = module.rpartition(".")
            parts.insert(0, part)
            continue
        for part in parts:
            if not hasattr(value, part):
                return False
            value = getattr(value, part)
        return True
    return False


PLACEHOLDERS = ("arena.worlds.WORLD", "credit.FAMILY.NAME")  # in the table of renamed modules


def test_the_changelog_has_its_headings_and_its_renames_are_true():
    text = (ROOT / "CHANGELOG.md").read_text()
    releases = re.split(r"^## ", text, flags=re.M)[1:]
    assert releases
    for release in releases:
        assert re.findall(r"^### (.+)$", release, re.M) == [
            "New",
            "Breaking",
            "Deprecations",
            "Fixes",
        ], release.splitlines()[0]
    section = re.search(r"^#### Moves and renames\n(.*?)^#", text, re.M | re.S)
    assert section
    tables = re.findall(
        r"^\| old [a-z]+ \| new [a-z]+ \|\n\|---\|---\|\n((?:\|.*\n)*)", section[1], re.M
    )
    assert len(tables) == 2
    for row in "".join(tables).splitlines():
        old, new = (cell.strip() for cell in row.strip("|").split("|"))
        for name in re.findall(r"`([a-z]\w*\.[\w.]+)[`(]", new):
            assert resolves(name) or name in PLACEHOLDERS or name.endswith(".py"), row
        assert not any(resolves(name) for name in re.findall(r"`(jaxcredit\.[\w.]+)`", old)), row


def test_the_glossary_is_in_alphabetical_order_with_one_sentence_a_term():
    table = (ROOT / "docs/architecture.md").read_text().split("| term | meaning |\n|---|---|\n")[1]
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in table.splitlines()]
    terms = [term.lower() for term, _ in rows]
    assert terms == sorted(set(terms)) and len(terms) >= 40
    assert all(
        re.fullmatch(r"[A-Z][^.]*\.", meaning.replace("jaxcredit.SIGNALS", ""))
        for _, meaning in rows
    )


# Tests


def test_names_of_test_files_are_unique():
    """pytest imports test files by their names, as they are in no package."""
    names = [path.name for path in (ROOT / "tests").rglob("test_*.py")]
    assert {name for name in names if names.count(name) > 1} == set()


# Trees of folders in Markdown

TREE = re.compile(r"(?<=<!-- tree -->\n).*?(?=<!-- /tree -->)", re.S)


def pages_with_a_tree() -> list[Path]:
    return [
        page
        for page in sorted({*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")})
        if "<!-- tree -->" in page.read_text()
    ]


def tree() -> str:
    """One line for every package folder: its path and the first sentence of its `__init__`
    docstring.
    """
    lines = []
    for init in sorted(
        (ROOT / "jaxcredit").rglob("__init__.py"), key=lambda file: file.parent.parts
    ):
        paragraph = (ast.get_docstring(ast.parse(init.read_text())) or "").partition("\n\n")[0]
        sentence = re.split(r"(?<=\.) ", " ".join(paragraph.split()))[0]
        assert sentence.endswith("."), (
            f"{init.relative_to(ROOT)}: the docstring begins with a sentence, which README's tree repeats"
        )
        lines.append(f"- `{init.parent.relative_to(ROOT)}/`: {sentence}\n")
    return "".join(lines)


def test_trees_show_the_folders():
    assert ROOT / "docs/architecture.md" in pages_with_a_tree()
    for page in pages_with_a_tree():
        shown = TREE.findall(page.read_text())
        assert shown == [tree()], (
            f"{page.relative_to(ROOT)}: `python tests/project/test_project_files.py` rewrites its file tree"
        )


def test_no_folder_is_without_python_or_a_purpose():
    """Every folder with Python files is a package, so the trees show it."""
    listed = subprocess.run(
        ["git", "ls-files", "jaxcredit"], cwd=ROOT, capture_output=True, text=True
    ).stdout.split()
    folders = {
        (ROOT / name).parent for name in listed if name.endswith(".py") and (ROOT / name).exists()
    }
    assert all((folder / "__init__.py").is_file() for folder in folders)


if __name__ == "__main__":
    for page in pages_with_a_tree():
        page.write_text(TREE.sub(lambda _: tree(), page.read_text()))
        print(page.relative_to(ROOT), file=sys.stderr)
