"""Rewards that raise, hang, crash or return nonsense: errors have prompt and answer, and no process
is left over.
"""

import asyncio
import decimal
import fractions
import os
import pathlib
import re
import signal
import subprocess
import sys
import threading
import time

import jax.numpy as jnp
import numpy as np
import psutil
import pytest

from jaxcredit import tasks
from jaxcredit.rollout.validation import LARGEST_RETURN
from jaxcredit.tasks import worker_pool
from jaxcredit.tasks.reward_worker import LARGEST
from jaxcredit.tasks.scoring import RewardError, RewardTimeout

WORKERS = pytest.mark.parametrize("workers", [0, 1, 2])


@pytest.fixture(scope="module", autouse=True)
def _end():
    yield
    worker_pool._close()


def judge(reward, n=4, **kw):
    task = tasks.Task("toy", [{"prompt": "p", "meta": 0}], [], reward)
    return tasks.score(
        task, list(range(n)), [f"text {i}" for i in range(n)], [[i] for i in range(n)], **kw
    )


def elsewhere(reward):
    """Whether a reward runs in another process, and the reason if it does not."""
    return int(judge(reward, 1)[0, 0]) != os.getpid(), worker_pool.in_process_reason(reward)


# Numbers

NUMBERS = [
    True,
    2,
    0.25,
    np.float32(0.5),
    np.int64(3),
    np.bool_(True),
    np.array(0.125),
    [0.75],
    -0.1,
    np.array([0.5]),
    1e30,
    5e-324,
]
NUMBERS += [
    decimal.Decimal("0.5"),
    fractions.Fraction(1, 4),
    np.float16(2),
    [decimal.Decimal(3)],
    jnp.float32(0.5),
    jnp.bfloat16(0.25),
]


@WORKERS
def test_rewards_come_back_in_order_as_floats(workers):
    out = judge(lambda m, t, i: NUMBERS[m], len(NUMBERS), workers=workers)
    assert out.dtype == np.float64 and out.shape == (len(NUMBERS), 1)
    np.testing.assert_array_equal(
        out[:, 0],
        [1, 2, 0.25, 0.5, 3, 1, 0.125, 0.75, -0.1, 0.5, 1e30, 5e-324, 0.5, 0.25, 2, 3, 0.5, 0.25],
    )


@WORKERS
def test_a_reward_for_each_segment(workers):
    out = judge(lambda m, t, i: [0.5] * (m + 1), 3, segments=[1, 2, 3], workers=workers)
    np.testing.assert_array_equal(out, [[0.5, 0, 0], [0.5, 0.5, 0], [0.5, 0.5, 0.5]])
    with pytest.raises(
        RewardError, match=r"returned a list of 2, \[0.5, 0.5\], where 1 is due(.|\n)*text 1"
    ):
        judge(lambda m, t, i: [0.5] * (2 if m == 1 else 1), 3, workers=workers)
    with pytest.raises(RewardError, match="returned one number, 0.5, where 2 are due"):
        judge(lambda m, t, i: 0.5, 1, segments=[2], workers=workers)


@WORKERS
def test_none_leaves_an_answer_unscored(workers):
    out = judge(lambda m, t, i: None if m % 2 else [1.0, 2.0], 4, segments=[2] * 4, workers=workers)
    np.testing.assert_array_equal(out, [[1, 2], [np.nan] * 2, [1, 2], [np.nan] * 2])
    with pytest.raises(RewardError, match="None inside a list. Return None for the whole answer"):
        judge(lambda m, t, i: [1.0, None], 1, segments=[2], workers=workers)


class Unprintable:
    def __repr__(self):
        raise ValueError


NONSENSE = [
    float("nan"),
    float("-inf"),
    "1",
    {"a": 1},
    1j,
    np.array([np.nan]),
    decimal.Decimal("NaN"),
    decimal.Decimal("sNaN"),
]
assert LARGEST == LARGEST_RETURN  # the worker imports nothing of ours
HUGE = [
    1.01e30,
    1e39,
    -1e39,
    np.float64(3.5e38),
    10**5000,
    decimal.Decimal("1e400"),
    fractions.Fraction(10**400),
    2**128,
]


