"""The reporting checklist of a run as Markdown: what its folder and its checkpoints tell is filled in, the rest is asked."""

import hashlib
import itertools
import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from jaxcredit.analysis import measurement
from jaxcredit.credit import method_of
from jaxcredit.parallel import params
from jaxcredit.tasks.statistics import Estimate, wilson
from jaxcredit.train.experiment import Experiment
from jaxcredit.train.planning import memory
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


class Item(NamedTuple):
    """One point of the checklist. `told`: what the run says; `asks`: what only its author knows (empty: nothing is left)."""

    section: str
    number: int
    title: str
    told: str = ""
    asks: str = ""


def markdown(
    exp: Experiment,
    programs: Programs,
    folder: Path,
    fresh: CheckpointRollouts | None = None,
    beside: Sequence[Path] = (),
) -> str:
    """The whole report; `fresh` rollouts fill the points about credit and trajectories, `beside` names runs to compare with."""
    history = History(iterate_metrics(folder))
    if len(history) < 2:
        raise ValueError(f"{folder} has no finished step yet: nothing to report")
    items = [
        *_claim(exp),
        *_made_of(exp, programs, history),
        *_against(folder, history, beside),
        *_scores(exp, history),
    ]
    items += [
        *_credit(exp, history, fresh),
        *_cost(exp, programs, history, folder),
        *_answers(exp, fresh),
        *_judge(exp),
    ]
    text = [
        f"# {literal(exp.name)}: {literal(method_of(exp.credit).name)}, {history.last['step']} steps",
        "",
    ]
    filled = sum(bool(i.told) and not i.asks for i in items)
    source = code_span(folder.name)
    text += [
        f"{filled} of {len(items)} points are filled in from {source}; {len(items) - filled} have a question for its author."
    ]
    for section, points in itertools.groupby(items, lambda i: i.section):
        text += ["", f"## {section}", ""]
        for i in points:
            told = f"\n{i.told}\n" if "\n" in i.told else f" {i.told}"
            text.append(
                f"- [{' ' if i.asks else 'x'}] **{i.number}. {i.title}.**{told if i.told else ''}".rstrip()
            )
            text += [f"  - Question: {i.asks}"] if i.asks else []
    return "\n".join(text) + "\n"


def numbers(folder: Path, name: str) -> tuple[Any, str]:
    """Table of a run's metrics (first, best, last) and the text of its config.json. Nothing of the run is executed."""
    summary = Summary(iterate_metrics(folder))
    if not summary.last:
        raise ValueError(
            f"{name} holds no metrics.jsonl with a finished step: name the folder of a run, such as runs/quickstart"
        )
    config = folder / file_names.CONFIG
    text = config.read_text(errors="replace") if config.is_file() else ""
    return final_table(summary, f"step {summary.last['step']}", name), visible(text)


def _claim(exp):
    m = method_of(exp.credit)
    needs = sorted(set(m.needs))
    source = f", arXiv {m.paper}" if m.paper else ""
    alternative = (
        f"siblings of the same group (G = {exp.group_size}), none restored or run again"
        if not needs
        else f"signals {', '.join(needs)}"
    )
    loss = f"advantage in {literal(_name(exp.objective))}, summed by {literal(_name(exp.aggregate))}, KL weight {exp.beta:g}"
    yield Item(
        "Claim card",
        1,
        "Unit and contrast",
        literal(f"{m.name} ({m.granularity}{source}; {m.fidelity}): {m.summary}"),
        "which contrast is meant?",
    )
    yield Item(
        "Claim card",
        2,
        "State",
        "",
        "what counts as the same state (text prefix, restored environment, matched hash)?",
    )
    yield Item(
        "Claim card",
        3,
        "Alternatives",
        alternative,
        "" if not needs else "how were these signals collected?",
    )
    going = f"the policy itself at temperature {exp.temperature:g}, at most {exp.max_new_tokens} tokens; "
    going += f"verifier {literal(exp.task.name)}; seed {exp.seed}"
    yield Item("Claim card", 4, "Continuation", going)
    yield Item(
        "Claim card", 5, "Where the number enters", loss, "what else differs from the baseline?"
    )
    yield Item("Claim card", 6, "Falsifier", "", "which result would contradict the claim?")


