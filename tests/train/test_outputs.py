"""Console, plots, TensorBoard and host logs: literal names, constant memory, and failures that do
not end a run."""

import contextlib
import dataclasses
import io
import json
import os
import pty
import subprocess
import sys
import warnings

import matplotlib
import micro_experiment
import numpy as np
import pytest
from rich.console import Console

from jaxcredit.analysis import pictures
from jaxcredit.cli import main as cli
from jaxcredit.train.evaluation import Answers
from jaxcredit.train.runs import host_log as hosts
from jaxcredit.train.runs import plots
from jaxcredit.train.runs.console import Display, Summary, final_table
from jaxcredit.train.runs.history import History
from jaxcredit.train.runs.json_lines import read_metrics
from jaxcredit.train.runs.metric_table import ACCURACY, CONSOLE, HELD_OUT_REWARD
from jaxcredit.train.runs.metrics import MetricsWriter
from jaxcredit.train.runs.optional_output import OptionalOutput
from jaxcredit.utils import terminal

NAMES = [
    "a_b$x$[bold]{0}",
    "_under$\\frac$",
    "[/red]{",
    ":smile: %s {task.x}",
    "x\x1b[2Jy\n1  forged\r\b\u202e",
]


def shown(*renderables, width=160, terminal=False):
    console = Console(file=io.StringIO(), width=width, force_terminal=terminal)
    for x in renderables:
        console.print(x)
    return console.file.getvalue()


def literal(name):
    return (
        name.replace("\x1b", "\\x1b")
        .replace("\n", "\\n")
        .replace("\r", "\\r")
        .replace("\b", "\\b")
        .replace("\u202e", "\\u202e")
    )


# -- names are data --


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("in_terminal", [False, True])
def test_names_on_the_console_are_literal(tmp_path, name, in_terminal):
    console = Console(file=io.StringIO(), width=160, force_terminal=in_terminal, color_system=None)
    folder = tmp_path / name.replace("/", "|")
    with MetricsWriter(folder, steps=1, title=name, address=name, console=console) as records:
        records.note(name)
        records.log(1, {"reward": 0.5})
    text = console.file.getvalue()
    # The name is in the note, the title and the folded caption; a note may have several lines.
    assert "".join(text.split()).count("".join(literal(name).split())) >= 3 - ("\n" in name)
    assert "\n1  forged" not in text
    assert (folder / "curves.png").exists()


@pytest.mark.parametrize("usetex", [False, True])
def test_names_in_pictures_are_literal(tmp_path, usetex, monkeypatch):
    seen = []
    save = plots._save
    monkeypatch.setattr(
        plots, "_save", lambda figure, out: (seen.append(figure), save(figure, out))[1]
    )
    with matplotlib.rc_context({"text.usetex": usetex}):
        for i, name in enumerate(NAMES):
            folder = tmp_path / name.replace("/", "|")
            with MetricsWriter(
                folder, steps=2, console=Console(file=io.StringIO()), config={"i": i}
            ) as records:
                records.log(1, {"reward": 0.5, ACCURACY: 0.5})
                records.log(2, {"reward": 0.5, ACCURACY: 0.5})
        table, _ = plots.compare(sorted(tmp_path.iterdir()), tmp_path / "out.png")
        picture = pictures.credit_heatmaps(
            {NAMES[0]: np.ones((1, 1))}, [[0]], [1.0], lambda t: NAMES[1]
        )
        picture.savefig(io.BytesIO())
    names = [literal(n.replace("/", "|")) for n in NAMES]
    legend = [t.get_text() for t in seen[-1].axes[0].get_legend().get_texts()]
    assert sorted(legend) == sorted(names)
    assert sorted(f._suptitle.get_text() for f in seen[:-1]) == sorted(names)
    assert sorted(row[0] for row in table.texts) == sorted(names)
    for figure in (*seen, picture):
        texts = figure.findobj(matplotlib.text.Text)
        assert not any(t.get_usetex() or t.get_parse_math() for t in texts if t.get_text())


# -- a step costs the same after a million steps --


