"""Reporting checklist of a run as Markdown.

Points that the run folder and its checkpoints answer are filled in. The other points are questions
for the author of the run.
"""

import hashlib
import itertools
import json
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxcredit.analysis import measurement
from jaxcredit.credit import method_of
from jaxcredit.parallel import params
from jaxcredit.tasks.statistics import Estimate, wilson
from jaxcredit.train.experiment import Experiment
from jaxcredit.train.planning.memory import bytes_per_device, format_bytes
from jaxcredit.train.programs import Programs
from jaxcredit.train.restore import CheckpointRollouts
from jaxcredit.train.runs import file_names
from jaxcredit.train.runs.console import Summary, final_table, sparkline
from jaxcredit.train.runs.history import History
from jaxcredit.train.runs.json_files import read_config, read_json, typed_value
from jaxcredit.train.runs.json_lines import iterate_metrics
from jaxcredit.train.runs.json_values import to_json
from jaxcredit.train.runs.metric_table import ACCURACY, METRICS
from jaxcredit.utils.plain_text import code_span, one_line, visible
from jaxcredit.utils.plain_text import markdown as literal

HASHED = 100_000  # items of a split that are hashed
JUDGED = {"process", "verdict", "error", "prm_logp", "progress"}  # signals of judges of steps


class Item(NamedTuple):
    """Point of the checklist.

    Attributes:
        section: heading.
        number: number of the point.
        title: name of the point.
        text: answer from the run folder.
        question: question for the author; "" if the answer is complete.
    """

    section: str
    number: int
    title: str
    text: str = ""
    question: str = ""


def markdown(
    exp: Experiment,
    programs: Programs,
    folder: Path,
    fresh: CheckpointRollouts | None = None,
    others: Sequence[Path] = (),
) -> str:
    """Report of a run as Markdown.

    Args:
        exp: experiment of the run.
        programs: programs of the experiment.
        folder: local run folder.
        fresh: rollouts of a checkpoint, for the points about credit and trajectories.
        others: local folders of runs to compare with.

    Raises:
        ValueError: the run has no finished step.
    """
    history = History(iterate_metrics(folder))
    if len(history) < 2:
        raise ValueError(f"{folder} has no finished step yet: nothing to report")
    items = [
        *_claim(exp),
        *_model_and_data(exp, programs, history),
        *_baselines(folder, history, others),
        *_evaluation(exp, history),
        *_credit_quality(exp, history, fresh),
        *_cost(programs, history, folder),
        *_trajectories(exp, fresh),
        *_reward_hacking(exp),
    ]
    name, method = literal(exp.name), literal(method_of(exp.credit).name)
    complete = sum(bool(item.text) and not item.question for item in items)
    text = [
        f"# {name}: {method}, {history.last['step']} steps",
        "",
        f"{complete} of {len(items)} points are filled in from {code_span(folder.name)}; "
        f"{len(items) - complete} have a question for its author.",
    ]
    for section, points in itertools.groupby(items, lambda item: item.section):
        text += ["", f"## {section}", ""]
        for item in points:
            text += _lines(item)
    return "\n".join(text) + "\n"


def metrics_and_config(folder: Path, name: str) -> tuple[Any, str]:
    """Table of a run's metrics, and the text of its config.json. No code of the run is executed.

    Args:
        folder: local run folder.
        name: name of the run for messages and the caption.

    Raises:
        ValueError: the run has no finished step.
    """
    summary = Summary(iterate_metrics(folder))
    if not summary.last:
        raise ValueError(
            f"{name} holds no {file_names.METRICS} with a finished step: "
            "name the folder of a run, such as runs/quickstart"
        )
    config = folder / file_names.CONFIG
    text = config.read_text(errors="replace") if config.is_file() else ""
    return final_table(summary, f"step {summary.last['step']}", name), visible(text)


def _lines(item: Item) -> list[str]:
    """Markdown lines of a point."""
    text = f"\n{item.text}\n" if "\n" in item.text else f" {item.text}"
    mark = " " if item.question else "x"
    line = f"- [{mark}] **{item.number}. {item.title}.**{text if item.text else ''}".rstrip()
    return [line, *([f"  - Question: {item.question}"] if item.question else [])]