@pytest.mark.parametrize("workers", [0, 1])
def test_nonsense_is_refused_by_name(workers):
    cases = [(x, "not finite|not a number") for x in [*NONSENSE, Unprintable()]]
    cases += [(x, r"rewards go up to 1e\+30") for x in HUGE]
    task = tasks.Task(
        "toy",
        [{"prompt": "p", "meta": 0}],
        [],
        lambda meta, text, ids: cases[meta][0] if ids else 1.0,
    )
    for i, (_, why) in enumerate(cases):
        with pytest.raises(
            RewardError,
            match=rf"(?s)returned .*({why}).*meta: *{i}.*'text 1'.*Return a finite float",
        ):
            tasks.score(task, [i, i], ["text 0", "text 1"], [[], [1]], workers=workers)


# Failures


def fails_deep_inside(meta, text, ids):
    return 1 / 0 if meta == 2 else 0.0


async def fails_awaited(meta, text, ids):
    await asyncio.sleep(0)
    return fails_deep_inside(meta, text, ids)


@WORKERS
@pytest.mark.parametrize("reward", [fails_deep_inside, fails_awaited])
def test_a_raising_reward_shows_its_trace_the_prompt_the_response_and_the_mend(workers, reward):
    with pytest.raises(RewardError) as caught:
        judge(reward, prompts=["zero", "one", "two", "three"], workers=workers)
    message = str(caught.value)
    wanted = (
        f"{reward.__name__} of task 'toy' raised ZeroDivisionError",
        "return 1 / 0 if meta == 2",
        "'two'",
        "'text 2'",
        "0.0 where no",
    )
    assert all(part in message for part in wanted), message
    assert not any(
        own in message
        for own in ("tasks/scoring.py", "reward_worker.py", "worker_pool.py", "asyncio/")
    )


def whispers(meta, text, ids):
    raise ValueError("\x1b[31mred\x1b]0;title\x07")


@pytest.mark.parametrize("workers", [0, 1])
def test_control_characters_of_errors_answers_and_prompts_are_shown_escaped(workers):
    with pytest.raises(RewardError) as caught:
        judge(whispers, 1, prompts=["\x1b[2J\u202e"], workers=workers)
    assert (
        "\x1b" not in str(caught.value)
        and "\u202e" not in str(caught.value)
        and r"\x1b[31mred" in str(caught.value)
    )


def exits(meta, text, ids):
    sys.exit(4)


def interrupts(meta, text, ids):
    raise KeyboardInterrupt


def leaves(meta, text, ids):
    os._exit(3)


def crashes(meta, text, ids):
    os.kill(os.getpid(), signal.SIGSEGV)


@pytest.mark.parametrize(
    "ends, how",
    [
        (exits, "raised SystemExit: 4"),
        (interrupts, "raised KeyboardInterrupt"),
        (leaves, "exit code 3"),
        (crashes, "signal SIGSEGV"),
    ],
)
def test_a_reward_that_ends_its_process_does_not_end_ours(ends, how):
    def reward(meta, text, ids):
        return ends(meta, text, ids) if meta == 1 else 1.0

    for _ in range(2):  # the process is replaced
        with pytest.raises(RewardError, match=f"(?s){how}.*'text 1'"):
            judge(reward)
    assert judge(lambda m, t, i: 1.0).sum() == 4


# Hangs. Each sleeps or spins for longer than the test may take.


def spin(meta, text, ids):
    while meta == 1:
        pass
    return 0.0


def regex(meta, text, ids):
    """Catastrophic backtracking: a loop in C that holds the interpreter's lock."""
    return float(bool(re.fullmatch(r"(a+)+b", "a" * 60 if meta == 1 else "b")))


