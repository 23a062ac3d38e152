"""Which estimator suits these rollouts? Numbers measured on them, and what the method-selection tree says to each.

The thresholds were found in small worlds (`jaxcredit.arena`): first guesses for yours, which is why every number stands beside its verdict.
"""

from collections.abc import Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from jaxcredit.rollout import Rollout, diagnostics, outcome
from jaxcredit.tasks.statistics import Estimate


class Measured(NamedTuple):
    """Numbers of a set of rollouts, with 95 % intervals over prompts where they are sums over groups."""

    numbers: dict[str, Estimate | float]
    modal: dict[int, float]  # share of a group on its modal prefix, by its length in tokens
    lengths: dict[str, dict[str, float]]  # tokens and turns of the better and the worse answers
    size: dict[str, int]
    signals: tuple[str, ...]


class Step(NamedTuple):
    """One question of the tree: what was measured, what follows, and which estimators that speaks for or against."""

    question: str
    measured: str
    verdict: str
    take: tuple[str, ...] = ()
    avoid: tuple[str, ...] = ()


def measure(rollout: Rollout, logp: Any = None, *, draws: int = 300, seed: int = 0) -> Measured:
    """Everything the tree asks for. `logp` [N, R, T]: the trainer's log-probabilities of the same tokens."""
    per = jax.tree.map(
        lambda x: np.asarray(x, np.float64), dict(jax.jit(diagnostics.sums)(rollout))
    )
    N = rollout.tokens.shape[0]
    value = diagnostics.read({name: x.sum(0) for name, x in per.items()})
    rng = np.random.default_rng(seed)
    often = rng.multinomial(N, np.full(N, 1 / N), size=draws)
    again = [diagnostics.read({name: w @ x for name, x in per.items()}) for w in often]
    numbers: dict[str, Estimate | float] = {}
    for name, x in value.items():
        low, high = np.quantile([a[name] for a in again if name in a] or [x], [0.025, 0.975])
        numbers[name] = Estimate(x, float(low), float(high))
    groups = max(per["groups"].sum(), 1.0)
    depths = [d for d in diagnostics.DEPTHS if d < int(rollout.action_mask.sum(-1).max())]
    if "state" in rollout.signals:
        met = np.asarray(diagnostics.pool_sizes(rollout["state"], rollout.segment_mask))
        numbers["anchor_median"] = float(np.median(met[met > 0])) if met.any() else 0.0
    if "value" in rollout.signals:
        numbers["critic_explains"] = float(diagnostics.explained(rollout))
    if logp is not None:
        numbers |= {
            name: float(x) for name, x in diagnostics.gap(rollout, jnp.asarray(logp)).items()
        }
    R = np.asarray(outcome(rollout))[np.asarray(rollout.segment_mask.any(-1))]
    numbers["two_valued"] = float(len(np.unique(R)) <= 2)
    lengths = jax.device_get(jax.jit(diagnostics.by_outcome)(rollout))
    if rollout.reward.shape[-1] == 1:
        lengths = {name: x for name, x in lengths.items() if name.startswith("tokens")}
    return Measured(
        numbers,
        {d: float(per["modal"].sum(0)[i] / groups) for i, d in enumerate(depths)},
        {name: {k: float(v) for k, v in five.items()} for name, five in lengths.items()},
        {
            "prompts": N,
            "group": rollout.reward.shape[-2],
            "segments": rollout.reward.shape[-1],
            "tokens": int(rollout.action_mask.sum()),
        },
        tuple(sorted(rollout.signals)),
    )


def recommend(m: Measured) -> list[Step]:
    """The method-selection tree, question by question."""
    x, has = (
        {name: v.value if isinstance(v, Estimate) else v for name, v in m.numbers.items()},
        set(m.signals),
    )
    steps = [_sound(x), _teaches(x, m.size["group"])]
    if "agent" in has:
        steps.append(_agents(has))
    if has & {"process", "verdict", "error"}:
        steps.append(_judged(has))
    if m.size["group"] > 1:
        steps += [_tree(m, x), _anchors(x, m.size["segments"]), _strata(x, has)]
    steps.append(_critic(x, m.size["group"]))
    if has & {"gain", "info"}:
        steps.append(
            Step(
                "Is the answer known in training?",
                "gain is there",
                "information gained a turn, normalised turn by turn",
                ("igpo",),
            )
        )
    steps.append(_lengths(m, x))
    if m.size["group"] > 1 and not any(s.take for s in steps):
        verdict = "nothing structural to use: the group's mean as a baseline; token weights on top are a heuristic, to be tried beside it"
        steps.append(Step("And otherwise?", "", verdict, ("rloo", "grpo", "entropy_mask")))
    return steps