def _made_of(exp, programs, history):
    p = exp.policy
    shape = f"layers {p.layers}, width {p.width}, heads {p.heads} ({p.kv_heads} kv), ffn {p.ffn}, vocabulary {p.vocab}"
    origin = (
        f"from {code_span(json.dumps(to_json(exp.load_params)))}"
        if exp.load_params
        else f"from random numbers (seed {exp.seed})"
    )
    warm = (
        f", then {history.first['warmup/steps']} steps of supervision"
        if "warmup/steps" in history.first
        else ""
    )
    count, of = params.count(programs.state.params), "Model and data"
    told = (
        f"{count:,} parameters ({shape}), {p.param_dtype}, computing in {p.dtype}; {origin}{warm}; "
    )
    told += f"tokenizer {literal(type(exp.tokenizer).__name__)}"
    yield Item(
        of,
        7,
        "Model",
        f"{told} of {exp.tokenizer.vocab_size} ids",
        "which exact revision of the checkpoint?" if exp.load_params else "",
    )
    splits = [(n, getattr(exp.task, n)) for n in ("train", "test", "demos")]
    rows = [
        f"  | {name} | {len(part):,} | `{data_hash(part)}` |" for name, part in splits if len(part)
    ]
    table = "\n".join(
        [
            f"  {literal(exp.task.name)}",
            "",
            "  | split | problems | sha256 |",
            "  |---|---|---|",
            *rows,
        ]
    )
    yield Item(of, 8, "Prompts", table, "where are they from, and what was left out?")
    cut = _mean(history, "truncated")
    how = f"temperature {exp.temperature:g}, top-k {exp.top_k or 'off'}, top-p {exp.top_p:g}, prompts up to {max(exp.buckets)}, answers "
    example = exp.tokenizer.decode(exp.tokenizer.chat(exp.task.train[0]["prompt"]))
    yield Item(
        of,
        9,
        "Template and sampling",
        f"{how}up to {exp.max_new_tokens} tokens, {cut:.1%} cut off; a prompt as the model reads it: {_short(example)}",
    )


def _against(folder, history, beside):
    of, others = (
        "Baselines",
        [(f.name, _facts(f), History(iterate_metrics(f), (ACCURACY, "tokens"))) for f in beside],
    )
    mine = _facts(folder)
    rivals = [(name, facts) for name, facts, _ in others if facts["credit"] != mine["credit"]]
    yield Item(
        of,
        10,
        "Baseline",
        ", ".join(literal(f"{n} ({f['credit']})") for n, f in rivals),
        "" if rivals else "which run of an episode-level one?",
    )
    tokens = _tokens(history)
    told = f"{tokens[-1]:,.0f} tokens sampled in training"
    if others:
        budget = min(tokens[-1], *(_tokens(other)[-1] for _, _, other in others))
        rows = [(folder.name, mine, history), *others]
        table = [
            f"  | {literal(n)} | {literal(f['credit'])} | {f['seed']} | {_at(run, budget)} |"
            for n, f, run in rows
        ]
        head = [
            "",
            f"  Accuracy when {budget:,.0f} tokens had been sampled:",
            "",
            "  | run | estimator | seed | accuracy |",
            "  |---|---|---|---|",
        ]
        told = "\n".join([f"  {told}.", *head, *table])
    yield Item(
        of,
        11,
        "Matched budget",
        told,
        "" if rivals else "a baseline at as many tokens? (`--compare-to RUN`)",
    )
    yield Item(
        of,
        12,
        "Credit alone",
        "",
        "runs with credit broadcast, shuffled inside each trajectory, and its sign flipped?",
    )
    yield Item(of, 13, "Ceiling", "", "an oracle's credit, where a controlled task allows it?")
    seeds = {mine["seed"]: history} | {
        f["seed"]: other for _, f, other in others if f["credit"] == mine["credit"]
    }
    last = [s for s in (_last(run, ACCURACY) for run in seeds.values()) if s is not None]
    told = f"seeds {', '.join(map(str, sorted(seeds)))}"
    if len(last) > 1:
        told += f": accuracy {np.mean(last):.3f}, standard error over seeds {np.std(last, ddof=1) / math.sqrt(len(last)):.3f}"
    yield Item(
        "Evaluation",
        14,
        "Seeds",
        told,
        "" if len(last) >= 3 else "at least three, paired (`--compare-to RUN`)?",
    )


def _scores(exp, history):
    n, right = min(exp.eval_prompts, len(exp.task.test)), _last(history, ACCURACY)
    told = (
        f"greedy accuracy: the share of {n} held-out problems whose greedy answer earns at least 1"
    )
    if right is not None and n:
        e = wilson(round(right * n), n)
        told += f"; at the end {e.value:.3f} [{e.low:.3f}, {e.high:.3f}] over prompts"
    yield Item(
        "Evaluation",
        15,
        "Metric",
        told,
        "how is an answer extracted, and by which version of which judge?",
    )
    rows = []
    for name in (name for name, metric in METRICS.items() if metric.panel):
        _, x = history.series(name)
        if len(x):
            rows.append(
                f"  | {name} | {x[0]:.3g} | {max(x):.3g} | {x[-1]:.3g} | `{sparkline(x[:: max(1, len(x) // 16)])}` |"
            )
    table = [
        "  | | first | peak | last | |",
        "  |---|---|---|---|---|",
        *rows,
        "",
        "  ![curves](curves.png)",
    ]
    yield Item("Evaluation", 16, "Curves", "\n".join(table))