def sleep(meta, text, ids):
    time.sleep(1e6 if meta == 1 else 0)
    return 0.0


def stubborn(meta, text, ids):
    try:
        return sleep(meta, text, ids)
    except:  # noqa: E722
        return 0.0


def alarm(meta, text, ids):
    """Set and clear an alarm and restore its handler, as math-verify does."""

    def late(*_):
        raise TimeoutError

    handler = signal.signal(signal.SIGALRM, late)
    signal.setitimer(signal.ITIMER_REAL, 5)
    signal.alarm(0)
    signal.signal(signal.SIGALRM, handler)
    return sleep(meta, text, ids)


def deaf(meta, text, ids):
    """Ignore every signal that can be ignored."""
    for number in signal.valid_signals() - {
        signal.SIGKILL,
        signal.SIGSTOP,
        *range(signal.SIGRTMIN - 2, signal.SIGRTMAX + 1),
    }:
        signal.signal(number, signal.SIG_IGN) if meta == 1 else None
    return sleep(meta, text, ids)


async def awaits(meta, text, ids):
    await asyncio.sleep(1e6 if meta == 1 else 0)
    return 0.0


async def blocks_the_loop(meta, text, ids):
    await asyncio.sleep(0)
    return sleep(meta, text, ids)


async def refuses_to_be_cancelled(meta, text, ids):
    while meta == 1:
        try:
            await asyncio.sleep(1e6)
        except asyncio.CancelledError:
            pass
    return 0.0


HANGS = [spin, regex, stubborn, sleep, alarm, awaits, blocks_the_loop, refuses_to_be_cancelled]


@pytest.mark.parametrize(
    "hang, workers",
    [*((hang, workers) for hang in HANGS for workers in (0, 1)), (deaf, 1), (spin, 3), (awaits, 3)],
)
def test_a_hanging_reward_is_stopped_and_named(hang, workers):
    with pytest.raises(
        RewardTimeout, match="(?s)did not return within 0.3 s.*two.*'text 1'.*timeout_s"
    ):
        judge(hang, prompts=["one", "two", "three", "four"], timeout_s=0.3, workers=workers)
    assert judge(lambda m, t, i: 1.0, workers=workers).sum() == 4  # nothing is left behind
    assert not [p for p in psutil.Process().children(recursive=True) if p.cpu_percent(0.05) > 50]


def test_what_a_hanging_reward_started_ends_with_it(tmp_path):
    def reward(meta, text, ids):
        import subprocess

        child = subprocess.Popen(["sleep", "1000"])
        pathlib.Path(text).write_text(str(child.pid))
        child.wait()

    task = tasks.Task("toy", [{"prompt": "p", "meta": 0}], [], reward)
    with pytest.raises(RewardTimeout):
        tasks.score(task, [0], [str(tmp_path / "pid")], [[]], timeout_s=1.0)
    child = int((tmp_path / "pid").read_text())
    assert not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE


class Asked(BaseException):
    pass


def hear(*_):
    raise Asked


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("hang", [alarm, awaits])
def test_a_request_to_stop_is_heard_while_a_reward_hangs(hang, number):
    before = signal.signal(number, hear)
    threading.Timer(0.5, os.kill, [os.getpid(), number]).start()
    try:
        with pytest.raises(Asked):
            judge(hang, timeout_s=500)
    finally:
        signal.signal(number, before)
    assert judge(lambda m, t, i: 1.0).sum() == 4


def test_somebody_elses_timer_is_left_alone():
    before = signal.getsignal(signal.SIGALRM)
    outer = signal.setitimer(signal.ITIMER_REAL, 100)
    try:
        for workers in (0, 1):
            judge(lambda m, t, i: 1.0, workers=workers)
        assert (
            50 < signal.getitimer(signal.ITIMER_REAL)[0] <= 100
            and signal.getsignal(signal.SIGALRM) is before
        )
    finally:
        signal.setitimer(signal.ITIMER_REAL, *outer)