def chosen(steps: list[Step]) -> list[tuple[str, str]]:
    """Estimators in the order of the tree, each with its reason; one that any step speaks against is not among them."""
    against = {name for s in steps for name in s.avoid}
    found = {
        name: f"{s.question} {s.measured}: {s.verdict}"
        for s in reversed(steps)
        for name in reversed(s.take)
        if name not in against
    }
    return list(reversed(found.items()))


def _sound(x) -> Step:
    ask = "Do sampler and trainer agree?"
    if "gap_mean" not in x:
        return Step(
            ask,
            "not measured",
            "give the trainer's log-probabilities too (trainer_logp): nothing else can be trusted before",
        )
    told = f"log-probs differ by {x['gap_mean']:.2g} on average, {x['gap_max']:.2g} at most, {x['gap_off']:.1%} of tokens by more than 0.1"
    if x["gap_mean"] > 0.05 or x["gap_off"] > 0.05:
        return Step(
            ask,
            told,
            "no: mend it first (dtype, temperature, kernels), or losses.truncated_importance; no credit by restored states",
        )
    return Step(ask, told, "yes")


def _teaches(x, group) -> Step:
    ask, told = "Do groups teach anything?", f"{x['zero_signal']:.0%} of groups have equal rewards"
    if group < 2:
        return Step(
            ask,
            "one answer a prompt",
            "no group to compare with: a critic, or a greedy answer as the baseline",
            ("ppo", "vapo", "remax"),
        )
    if x["zero_signal"] > 0.5:
        what = "easier" if x["reward"] < 0.5 else "harder"
        return Step(
            ask,
            told,
            f"mostly not: {what} prompts, larger groups (now {group}) or resample > 1, before another estimator",
        )
    return Step(ask, told, "yes")


def _agents(has) -> Step:
    ask = "Who shares the reward?"
    if "counterfactual" in has:
        return Step(
            ask,
            "agent and counterfactual are there",
            "what each message changed, unbiased",
            ("difference_rewards", "coma"),
        )
    if "coalition" in has:
        return Step(
            ask,
            "agent and coalition are there",
            "least variance under redundancy; biased by the default action",
            ("shapley",),
        )
    return Step(
        ask,
        "agent is there",
        "each agent against its own kind; resampling one message given the rest would be better",
        ("dr_mas",),
    )


def _judged(has) -> Step:
    names = ", ".join(sorted(has & {"process", "verdict", "error"}))
    verdict = "the least score to come, mixed with the verified outcome; sums of scores over a free number of steps get hacked"
    return Step(
        "Is there a judge of steps?",
        f"{names} is there",
        verdict,
        ("pure",) if "process" in has else ("capo",) if "error" in has else (),
    )


def _tree(m, x) -> Step:
    ask = "Do answers overlap where it matters?"
    if "decided" not in x or "branchings" not in x:
        return Step(ask, "all rewards of every group are equal", "cannot be told")
    low = m.numbers["decided"].low
    tau = x.get("tau", 0.0)
    told = f"visible branchings decide {x['decided']:.0%} of the rewards' variance (95 %: {low:.0%} to {m.numbers['decided'].high:.0%})"
    if low > 0:
        told += f", and {tau:.0%} of a group are on the way to them"
    told += f"; {x['children_alone']:.0%} of children are alone"
    if low > 0 and x["decided"] >= 0.1 and tau > 0.4:
        return Step(ask, told, "yes: credit by prefix trees", ("tempo", "sploo"))
    if low <= 0 or x["decided"] < 0.05 or tau < 0.2:
        return Step(
            ask,
            told,
            "no: a prefix tree would put noise on the tokens where answers part",
            avoid=("tempo",),
        )
    return Step(
        ask,
        told,
        "a little: a baseline that follows a prefix only as far as there is evidence",
        ("sploo",),
    )