def _claim(exp: Experiment) -> Iterator[Item]:
    section, method = "Claim card", method_of(exp.credit)
    source = f", arXiv {method.paper}" if method.paper else ""
    yield Item(
        section,
        1,
        "Unit and contrast",
        literal(
            f"{method.name} ({method.granularity}{source}; {method.fidelity}): {method.summary}"
        ),
        "which contrast is meant?",
    )
    question = "what counts as the same state (text prefix, restored environment, matched hash)?"
    yield Item(section, 2, "State", "", question)
    if needs := sorted(set(method.needs)):
        alternatives, question = f"signals {', '.join(needs)}", "how were these signals collected?"
    else:
        alternatives, question = (
            f"siblings of the same group (G = {exp.group_size}), none restored or run again",
            "",
        )
    yield Item(section, 3, "Alternatives", alternatives, question)
    yield Item(
        section,
        4,
        "Continuation",
        f"the policy itself at temperature {exp.temperature:g}, at most {exp.max_new_tokens} "
        f"tokens; verifier {literal(exp.task.name)}; seed {exp.seed}",
    )
    yield Item(
        section,
        5,
        "Where the number enters",
        f"advantage in {literal(_name(exp.objective))}, summed by "
        f"{literal(_name(exp.aggregate))}, KL weight {exp.beta:g}",
        "what else differs from the baseline?",
    )
    yield Item(section, 6, "Falsifier", "", "which result would contradict the claim?")


def _model_and_data(exp: Experiment, programs: Programs, history: History) -> Iterator[Item]:
    section, policy = "Model and data", exp.policy
    shape = (
        f"layers {policy.layers}, width {policy.width}, heads {policy.heads} "
        f"({policy.kv_heads} kv), ffn {policy.ffn}, vocabulary {policy.vocab}"
    )
    origin = f"from random numbers (seed {exp.seed})"
    if exp.load_params:
        origin = f"from {code_span(json.dumps(to_json(exp.load_params)))}"
    if "warmup/steps" in history.first:
        origin += f", then {history.first['warmup/steps']} steps of supervision"
    yield Item(
        section,
        7,
        "Model",
        f"{params.count(programs.state.params):,} parameters ({shape}), {policy.param_dtype}, "
        f"computing in {policy.dtype}; {origin}; tokenizer "
        f"{literal(type(exp.tokenizer).__name__)} of {exp.tokenizer.vocab_size} ids",
        "which exact revision of the checkpoint?" if exp.load_params else "",
    )
    splits = [(name, getattr(exp.task, name)) for name in ("train", "test", "demos")]
    table = [
        f"  {literal(exp.task.name)}",
        "",
        "  | split | problems | sha256 |",
        "  |---|---|---|",
        *(f"  | {name} | {len(x):,} | `{data_hash(x)}` |" for name, x in splits if len(x)),
    ]
    yield Item(
        section, 8, "Prompts", "\n".join(table), "where are they from, and what was left out?"
    )
    example = exp.tokenizer.decode(exp.tokenizer.chat(exp.task.train[0]["prompt"]))
    yield Item(
        section,
        9,
        "Template and sampling",
        f"temperature {exp.temperature:g}, top-k {exp.top_k or 'off'}, top-p {exp.top_p:g}, "
        f"prompts up to {max(exp.buckets)}, answers up to {exp.max_new_tokens} tokens, "
        f"{_mean(history, 'truncated'):.1%} cut off; "
        f"a prompt as the model reads it: {_short(example)}",
    )