def test_off_the_main_thread_a_hang_is_an_error_too():
    release, caught = threading.Event(), []

    def run():
        for workers in (0, 1):
            for reward in (lambda m, t, i: release.wait(30), sleep):
                try:
                    judge(reward, timeout_s=0.3, workers=workers)
                except TimeoutError as error:
                    caught.append(str(error))

    thread = threading.Thread(target=run)
    thread.start()
    thread.join(60)
    release.set()
    assert len(caught) == 4 and all("'text" in text for text in caught)


# Where a reward runs


def test_a_reward_runs_in_a_process_that_is_kept_and_leaves_the_accelerator_alone():
    seen = []

    def reward(meta, text, ids):
        seen.append(meta)
        assert os.environ["JAX_PLATFORMS"] == "cpu" and sys.stdin.read() == ""
        return os.getpid() * 1e3 + len(seen)

    first, second = judge(reward, 2).ravel(), judge(reward, 2).ravel()
    assert (
        np.diff([*first, *second]).tolist() == [1, 1, 1]
        and first[0] // 1e3 != os.getpid()
        and not seen
    )
    assert judge(reward_here, 1, workers=0)[0, 0] == os.getpid()


def reward_here(meta, text, ids):
    return os.getpid()


def prints(meta, text, ids):
    print("naïve", meta, flush=True)
    print("aside", file=sys.stderr)
    return 1.0


