"""README's commands in processes without the environment variables of the tests."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from paths import ROOT
from run_metrics import metrics_without_times

PREFIXES = re.compile(
    r"(XLA|JAX|TF|TPU|CUDA|MPL|PYTEST|HF|LIBTPU)_?"
)  # prefixes of variables that change how jax runs


def bare(cache: Path) -> dict[str, str]:
    """The environment without variables that change how jax runs, with a compilation cache of the
    test.
    """
    kept = {name: value for name, value in os.environ.items() if not PREFIXES.match(name)}
    return kept | {"XDG_CACHE_HOME": str(cache), "PYTHONPATH": str(ROOT)}


def typed(words: str | list[str], cwd: Path, cache: Path) -> subprocess.CompletedProcess:
    """Run a command line in a folder with links to the configs and the tests."""
    for name in ("configs", "tests"):
        if not (cwd / name).exists():
            (cwd / name).symlink_to(ROOT / name)
    words = shlex.split(words) if isinstance(words, str) else words
    assert words[0] == "jaxcredit", words
    main = [
        sys.executable,
        "-c",
        "import sys; from jaxcredit.cli.main import main; main(sys.argv[1:])",
        *words[1:],
    ]
    return subprocess.run(
        main, env=bare(cache), cwd=cwd, capture_output=True, text=True, timeout=800
    )


def good(words: str | list[str], cwd: Path, cache: Path) -> str:
    """Output of a command line that exits with 0."""
    done = typed(words, cwd, cache)
    assert done.returncode == 0 and "Traceback" not in done.stderr, (
        f"{words}\n{done.stdout}\n{done.stderr}"
    )
    return done.stdout


def big(cache: Path) -> set[Path]:
    """Cached programs that always take long enough to compile to be cached."""
    return {
        file
        for file in cache.rglob("*-cache")
        if file.name.startswith(("jit_update-", "jit_sample-"))
    }


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    return tmp_path_factory.mktemp("cache")


@pytest.mark.parametrize(
    "options",
    [[], pytest.param(["--critic", "--beta", "0.1", "--fsdp", "1"], marks=pytest.mark.slow)],
    ids=len,
)
def test_plan_on_this_machine(options, tmp_path, cache):
    """Without XLA_FLAGS the CPU programs have compiler options, which a jit inside another jit may
    not have.
    """
    said = good(
        ["jaxcredit", "plan", "tests/helpers/micro_experiment.py", *options], tmp_path, cache
    )
    programs = ["sample", "evaluate", *(["signals"] if options else []), "credit", "update"]
    assert [line.split()[0] for line in said.splitlines() if " fits: " in line] == programs


def test_a_run_and_what_is_asked_of_it(tmp_path, cache):
    train = "jaxcredit train tests/helpers/micro_experiment.py --steps 2 --run"
    good(f"{train} a", tmp_path, cache)
    kept = big(cache)
    good(f"{train} b", tmp_path, cache)
    assert len(kept) >= 3
    assert big(cache) == kept  # no slow compilation a second time
    cold, warm = (metrics_without_times(tmp_path / "runs" / name) for name in "ab")
    assert cold == warm and len(cold) == 3
    for command in (
        "compare runs/a runs/b",
        "sample runs/a --n 1 --k 1",
        "methods --json",
        "models qwen3",
    ):
        assert good(f"jaxcredit {command}", tmp_path, cache)


LATER = {  # options that are not run here: the reason
    "--topology": "libtpu may be missing: tests/train/test_topology.py",
    "--checkpoint": "weights from the hub",
    "smollm2": "weights from a package",
    "--model": "a compilation of minutes, tests/train/test_plan.py has a small one",
}


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_every_command_of_the_readme(tmp_path, cache):
    """The commands with few steps, each training in its own folder."""
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    lines = [
        part
        for block in blocks
        for line in block.replace("\\\n", " ").splitlines()
        for part in line.split("&&")
        if part.strip().startswith("jaxcredit")
    ]
    ran = []
    for number, line in enumerate(lines):
        words = shlex.split(line, comments=True)
        if any(
            word.startswith(later) or later in word and word.endswith(".py")
            for later in LATER
            for word in words
        ):
            continue
        if words[1] == "train":
            words += ["--steps", "14" if "--profile" in words else "5"]
            if "--resume" not in words and ran:
                words += ["--run", "other" if len(ran) == 1 else f"run{number}"]
        if words[1] in ("eval", "report", "advise"):
            words += ["--prompts", "16"]
        good(words, tmp_path, cache)
        ran.append(words[1])
        if len(ran) == 1:
            good("jaxcredit train configs/quickstart.py --steps 5 --run other", tmp_path, cache)
    assert {"train", "check", "compare", "eval", "sample", "export", "advise", "report"} <= set(
        ran
    ), ran