def _baselines(folder: Path, history: History, others: Sequence[Path]) -> Iterator[Item]:
    section, this = "Baselines", _credit_and_seed(folder)
    runs = [
        (path.name, _credit_and_seed(path), History(iterate_metrics(path), (ACCURACY, "tokens")))
        for path in others
    ]
    rivals = [
        literal(f"{name} ({run['credit']})")
        for name, run, _ in runs
        if run["credit"] != this["credit"]
    ]
    question = "" if rivals else "which run of an episode-level estimator?"
    yield Item(section, 10, "Baseline", ", ".join(rivals), question)
    tokens = _tokens(history)
    text = f"{tokens[-1]:,.0f} tokens sampled in training"
    if runs:
        budget = min(tokens[-1], *(_tokens(other)[-1] for _, _, other in runs))
        table = [
            f"  {text}.",
            "",
            f"  Accuracy when {budget:,.0f} tokens had been sampled:",
            "",
            "  | run | estimator | seed | accuracy |",
            "  |---|---|---|---|",
        ]
        for name, run, other in [(folder.name, this, history), *runs]:
            accuracy = _accuracy_at(other, budget)
            table.append(
                f"  | {literal(name)} | {literal(run['credit'])} | {run['seed']} | {accuracy} |"
            )
        text = "\n".join(table)
    question = "" if rivals else "a baseline at as many tokens? (`--compare-to RUN`)"
    yield Item(section, 11, "Matched budget", text, question)
    question = "runs with credit broadcast, shuffled inside each trajectory, and its sign flipped?"
    yield Item(section, 12, "Credit alone", "", question)
    yield Item(section, 13, "Ceiling", "", "an oracle's credit, where a controlled task allows it?")
    seeds = {this["seed"]: history}
    seeds |= {run["seed"]: other for _, run, other in runs if run["credit"] == this["credit"]}
    last = [x for x in (_last(other, ACCURACY) for other in seeds.values()) if x is not None]
    text = f"seeds {', '.join(map(str, sorted(seeds)))}"
    if len(last) > 1:
        error = np.std(last, ddof=1) / math.sqrt(len(last))
        text += f": accuracy {np.mean(last):.3f}, standard error over seeds {error:.3f}"
    question = "" if len(last) >= 3 else "at least three, paired (`--compare-to RUN`)?"
    yield Item("Evaluation", 14, "Seeds", text, question)


