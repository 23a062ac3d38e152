"""README: its table is the catalogue, its Python runs, its commands parse, its lines are short."""

import re
import shlex

import pytest
from paths import ROOT

from jaxcredit import credit
from jaxcredit.cli.main import build_parser
from jaxcredit.credit import method_of

README = (ROOT / "README.md").read_text()


def listed():
    """Rows of the table of estimators, by granularity."""
    groups: dict[str, list[str]] = {}
    for name in credit.__all__:
        groups.setdefault(method_of(getattr(credit, name)).granularity, []).append(f"`{name}`")
    order = ("trajectory", "token", "segment", "step", "turn", "agent")
    assert groups.keys() <= set(order)
    rows = [f"| {kind} | {' '.join(groups[kind])} |" for kind in order if kind in groups]
    return ["| one advantage for each | estimators |", "|---|---|", *rows]


def test_the_table_is_the_catalogue():
    assert (
        README.split("<!-- estimators -->\n")[1].split("<!-- end -->")[0].splitlines() == listed()
    )


def test_its_python_runs(monkeypatch):
    monkeypatch.chdir(ROOT)
    names = {}
    for block in re.findall(r"```python\n(.*?)```", README, re.S):
        exec(block, names)
    assert (
        names["advantage"].shape == (1, 4, 3)
        and names["V"].shape == (4, 4)
        and names["A"].shape == (3,)
    )
    own = re.search(r"@per_group.*?def (\w+)\(", README, re.S).group(1)
    assert names[own](names["rollout"]).shape == (1, 4, 3) and len(names["task"].train) > 300


def test_the_estimator_it_shows_is_the_one_in_the_configs():
    shown = re.search(r"@per_group.*?(?=```)", README, re.S).group()
    assert shown.strip() in (ROOT / "configs/my_estimator.py").read_text()


def test_its_first_screen_has_a_command_and_a_result():
    screen = "\n".join(README.splitlines()[:30])
    assert "jaxcredit train configs/quickstart.py" in screen and "![" in screen
    assert re.search(r"from 0\.\d\d .*to 0\.\d\d", screen)


def test_its_lines_have_at_most_a_hundred_columns():
    """Except for rows of tables, images, and the tree of folders, which repeats docstrings."""
    exempt = ("|", "![", "- `jaxcredit")
    long = [line for line in README.splitlines() if len(line) > 100]
    assert [line for line in long if not line.startswith(exempt)] == []


def test_its_commands_are_commands():
    lines = [
        line
        for block in re.findall(r"```bash\n(.*?)```", README, re.S)
        for line in block.replace("\\\n", " ").splitlines()
    ]
    commands = [
        shlex.split(part, comments=True)
        for line in lines
        for part in line.split("&&")
        if part.strip().startswith("jaxcredit")
    ]
    assert len(commands) > 8
    parser, _ = build_parser()
    for _, *words in commands:
        args, rest = parser.parse_known_args(words)
        assert not rest or args.takes_config, words
        for file in re.findall(r"configs/\w+\.py", " ".join(words)):
            assert (ROOT / file).is_file(), file


@pytest.mark.parametrize(
    "config", sorted((ROOT / "configs").glob("*.py")), ids=lambda path: path.stem
)
def test_every_config_says_its_command_in_its_head(config):
    head = config.read_text().split('"""')[1]
    assert f"jaxcredit train configs/{config.name}" in head