def _anchors(x, segments) -> Step:
    ask = "Do states come back?"
    if "anchor_median" not in x:
        why = (
            "there is one segment: no states between"
            if segments == 1
            else "no signal `state`: name what is equal in two turns"
        )
        return Step(ask, "not measured", why)
    told = f"a turn's state is met {x['anchor_median']:g} times in its group (median), {x['turns_alone']:.0%} of turns by nobody else"
    if x["anchor_median"] >= 4:
        return Step(
            ask,
            told,
            "yes, if equal states really continue alike: compare turns of one state",
            ("gigpo", "hgpo"),
        )
    return Step(
        ask,
        told,
        "too seldom: make the keys coarser (no clock, nearest page), not finer",
        avoid=("gigpo", "hgpo"),
    )


def _strata(x, has) -> Step:
    ask = "Are unlike answers compared?"
    if "strata_ratio" not in x or x["strata"] < 1.05:
        return Step(
            ask,
            "one stratum a group, or none told" if "strata" not in x else "one stratum a group",
            "nothing to compare apart",
        )
    by = "signal stratum" if "stratum" in has else "number of segments"
    told = f"variance between strata is {x['strata_ratio']:.2g} times that within ({by}, {x['strata']:.1f} a group)"
    if x["strata_ratio"] > 1:
        return Step(
            ask,
            told,
            "yes: within strata, blended, since a stratum that the policy chose deserves credit too (alpha < 1)",
            ("san",),
        )
    return Step(ask, told, "hardly", avoid=("san",))


def _critic(x, group) -> Step:
    ask = "Is there a critic worth having?"
    if "critic_explains" not in x:
        return Step(
            ask,
            "no signal `value`",
            "not needed while groups compare; for long horizons or a single answer, signals.critic()",
        )
    told = f"it explains {x['critic_explains']:.0%} of the variance of what follows"
    if x["critic_explains"] > 0.3:
        return Step(
            ask,
            told,
            "yes: GAE with lambda about .95; by segments (hae) if it learns only at their ends",
            ("ppo", "hae"),
        )
    return Step(
        ask,
        told,
        "not yet: its errors would be the credit",
        avoid=("ppo", "hae") if group > 1 else (),
    )


def _lengths(m, x) -> Step:
    a, b = m.lengths["tokens_better"], m.lengths["tokens_worse"]
    told = (
        f"better answers have {a['median']:g} tokens, worse {b['median']:g} (medians)"
        if a["count"] and b["count"]
        else "all are alike"
    )
    told += f"; {x['truncated']:.0%} cut off"
    r = x.get("length_reward", 0.0)
    if x["truncated"] > 0.2:
        return Step(
            "Is length a hidden reward?",
            told,
            "too many are cut off: raise `new`, or leave those out of the loss",
        )
    if abs(r) > 0.3:
        how = "losses.token_mean or constant, not sequence_mean, which weighs the tokens of short answers more"
        return Step(
            "Is length a hidden reward?",
            f"{told}; correlation {r:+.2f} within groups",
            f"length tells the reward: {how}",
        )
    return Step("Is length a hidden reward?", told, "no")


def facts(m: Measured, steps: list[Step], source: Mapping[str, Any]) -> dict[str, Any]:
    """All of it, for programs."""
    numbers = {k: v._asdict() if isinstance(v, Estimate) else v for k, v in m.numbers.items()}
    return {
        **source,
        "size": m.size,
        "signals": m.signals,
        "numbers": numbers,
        "modal_share": m.modal,
        "lengths": m.lengths,
        "steps": [s._asdict() for s in steps],
        "recommend": [{"estimator": name, "why": why} for name, why in chosen(steps)],
    }


def show(m: Measured, steps: list[Step], title: str, console) -> None:
    """The questions as a table, then the estimators to take."""
    from rich.text import Text

    from jaxcredit.utils.tables import Column, Sheet

    size = f"{m.size['prompts']} prompts x {m.size['group']} answers, {m.size['tokens']:,} tokens"
    columns = [
        Column(name, wraps=True, least=14)
        for name in ("question", "measured", "verdict", "estimators")
    ]
    table = Sheet(*columns, title=f"{title}: {size}", lines=True)
    for s in steps:
        table.add_row(
            s.question,
            s.measured,
            s.verdict,
            Text("\n".join([*s.take, *(f"not {name}" for name in s.avoid)])),
        )
    console.print(table)
    if m.modal:
        shares = "  ".join(f"{d}: {share:.0%}" for d, share in m.modal.items())
        console.print(
            f"share of a group on its modal prefix, by its tokens: {shares}", highlight=False
        )
    names = [name for name, _ in chosen(steps)]
    console.print(
        f"try: {', '.join(names) or 'rloo'}; beside them rloo or grpo, at the same number of sampled tokens",
        highlight=False,
    )