def _evaluation(exp: Experiment, history: History) -> Iterator[Item]:
    n, accuracy = min(exp.eval_prompts, len(exp.task.test)), _last(history, ACCURACY)
    text = (
        f"greedy accuracy: the share of {n} held-out problems whose greedy answer earns at least 1"
    )
    if accuracy is not None and n:
        e = wilson(round(accuracy * n), n)
        text += f"; at the end {e.value:.3f} [{e.low:.3f}, {e.high:.3f}] over prompts"
    question = "how is an answer extracted, and by which version of which judge?"
    yield Item("Evaluation", 15, "Metric", text, question)
    table = ["  | | first | peak | last | |", "  |---|---|---|---|---|"]
    for name, metric in METRICS.items():
        _, x = history.series(name)
        if metric.panel and len(x):
            curve = sparkline(x[:: max(1, len(x) // 16)].tolist())
            table.append(f"  | {name} | {x[0]:.3g} | {max(x):.3g} | {x[-1]:.3g} | `{curve}` |")
    table += ["", f"  ![curves]({file_names.CURVES})"]
    yield Item("Evaluation", 16, "Curves", "\n".join(table))


def _credit_quality(
    exp: Experiment, history: History, fresh: CheckpointRollouts | None
) -> Iterator[Item]:
    section, late = "Credit quality", max(1, len(history) // 10)
    rms = _mean(history, "credit_rms", late)
    active = _mean(history, "active_token_fraction", late)
    without_signal = 1 - _mean(history, "signal_group_fraction", late)
    yield Item(
        section,
        17,
        "Credit",
        f"in the last {late} steps: RMS {rms:.3g}, {active:.0%} of tokens active, "
        f"{without_signal:.0%} of groups without a signal",
        "leakage, where the truth is known (`jaxcredit arena`)?",
    )
    overlap = (
        f"prefix collisions {_mean(history, 'prefix_collisions', late):.1%} of tokens, "
        f"modal share {_mean(history, 'modal_share', late):.0%} half way"
    )
    if fresh is not None:
        measured = measurement.measure(fresh.rollout, fresh.logp)
        groups = measured.size["prompts"]
        table = [
            f"  In training: {overlap}. {groups} fresh groups of step {fresh.step}:",
            "",
            "  | | value and 95 % interval over prompts |",
            "  |---|---|",
        ]
        for name, x in measured.numbers.items():
            if name != "two_valued":
                table.append(f"  | {name.replace('_', ' ')} | {_number(x)} |")
        overlap = "\n".join(table)
    yield Item(section, 18, "Overlap", overlap)
    question = (
        "rank correlation with K continuations a prefix on held-out answers, "
        "and the replicas' noise floor?"
    )
    yield Item(section, 19, "Agreement with Monte Carlo", "", question)
    command = code_span(f"jaxcredit arena --estimator {method_of(exp.credit).name}")
    question = "its scores, and the setting in which it loses?"
    yield Item(section, 20, "Controlled tasks", f"{command} measures them", question)


def _cost(programs: Programs, history: History, folder: Path) -> Iterator[Item]:
    environment = typed_value(read_json(folder / file_names.CONFIG), "environment", dict)
    devices, kind = environment.get("devices", 1), environment.get("device", "device")
    total = history.last.get("time/total_s", 0.0)
    text = (
        f"{devices * total / 3600:.3g} device-hours ({devices} x {kind}), "
        f"{_tokens(history)[-1]:,.0f} tokens sampled; "
        f"wall clock {total:,.0f} s: {_seconds(history)}"
    )
    if (goodput := _last(history, "time/goodput")) is not None:
        text += f"; {goodput:.0%} of it in steps that counted"
    if (mfu := _last(history, "time/mfu")) is not None:
        text += f"; {mfu:.1%} of the devices' peak FLOPs"
    yield Item("Cost", 21, "Compute", text)
    annotators = ", ".join(
        f"{name} {format_bytes(bytes_per_device(state))}"
        for name, state in programs.state.aux.items()
    )
    state = format_bytes(bytes_per_device(programs.state))
    text = f"training state {state} a device; resident beside the policy: {annotators or 'nothing'}"
    yield Item("Cost", 22, "Memory", text)


def _trajectories(exp: Experiment, fresh: CheckpointRollouts | None) -> Iterator[Item]:
    section = "Trajectories"
    if fresh is None:
        question = "tokens and turns of right and of wrong answers?"
        yield Item(section, 23, "Lengths by outcome", "", question)
        yield Item(section, 24, "Failures", "", "three traces with their credit?")
        return
    table = ["  | | answers | min | median | mean | max |", "  |---|---|---|---|---|---|"]
    for name, statistics in measurement.measure(fresh.rollout, draws=1).lengths.items():
        columns = (f"{statistics[k]:.3g}" for k in ("count", "min", "median", "mean", "max"))
        table.append(f"  | {name.replace('_', ', ')} | {' | '.join(columns)} |")
    yield Item(section, 23, "Lengths by outcome", "\n".join(table))
    question = "why did they fail, and does the credit say so?"
    yield Item(section, 24, "Failures", "\n".join(failure_traces(exp, fresh)), question)


def failure_traces(
    exp: Experiment, fresh: CheckpointRollouts, count: int = 3, tokens: int = 120
) -> list[str]:
    """Failed answers of the groups whose rewards differ, with the credit of every token.

    Args:
        exp: the experiment, for its tokenizer.
        fresh: rollouts of a checkpoint.
        count: number of answers; those with the largest root mean square of the credit are chosen.
        tokens: largest number of tokens of an answer that are shown.

    Returns:
        Lines of Markdown.
    """
    R, mask = np.asarray(fresh.rollout.reward).sum(-1), np.asarray(fresh.rollout.action_mask)
    row = np.asarray(fresh.rollout.filled().row)
    squares = (np.where(mask, fresh.advantage, 0) ** 2).sum(-1)
    rms = np.sqrt(squares / np.maximum(mask.sum(-1), 1))  # [N, R]
    is_worst = np.take_along_axis(R, row, -1) <= R.min(-1, keepdims=True)
    has_signal = (R.max(-1) > R.min(-1))[:, None]
    order = np.argsort(np.where(is_worst & has_signal, -rms, np.inf), axis=None)[:count]
    lines, sampled = [], np.asarray(fresh.rollout.tokens)
    for n, r in zip(*np.unravel_index(order, rms.shape), strict=True):
        ids = sampled[n, r][mask[n, r]][:tokens]
        credit = fresh.advantage[n, r][mask[n, r]][:tokens]
        words = " ".join(
            f"{_token(exp.tokenizer, int(i))}{c:+.2f}" for i, c in zip(ids, credit, strict=True)
        )
        prompt = _short(_text(fresh.prompts[n]))
        reward, best = R[n, row[n, r]], R[n].max()
        lines += [
            f"  - reward {reward:g} of {best:g} in the group; prompt {prompt}",
            "",
            f"        {words}",
        ]
    return lines


def _token(tokenizer, token: int) -> str:
    return "end" if token in tokenizer.stop_ids else one_line(repr(tokenizer.decode([token])))


def _reward_hacking(exp: Experiment) -> Iterator[Item]:
    judges = literal(", ".join(sorted(set(exp.provided()) & JUDGED)))
    yield Item(
        "Reward hacking",
        25,
        "Judges",
        judges or "no reward model or judge of steps takes part",
        "its accuracy under the trained policy, a probe with filler, and where it collapses?"
        if judges
        else "",
    )


def data_hash(items: Sequence[dict]) -> str:
    """First 16 digits of the SHA-256 of problems in their order.

    Of a split with more than HASHED problems, the first HASHED are hashed.
    """
    sha = hashlib.sha256()
    for item in itertools.islice(items, HASHED):
        content = [item.get("prompt"), to_json(item.get("meta"))]
        sha.update(json.dumps(content, sort_keys=True, default=str).encode() + b"\n")
    return sha.hexdigest()[:16] + (f" (first {HASHED:,})" if len(items) > HASHED else "")


def _credit_and_seed(folder: Path) -> dict[str, Any]:
    config = read_config(folder)
    credit = config.get("credit", "unknown")
    name = credit if isinstance(credit, str) else json.dumps(credit)
    return {
        "credit": name.removeprefix("jaxcredit.credit.").split(".")[-1],
        "seed": config.get("seed"),
    }


def _seconds(history: History) -> str:
    """Wall-clock seconds by activity.

    In runs made before time/update_s was measured, time/sample_s includes the wait for the update.
    """
    sample, update = history.total("time/sample_s"), history.total("time/update_s")
    if len(history.series("time/sample_s")[0]) == len(history.series("time/update_s")[0]):
        text = f"sampling {sample:,.0f}, waiting for the update {update:,.0f}"
    else:
        text = f"sampling and waiting for the update {sample + update:,.0f}"
    judging = history.total("time/reward_s")
    return f"{text}, judging {judging:,.0f}, the rest mostly evaluation, saving and compiling"


def _tokens(history: History) -> np.ndarray:
    """Cumulative number of sampled tokens at each line."""
    return np.cumsum(np.nan_to_num(history.column("tokens")))


def _accuracy_at(history: History, budget: float) -> str:
    """Last accuracy that was measured before `budget` tokens were sampled."""
    accuracy = history.column(ACCURACY)[_tokens(history) <= budget]
    accuracy = accuracy[~np.isnan(accuracy)]
    return f"{accuracy[-1]:.3f}" if len(accuracy) else "-"


def _last(history: History, name: str) -> float | None:
    _, x = history.series(name)
    return float(x[-1]) if len(x) else None


def _mean(history: History, name: str, late: int = 0) -> float:
    """Mean of a metric over all lines, or over the last `late` lines, that have it."""
    x = history.column(name)[-late:]
    x = x[~np.isnan(x)]
    return float(np.mean(x)) if len(x) else float("nan")


def _number(x: Estimate | float) -> str:
    return f"{x.value:.3g} [{x.low:.3g}, {x.high:.3g}]" if isinstance(x, Estimate) else f"{x:.3g}"


def _name(function: Any) -> str:
    name = to_json(function)
    return name.split(".")[-1] if isinstance(name, str) else json.dumps(name)


def _text(prompt) -> str:
    return prompt if isinstance(prompt, str) else prompt[-1]["content"]


def _short(text: str, most: int = 160) -> str:
    """Text of the data or the model as a code span of one line."""
    line = " ".join(text.split())
    return code_span(line if len(line) <= most else line[:most] + " ...")