def line(step):
    return {
        "step": step,
        "reward": np.sin(step),
        "tokens": 3,
        **({ACCURACY: step % 7 / 7} if step % 5 == 0 else {}),
    }


def test_the_summary_is_that_of_all_lines():
    lines = [line(i) for i in range(100)]
    summary = Summary(lines)
    rewards, accuracies = (
        [x["reward"] for x in lines],
        [x[ACCURACY] for x in lines if ACCURACY in x],
    )
    assert summary.values == {
        "reward": (rewards[0], max(rewards), rewards[-1]),
        ACCURACY: (accuracies[0], max(accuracies), accuracies[-1]),
    }
    assert list(summary.trend) == accuracies[-16:] and summary.last == lines[-1]


def test_held_out_reward_is_shown_where_it_is_not_the_accuracy():
    graded, binary = (
        [{"step": i, ACCURACY: 0.0, HELD_OUT_REWARD: x * i} for i in range(3)] for x in (0.25, 0.0)
    )
    assert "eval/greedy_reward" in shown(final_table(Summary(graded), "", ""))
    assert "eval/greedy_reward" not in shown(final_table(Summary(binary), "", ""))


def test_what_a_run_keeps_does_not_grow(tmp_path):
    class Counted(dict):
        """Line that counts its look-ups."""

        looks = 0

        def get(self, *args):
            Counted.looks += 1
            return super().get(*args)

    summary, looks = Summary(), []
    display = Display(Console(file=io.StringIO()), 10**9, 0, "", pace_s=0)
    for step in range(2000):
        before = Counted.looks
        summary.add(Counted(line(step)))
        display.step(summary)
        looks.append(Counted.looks - before)
    assert max(looks) <= len(CONSOLE) + 8
    assert len(summary.values) <= len(CONSOLE) and len(summary.trend) == 16
    with MetricsWriter(
        tmp_path, steps=500, console=Console(file=io.StringIO()), recent_steps=3
    ) as records:
        for step in range(200):
            records.log(step, {"reward": 1.0})
        assert [x["step"] for x in records.recent] == [196, 197, 198]
        assert not any(len(x) > 20 for x in vars(records).values() if isinstance(x, list | dict))


def test_a_history_is_columns():
    history = History([line(i) for i in range(23)])
    x, y = history.series(ACCURACY)
    assert x.tolist() == [0, 5, 10, 15, 20] and y.tolist() == [
        i % 7 / 7 for i in (0, 5, 10, 15, 20)
    ]
    assert history.total("tokens") == 69 and len(history) == 23
    assert history.first["step"] == 0 and history.last["step"] == 22
    assert np.isnan(history.column(ACCURACY)[21:]).all() and np.isnan(history.column("none")).all()
    assert set(History([line(0)], ["reward"])._columns) == {"reward"}


def test_pictures_of_long_runs_are_thinned(tmp_path, monkeypatch):
    n = 50_000
    for name in "ab":
        (tmp_path / name).mkdir()
        with open(tmp_path / name / "metrics.jsonl", "w") as f:
            f.writelines(
                json.dumps({"step": i, "reward": float(i == 777), ACCURACY: i / n, "tokens": 1})
                + "\n"
                for i in range(n)
            )
    seen = []
    save = plots._save
    monkeypatch.setattr(
        plots, "_save", lambda figure, out: (seen.append(figure), save(figure, out))[1]
    )
    table, _ = plots.compare([tmp_path / "a", tmp_path / "b"], tmp_path / "out.png")
    plots.curves(tmp_path / "a")
    drawn = [line for figure in seen for axis in figure.axes for line in axis.get_lines()]
    assert max(len(x.get_xdata()) for x in drawn) == plots.DRAWN
    assert {x.get_xdata()[-1] for x in seen[0].axes[0].get_lines()[:2]} == {n - 1}
    assert (
        max(seen[1].axes[1].get_lines()[0].get_ydata()) == 1
    )  # the only step with a reward is drawn
    assert table.texts[0][4:6] == [str(int(0.9 * n)), f"{n:,}"]


# -- failures --