def _credit(exp, history, fresh):
    of, late = "Credit quality", max(1, len(history) // 10)
    rms, active, mixed, collisions, modal = (
        _mean(history, name, late)
        for name in (
            "credit_rms",
            "active_token_fraction",
            "signal_group_fraction",
            "prefix_collisions",
            "modal_share",
        )
    )
    told = f"in the last {late} steps: RMS {rms:.3g}, {active:.0%} of tokens active, {1 - mixed:.0%} of groups without a signal"
    yield Item(of, 17, "Credit", told, "leakage, where the truth is known (`jaxcredit arena`)?")
    overlap = f"prefix collisions {collisions:.1%} of tokens, modal share {modal:.0%} half way"
    if fresh is not None:
        measured = measurement.measure(fresh.rollout, fresh.logp)
        rows = [
            f"  | {name.replace('_', ' ')} | {_number(x)} |"
            for name, x in measured.numbers.items()
            if name != "two_valued"
        ]
        head = f"  In training: {overlap}. {measured.size['prompts']} fresh groups of step {fresh.step}:"
        overlap = "\n".join(
            [head, "", "  | | value and 95 % interval over prompts |", "  |---|---|", *rows]
        )
    yield Item(of, 18, "Overlap", overlap)
    ask = "rank correlation with K continuations a prefix on held-out answers, and the replicas' noise floor?"
    yield Item(of, 19, "Agreement with Monte Carlo", "", ask)
    name = method_of(exp.credit).name
    yield Item(
        of,
        20,
        "Controlled tasks",
        f"{code_span(f'jaxcredit arena --estimator {name}')} measures them",
        "its scores, and the setting in which it loses?",
    )


def _cost(exp, programs, history, folder):
    said = typed_value(read_json(folder / file_names.CONFIG), "environment", dict)
    total = history.last.get("time/total_s", 0.0)
    devices = said.get("devices", 1)
    told = f"{devices * total / 3600:.3g} device-hours ({devices} x {said.get('device', 'device')})"
    told += f", {_tokens(history)[-1]:,.0f} tokens sampled; wall clock {total:,.0f} s: {_seconds(history)}"
    if (good := _last(history, "time/goodput")) is not None:
        told += f"; {good:.0%} of it in steps that counted"
    if (mfu := _last(history, "time/mfu")) is not None:
        told += f"; {mfu:.1%} of the devices' peak FLOPs"
    yield Item("Cost", 21, "Compute", told)
    extra = {
        n: memory.format_bytes(memory.bytes_per_device(x)) for n, x in programs.state.aux.items()
    }
    told = f"training state {memory.format_bytes(memory.bytes_per_device(programs.state))} a device; resident beside the policy: "
    yield Item(
        "Cost", 22, "Memory", told + (", ".join(f"{n} {b}" for n, b in extra.items()) or "nothing")
    )


def _answers(exp, fresh):
    of = "Trajectories"
    if fresh is None:
        yield Item(
            of, 23, "Lengths by outcome", "", "tokens and turns of right and of wrong answers?"
        )
        yield Item(of, 24, "Failures", "", "three traces with their credit?")
        return
    rows = []
    for name, five in measurement.measure(fresh.rollout, draws=1).lengths.items():
        numbers = " | ".join(f"{five[k]:.3g}" for k in ("count", "min", "median", "mean", "max"))
        rows.append(f"  | {name.replace('_', ', ')} | {numbers} |")
    yield Item(
        of,
        23,
        "Lengths by outcome",
        "\n".join(
            ["  | | answers | min | median | mean | max |", "  |---|---|---|---|---|---|", *rows]
        ),
    )
    yield Item(
        of,
        24,
        "Failures",
        "\n".join(traces(exp, fresh)),
        "why did they fail, and does the credit say so?",
    )


def traces(
    exp: Experiment, fresh: CheckpointRollouts, count: int = 3, tokens: int = 120
) -> list[str]:
    """The worst answers of mixed groups with the largest credit, each token followed by what it got."""
    R, mask = np.asarray(fresh.rollout.reward).sum(-1), np.asarray(fresh.rollout.action_mask)
    row = np.asarray(fresh.rollout.filled().row)
    size = np.sqrt(
        (np.where(mask, fresh.advantage, 0) ** 2).sum(-1) / np.maximum(mask.sum(-1), 1)
    )  # [N, R]
    worst = np.take_along_axis(R, row, -1) <= R.min(-1, keepdims=True)
    order = np.argsort(
        np.where(worst & (R.max(-1) > R.min(-1))[:, None], -size, np.inf), axis=None
    )[:count]
    out, seen = [], np.asarray(fresh.rollout.tokens)
    for n, r in zip(*np.unravel_index(order, size.shape), strict=True):
        ids, credit = seen[n, r][mask[n, r]][:tokens], fresh.advantage[n, r][mask[n, r]][:tokens]
        words = " ".join(
            f"{_token(exp.tokenizer, int(i))}{c:+.2f}" for i, c in zip(ids, credit, strict=True)
        )
        out += [
            f"  - reward {R[n, row[n, r]]:g} of {R[n].max():g} in the group; prompt {_short(_text(fresh.prompts[n]))}",
            "",
            f"        {words}",
        ]
    return out


def _token(tokenizer, token: int) -> str:
    return "end" if token in tokenizer.stop_ids else one_line(repr(tokenizer.decode([token])))


def _judge(exp):
    judges = sorted(set(exp.provided()) & {"process", "verdict", "error", "prm_logp", "progress"})
    ask = (
        "its accuracy under the trained policy, a probe with filler, and where it collapses?"
        if judges
        else ""
    )
    yield Item(
        "Reward hacking",
        25,
        "Judges",
        literal(", ".join(judges)) or "no reward model or judge of steps takes part",
        ask,
    )


def data_hash(items: Sequence[dict]) -> str:
    """SHA-256 of the problems in their order, the first sixteen digits; of very long splits of the first items."""
    sha = hashlib.sha256()
    for item in itertools.islice(items, HASHED):
        sha.update(
            json.dumps(
                [item.get("prompt"), to_json(item.get("meta"))], sort_keys=True, default=str
            ).encode()
            + b"\n"
        )
    return sha.hexdigest()[:16] + (f" (first {HASHED:,})" if len(items) > HASHED else "")


def _facts(folder: Path) -> dict[str, Any]:
    config = read_config(folder)
    credit = config.get("credit", "unknown")
    name = credit if isinstance(credit, str) else json.dumps(credit)
    return {
        "credit": name.removeprefix("jaxcredit.credit.").split(".")[-1],
        "seed": config.get("seed"),
    }


def _seconds(history: History) -> str:
    """Wall-clock seconds by activity. In older runs without update_s, sample_s includes the wait for the update."""
    sample, update = history.series("time/sample_s")[0], history.series("time/update_s")[0]
    parts = {
        "sample": history.total("time/sample_s"),
        "update": history.total("time/update_s"),
        "reward": history.total("time/reward_s"),
    }
    if len(sample) == len(update):
        told = f"sampling {parts['sample']:,.0f}, waiting for the update {parts['update']:,.0f}"
    else:
        told = f"sampling and waiting for the update {parts['sample'] + parts['update']:,.0f}"
    return (
        f"{told}, judging {parts['reward']:,.0f}, the rest mostly evaluation, saving and compiling"
    )


def _tokens(history: History) -> np.ndarray:
    """Cumulative number of sampled tokens at each line."""
    return np.cumsum(np.nan_to_num(history.column("tokens")))


def _at(history: History, budget: float) -> str:
    """The last accuracy that was measured before the budget was spent."""
    seen = history.column(ACCURACY)[_tokens(history) <= budget]
    seen = seen[~np.isnan(seen)]
    return f"{seen[-1]:.3f}" if len(seen) else "-"


def _last(history: History, name: str) -> float | None:
    _, x = history.series(name)
    return float(x[-1]) if len(x) else None


def _mean(history: History, name: str, late: int = 0) -> float:
    """The mean over the lines that have it, or over the last `late` lines."""
    x = history.column(name)[-late:]
    x = x[~np.isnan(x)]
    return float(np.mean(x)) if len(x) else float("nan")


def _number(x) -> str:
    return f"{x.value:.3g} [{x.low:.3g}, {x.high:.3g}]" if isinstance(x, Estimate) else f"{x:.3g}"


def _name(f) -> str:
    said = to_json(f)
    return said.split(".")[-1] if isinstance(said, str) else json.dumps(said)


def _text(prompt) -> str:
    return prompt if isinstance(prompt, str) else prompt[-1]["content"]


def _short(text: str, most: int = 160) -> str:
    """Text of the data or the model as a code span of one line."""
    one = " ".join(text.split())
    return code_span(one if len(one) <= most else one[:most] + " ...")