def python(code, shell='exec "$@"', **environment):
    """Python process that has imported this file as t."""
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **environment}
    command = ["sh", "-c", shell, "sh", sys.executable, "-c", "import test_scoring as t; " + code]
    return subprocess.Popen(
        command, env=env, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


@pytest.mark.parametrize(
    "shell, shown",
    [('exec "$@"', r"na\xefve 1"), ('exec "$@" >&-', ""), ('exec "$@" >/dev/full', "")],
)
def test_what_a_reward_prints_is_shown_and_may_fail(shell, shown):
    out, told = python(
        "t.sys.stderr.write(str(t.judge(t.prints).sum()))", shell, PYTHONIOENCODING="ascii"
    ).communicate(timeout=100)
    assert "4.0" in told and shown in out, told


@pytest.mark.parametrize("hang, number", [("deaf", signal.SIGKILL), ("sleep", signal.SIGTERM)])
def test_no_process_outlives_the_trainer(hang, number, tmp_path):
    pid = tmp_path / "pid"
    trainer = python(
        f"t.judge(lambda m, x, i: (t.pathlib.Path({str(pid)!r}).write_text(str(t.os.getpid())), "
        f"t.{hang}(1, x, i)))"
    )
    while not pid.exists() or not pid.read_text():
        assert trainer.poll() is None, trainer.communicate()
        time.sleep(0.1)
    worker = psutil.Process(int(pid.read_text()))
    trainer.send_signal(number)
    trainer.communicate(timeout=60)
    worker.wait(60)


LOCK, ARRAY = threading.Lock(), jnp.ones(3)


def locked(meta, text, ids):  # this module is imported there, and has another lock
    with LOCK:
        return os.getpid()


def locked_in(lock):
    return lambda meta, text, ids: os.getpid() + lock.locked()


def on_device(meta, text, ids):
    return os.getpid() * float(ARRAY[0])


def heavy(weights):
    return lambda meta, text, ids: os.getpid() + 0 * weights.nbytes


def test_a_reward_that_cannot_be_copied_runs_here_and_says_why():
    assert elsewhere(reward_here) == (True, "")
    assert elsewhere(lambda m, t, i: os.getpid()) == (True, "")
    assert elsewhere(locked) == (True, "")
    assert elsewhere(locked_in(LOCK)) == (False, "TypeError: cannot pickle '_thread.lock' object")
    away, why = elsewhere(on_device)
    assert not away and "arrays of JAX" in why
    away, why = elsewhere(heavy(np.zeros(9_000_000)))
    assert not away and "it carries 69 MiB" in why
    task = tasks.Task(
        "toy", [{"prompt": "p", "meta": LOCK}], [], reward := lambda m, t, i: os.getpid()
    )
    assert tasks.score(task, [LOCK], [""], [[]])[
        0, 0
    ] == os.getpid() and "lock" in worker_pool.in_process_reason(reward)


CONFIG = """
import dataclasses, functools, os
import neighbour

@dataclasses.dataclass
class Meta:
    gold: str

@functools.cache
def compared(gold, text):
    return gold == text

def judge(meta, text, ids):
    return (neighbour.right({}, text)) + 10.0 * (os.getpid() != HOME)

HOME = os.getpid()
"""


@pytest.mark.parametrize(
    "gold, away", [("meta.gold", True), ("compared(meta.gold, text) and text", False)]
)
def test_rewards_of_config_files_and_of_files_beside_them_run_there(tmp_path, gold, away):
    from jaxcredit.cli import loading as find

    (tmp_path / "neighbour.py").write_text("def right(gold, text):\n    return gold == text\n")
    (tmp_path / "typing.py").write_text(CONFIG.format(gold))
    config = find.module(str(tmp_path / "typing.py"))
    task = tasks.Task("toy", [{"prompt": "p", "meta": 0}], [], config.judge)
    out = tasks.score(task, [config.Meta("a"), config.Meta("b")], ["a", "a"], [[], []])
    assert (out.ravel() % 10).tolist() == [1, 0] and (out[0, 0] > 9) == away, (
        worker_pool.in_process_reason(config.judge)
    )
    assert (
        away
        or "cache" in worker_pool.in_process_reason(config.judge)
        or "No module" in worker_pool.in_process_reason(config.judge)
    )


@pytest.mark.parametrize("name", ["sums", "spell_backward", "number_sorting"])
def test_the_tasks_of_the_library_run_in_a_process_of_their_own(name):
    task = getattr(tasks, name)() if name == "sums" else getattr(tasks, name)(20, 4, demo_size=0)
    item = task.train[0]
    out = tasks.score(task, [item["meta"]] * 2, [item["answer"], "nothing"], [[], []])
    assert out.ravel().tolist() == [1, 0] and not worker_pool.in_process_reason(task.reward)


# Async rewards and several workers


@pytest.mark.parametrize("workers", [0, 1])
def test_async_rewards_are_awaited_many_at_a_time(workers):
    here = []

    async def together(
        meta, text, ids
    ):  # nobody passes before all are there: one after the other, it hangs
        here.append(meta)
        while len(here) < 64:
            await asyncio.sleep(0.001)
        return float(len(here))

    assert judge(together, 64, workers=workers).min() == 64


def test_any_awaitable_will_do_and_several_processes_share_them():
    async def later(m):
        await asyncio.sleep(0.001 * (m % 7))
        return None if m == 5 else m

    def reward(m, t, i):
        return later(m) if m % 2 else float(m)

    for workers in (0, 1, 3):
        out = judge(reward, 200, workers=workers).ravel()
        assert np.isnan(out[5]) and np.array_equal(np.delete(out, 5), np.delete(np.arange(200), 5))


def test_several_processes_wait_at_the_same_time(tmp_path):
    def reward(meta, text, ids):
        (tmp_path / str(meta)).touch()
        while len(list(tmp_path.iterdir())) < 4:  # until four are here
            time.sleep(0.01)
        return 1.0

    assert judge(reward, 4, workers=4, timeout_s=60).sum() == 4


def test_lists_of_different_lengths_are_refused():
    task = tasks.Task("toy", [{"prompt": "p", "meta": 0}], [], reward_here)
    with pytest.raises(ValueError, match="1 metas, 2 texts and 2 lists of ids"):
        tasks.score(task, [0], ["a", "b"], [[], []])
    assert tasks.score(task, [], [], []).shape == (0, 1)