class Broken(io.StringIO):
    """Stream whose writes raise after the first `after` ones."""

    def __init__(self, error, after=0):
        super().__init__()
        self.error, self.after = error, after

    def write(self, text):
        self.after -= 1
        if self.after < 0:
            raise self.error
        return super().write(text)


BREAKS = {
    "full": OSError(28, "No space left on device"),
    "nobody reads": BrokenPipeError(32, "Broken pipe"),
    "closed": ValueError("I/O operation on closed file"),
    "not UTF-8": UnicodeEncodeError("ascii", "é", 0, 1, "ordinal not in range(128)"),
}


def play(folder, steps=5, console=None):
    with MetricsWriter(
        folder, steps=steps, console=console or Console(file=io.StringIO()), pace_s=0
    ) as records:
        for step in range(1, steps + 1):
            records.log_samples(step, [{"prompt": "x"}])
            records.note("a note")
            records.log(step, {"reward": 1.0})
    return [x["step"] for x in read_metrics(folder)]


@pytest.mark.parametrize("error", BREAKS.values(), ids=BREAKS.keys())
@pytest.mark.parametrize("after", [0, 5])
def test_a_broken_console_is_said_once(tmp_path, error, after):
    # For a pipe without a reader, rich redirects the process's standard output: replace it.
    with (
        pytest.warns(UserWarning, match="the console failed") as said,
        contextlib.redirect_stdout(io.StringIO()),
    ):
        assert play(tmp_path, console=Console(file=Broken(error, after), width=160)) == [
            1,
            2,
            3,
            4,
            5,
        ]
    assert len(said) == 1


def fail(*args, **kwargs):
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize(
    "what, name",
    [
        ("jaxcredit.train.runs.metrics._events", "TensorBoard"),
        ("jaxcredit.train.runs.tensorboard.Events.step", "TensorBoard"),
        ("tensorboardX.record_writer.open_file", "TensorBoard"),
        ("jaxcredit.train.runs.plots.curves", "curves.png"),
        ("jaxcredit.train.runs.console.final_table", "the console"),
        ("jaxcredit.train.runs.console.Display.close", "the console"),
    ],
)
def test_an_optional_output_that_fails_is_said_once(tmp_path, monkeypatch, what, name):
    monkeypatch.setattr(what, fail)
    with pytest.warns(UserWarning, match=name) as said, hosts.HostLog(tmp_path):
        assert play(tmp_path) == [1, 2, 3, 4, 5]
    assert len(said) == 1 and "the training goes on" in str(said[0].message)
    assert (tmp_path / "hosts/00000.log").read_text().count("No space left") == 1


def test_a_host_log_that_fails_is_said_once(tmp_path, monkeypatch):
    (tmp_path / "hosts").write_text("a file where the folder should be")
    with (
        pytest.warns(UserWarning, match="log of this process") as said,
        hosts.HostLog(tmp_path) as host,
    ):
        host.log("one")
        host.log_step(1)
    assert len(said) == 1


def test_warnings_are_lines_of_the_host_log(tmp_path):
    before = warnings.showwarning
    with pytest.warns(UserWarning), hosts.HostLog(tmp_path):
        warnings.warn("first\x1b[2J\nsecond", stacklevel=1)
    assert "UserWarning: first\\x1b[2J\n  second" in (tmp_path / "hosts/00000.log").read_text()
    assert warnings.showwarning is before


@pytest.mark.parametrize("trace", ["0", "1"])
def test_warnings_of_commands_are_plain_text(monkeypatch, capsys, trace):
    def command(typed):  # pytest captures warnings: print their format
        print(
            warnings.formatwarning(UserWarning("first\x1b[2J\nsecond"), UserWarning, __file__, 7),
            file=sys.stderr,
        )

    monkeypatch.setenv("JAXCREDIT_TRACE", trace)
    monkeypatch.setattr(cli, "_command", command)
    before = warnings.formatwarning
    cli.main(["train"])
    said = capsys.readouterr().err
    assert said.startswith("UserWarning: first\\x1b[2J\n  second") and (__file__ in said) == (
        trace == "1"
    )
    assert warnings.formatwarning is before


def test_an_optional_output_lets_a_request_to_stop_through():
    optional = OptionalOutput("x")

    def interrupted():
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        optional(interrupted)
    assert not optional.failed


@pytest.mark.parametrize("name", ["metrics.jsonl", "samples.jsonl"])
def test_metrics_that_cannot_be_written_end_the_run(tmp_path, name, monkeypatch):
    class Full(io.TextIOWrapper):
        def flush(self):
            fail()

    def opened(path, *args, **kwargs):
        return (
            Full(open(path, "ab"))
            if str(path).endswith(name) and "a" in args and full
            else open(path, *args, **kwargs)
        )

    full = False
    monkeypatch.setattr("jaxcredit.train.runs.metrics.open", opened, raising=False)
    play(tmp_path, steps=2)
    full = True
    with pytest.raises(
        OSError, match=rf"{name} cannot be written \(No space left on device\).*--resume auto"
    ):
        play(tmp_path, steps=5)
    full = False
    assert play(tmp_path, steps=5) == [1, 2, 3, 4, 5]


def test_a_run_that_cannot_begin_gives_the_terminal_back(tmp_path, monkeypatch):
    monkeypatch.setattr(MetricsWriter, "_write_config", fail)
    console = Console(file=io.StringIO(), force_terminal=True)
    with pytest.raises(OSError, match="No space"):
        MetricsWriter(tmp_path, steps=1, console=console)
    text = console.file.getvalue()
    assert text.rindex("\x1b[?25h") > text.rindex("\x1b[?25l")  # the cursor is shown again


# -- the streams of the process --

CHILD = r"""
import importlib.util, sys
spec = importlib.util.spec_from_file_location("terminal", sys.argv[2])
terminal = importlib.util.module_from_spec(spec)
spec.loader.exec_module(terminal)
terminal.PATIENCE_S = 0.2
terminal.open_closed_streams()
with terminal.lossy():
    for i in range(3000):
        print("\xe9\u2581 line", i, "x" * 50)
        print("\xe9\u2581 line", i, "x" * 50, file=sys.stderr)
    open(sys.argv[1], "w").write("done")
"""
ASCII = {"PYTHONIOENCODING": "ascii", "LANG": "C", "LC_ALL": "C", "PYTHONUTF8": "0"}


@pytest.mark.parametrize("kind", ["full", "closed", "nobody reads", "unread", "a file"])
@pytest.mark.parametrize("streams", [(1,), (2,), (1, 2)])
@pytest.mark.parametrize("env", [{}, ASCII], ids=["UTF-8", "ASCII"])
def test_no_standard_stream_ends_a_run(tmp_path, kind, streams, env):
    with contextlib.ExitStack() as stack:
        read_end, write_end = os.pipe()
        stack.callback(os.close, write_end)
        if kind == "nobody reads":
            os.close(read_end)
        else:
            stack.callback(os.close, read_end)
        path = {"full": "/dev/full", "a file": tmp_path / "text"}.get(kind)
        to = stack.enter_context(open(path, "a")).fileno() if path else write_end

        command = [sys.executable, "-c", CHILD, tmp_path / "done", terminal.__file__]
        if kind == "closed":  # by a shell, because a fork of a process with JAX must not run Python
            command = [
                "sh",
                "-c",
                'exec "$@" ' + " ".join(f"{i}>&-" for i in streams),
                "sh",
                *command,
            ]
        at = {i: to if i in streams else subprocess.DEVNULL for i in (1, 2)}
        done = subprocess.run(
            command, env={**os.environ, **env}, stdout=at[1], stderr=at[2], timeout=60
        )
    assert done.returncode == 0
    assert (tmp_path / "done").read_text() == "done"
    if kind == "a file":
        assert (tmp_path / "text").read_text().count(
            ("\\xe9\\u2581" if env else "é▁") + " line 2999"
        ) == len(streams)


def test_text_goes_on_when_a_reader_comes_back():
    read_end, write_end = os.pipe()
    raw = terminal._Lossy(write_end, "standard output")
    patience, terminal.PATIENCE_S = terminal.PATIENCE_S, 0.01
    try:
        with warnings.catch_warnings(record=True) as said:
            warnings.simplefilter("always")
            while not raw._lost:
                raw.write(b"x" * 4096)
            raw.write(b"lost")
            assert len(said) == 1 and "not read for" in str(said[0].message)
            os.read(read_end, 1 << 20)
            raw.write(b"here again")
            assert os.read(read_end, 1 << 20) == b"here again"
    finally:
        terminal.PATIENCE_S = patience
        os.close(read_end)
        os.close(write_end)


def test_a_terminal_stays_a_terminal():
    master, slave = pty.openpty()
    with os.fdopen(slave, "w") as stream:
        assert terminal._lossy(stream, "standard output").isatty()
        assert Console(file=terminal._lossy(stream, "standard output")).is_terminal
    os.close(master)


def test_the_table_says_who_it_is_about():
    table = final_table(Summary([line(0), line(5)]), "[bold]x", "runs/[red]y")
    assert "[bold]x" in shown(table) and "runs/[red]y" in shown(table)


# -- commands --


def test_sample_shows_control_characters_and_no_forged_line(monkeypatch, capsys):
    hostile = "\x1b]52;c;x\x07[bold]:smile:\r\n  1  forged\n1+1="
    exp = micro_experiment.experiment()
    exp = dataclasses.replace(
        exp, task=dataclasses.replace(exp.task, test=[{"prompt": hostile, "meta": 0}])
    )
    answers = Answers(
        [{"prompt": hostile}],
        [[hostile, "2"]],
        np.array([[0.5, 1.0]]),
        np.zeros((1, 2)),
        np.ones((1, 2)),
    )
    monkeypatch.setattr("jaxcredit.cli.loading.load_run", lambda *args: (exp, None, None, 4))
    monkeypatch.setattr(
        "jaxcredit.train.evaluation.sample_answers", lambda *args, **kwargs: answers
    )
    cli.main(["sample", "runs/x", "--n", "1"])
    lines = capsys.readouterr().out.splitlines()
    assert lines == [
        r"\x1b]52;c;x\a[bold]:smile:\r",
        "|   1  forged",
        "| 1+1=",
        r"  0.5  \x1b]52;c;x\a[bold]:smile:\r",
        "       |   1  forged",
        "       | 1+1=",
        "  1  2",
    ]


def test_a_reward_that_prints_outlives_standard_output(tmp_path):
    (tmp_path / "printing.py").write_text(
        "import sys\n"
        "from jaxcredit.tasks import Task, score\n"
        "def reward(meta, text, ids):\n"
        "    print(text, flush=True)\n"
        "    return 1.0\n"
        "if __name__ == '__main__':\n"
        "    print(score(Task('t', [{'prompt': '', 'meta': 0}], [], reward), [0] * 9, ['a'] * 9, [[1]] * 9).sum(), file=sys.stderr)\n"
    )
    with open("/dev/full", "w") as full:
        done = subprocess.run(
            [sys.executable, tmp_path / "printing.py"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            timeout=120,
        )
    assert done.returncode == 0 and done.stderr.splitlines()[-1] == "9.0", done.stderr


@pytest.mark.slow
@pytest.mark.parametrize(
    "env, to",
    [({}, ">/dev/full"), ({}, ">&-"), ({}, "2>/dev/full >&2"), ({}, "| true"), (ASCII, ">text")],
)
def test_training_ends_well_whatever_its_standard_output_is(tmp_path, env, to):
    main = "from jaxcredit.cli.main import main; main()"
    command = f"set -o pipefail; {sys.executable} -c '{main}' train {micro_experiment.__file__} --steps 2 {to}"
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=tmp_path,
        env={**os.environ, **env},
        stderr=subprocess.PIPE,
        text=True,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    assert [x["step"] for x in read_metrics(tmp_path / "runs/micro")] == [0, 1, 2]
    assert to not in (">/dev/full", "| true") or done.stderr.count("standard output failed") == 1
