"""Choice of an estimator for given rollouts: a decision tree over their measured statistics.

The thresholds come from small worlds (`jaxcredit.arena`). They are first guesses for other tasks,
so every recommendation is shown with the number that it follows from.
"""

from collections.abc import Mapping
from typing import NamedTuple

from jaxcredit.analysis.measurement import Measurement
from jaxcredit.tasks.statistics import Estimate


class Step(NamedTuple):
    """One question of the decision tree with its answer.

    Attributes:
        question: the question.
        measured: the statistics on which the answer depends, in words.
        verdict: the answer, and what follows from it.
        take: names of estimators that the answer recommends.
        avoid: names of estimators that the answer speaks against.
    """

    question: str
    measured: str
    verdict: str
    take: tuple[str, ...] = ()
    avoid: tuple[str, ...] = ()


def recommend(measurement: Measurement) -> list[Step]:
    """All questions of the decision tree that apply to the rollouts, with their answers."""
    numbers = {
        name: number.value if isinstance(number, Estimate) else number
        for name, number in measurement.numbers.items()
    }
    signals, group = set(measurement.signals), measurement.size["group"]
    steps = [_sampler_agreement(numbers), _learning_signal(numbers, group)]
    if "agent" in signals:
        steps.append(_agents(signals))
    if signals & {"process", "verdict", "error"}:
        steps.append(_step_judge(signals))
    if group > 1:
        steps.append(_prefix_tree(measurement, numbers))
        steps.append(_repeated_states(numbers, measurement.size["segments"]))
        steps.append(_strata(numbers, signals))
    steps.append(_critic(numbers, group))
    if signals & {"gain", "info"}:
        steps.append(
            Step(
                "Is the answer known in training?",
                "the signal gain or info is given",
                "information gain of each turn, normalized for each turn",
                ("igpo",),
            )
        )
    steps.append(_length(measurement, numbers))
    if group > 1 and not any(step.take for step in steps):
        verdict = (
            "no structure to use: the group's mean as a baseline; token weights in addition "
            "are a heuristic, to be compared with it"
        )
        steps.append(Step("Otherwise?", "", verdict, ("rloo", "grpo", "entropy_mask")))
    return steps


def estimators(steps: list[Step]) -> list[tuple[str, str]]:
    """Recommended estimators with reasons, in the order of the decision tree.

    Args:
        steps: answers, as from `recommend`.

    Returns:
        (name, reason) of each estimator that an answer recommends and none speaks against.
    """
    avoided = {name for step in steps for name in step.avoid}
    reasons: dict[str, str] = {}
    for step in reversed(steps):
        for name in reversed(step.take):
            if name not in avoided:
                reasons[name] = f"{step.question} {step.measured}: {step.verdict}"
    return list(reversed(reasons.items()))


def _sampler_agreement(numbers: Mapping[str, float]) -> Step:
    question = "Do sampler and trainer agree?"
    if "gap_mean" not in numbers:
        return Step(
            question,
            "not measured",
            "give the trainer's log-probabilities too (trainer_logp): all else depends on them",
        )
    measured = (
        f"log-probs differ by {numbers['gap_mean']:.2g} on average, {numbers['gap_max']:.2g} at "
        f"most, {numbers['gap_off']:.1%} of tokens by more than 0.1"
    )
    if numbers["gap_mean"] > 0.05 or numbers["gap_off"] > 0.05:
        return Step(
            question,
            measured,
            "no: fix it first (dtype, temperature, kernels), or use losses.truncated_importance; "
            "no estimator that restores states",
        )
    return Step(question, measured, "yes")


def _learning_signal(numbers: Mapping[str, float], group: int) -> Step:
    question = "Do groups have a learning signal?"
    if group < 2:
        return Step(
            question,
            "one answer to each prompt",
            "no group to compare with: a critic, or a greedy answer as the baseline",
            ("ppo", "vapo", "remax"),
        )
    measured = f"{numbers['zero_signal']:.0%} of groups have equal rewards"
    if numbers["zero_signal"] > 0.5:
        change = "easier" if numbers["reward"] < 0.5 else "harder"
        return Step(
            question,
            measured,
            f"mostly not: {change} prompts, larger groups (now {group}) or "
            "max_sampling_rounds > 1, before another estimator",
        )
    return Step(question, measured, "yes")


def _agents(signals: set[str]) -> Step:
    question = "Do several agents share the reward?"
    if "counterfactual" in signals:
        return Step(
            question,
            "the signals agent and counterfactual are given",
            "the effect of each message on the reward, unbiased",
            ("difference_rewards", "coma"),
        )
    if "coalition" in signals:
        return Step(
            question,
            "the signals agent and coalition are given",
            "least variance if agents are redundant; biased by the default action",
            ("shapley",),
        )
    return Step(
        question,
        "the signal agent is given",
        "each agent is compared with itself in other answers; resampling single messages would "
        "be better",
        ("dr_mas",),
    )


def _step_judge(signals: set[str]) -> Step:
    given = ", ".join(sorted(signals & {"process", "verdict", "error"}))
    take = ("pure",) if "process" in signals else ("capo",) if "error" in signals else ()
    return Step(
        "Are steps judged?",
        f"the signal {given} is given",
        "the least future score, together with the verified outcome; sums of scores over a free "
        "number of steps invite reward hacking",
        take,
    )


def _prefix_tree(measurement: Measurement, numbers: Mapping[str, float]) -> Step:
    question = "Do answers share prefixes up to the decisive tokens?"
    if "decided" not in numbers or "branchings" not in numbers:
        return Step(question, "all rewards of every group are equal", "unknown")
    decided = measurement.numbers["decided"]
    assert isinstance(decided, Estimate)
    shared = numbers.get("tau", 0.0)
    measured = (
        f"observed branch points explain {decided.value:.0%} of the rewards' variance "
        f"(95 %: {decided.low:.0%} to {decided.high:.0%})"
    )
    if decided.low > 0:
        measured += f", and {shared:.0%} of a group share the prefix before them"
    measured += f"; {numbers['children_alone']:.0%} of branches have a single answer"
    if decided.low > 0 and decided.value >= 0.1 and shared > 0.4:
        return Step(question, measured, "yes: credit by prefix trees", ("tempo", "sploo"))
    if decided.low <= 0 or decided.value < 0.05 or shared < 0.2:
        return Step(
            question,
            measured,
            "no: a prefix tree would add noise at the branch points",
            avoid=("tempo",),
        )
    return Step(
        question,
        measured,
        "a little: a baseline that uses a prefix only as far as there is evidence",
        ("sploo",),
    )


def _repeated_states(numbers: Mapping[str, float], segments: int) -> Step:
    question = "Are states repeated?"
    if "anchor_median" not in numbers:
        reason = (
            "one segment: there are no intermediate states"
            if segments == 1
            else "no signal `state`, which gives equal states the same number"
        )
        return Step(question, "not measured", reason)
    measured = (
        f"a turn's state occurs {numbers['anchor_median']:g} times in its group (median), "
        f"{numbers['turns_alone']:.0%} of turns have a state of their own"
    )
    if numbers["anchor_median"] >= 4:
        return Step(
            question,
            measured,
            "yes: compare turns with the same state, if equal states have equal futures",
            ("gigpo", "hgpo"),
        )
    return Step(
        question,
        measured,
        "too seldom: make the states coarser (without the time, the nearest page), not finer",
        avoid=("gigpo", "hgpo"),
    )


def _strata(numbers: Mapping[str, float], signals: set[str]) -> Step:
    question = "Are answers of different kinds compared?"
    if "strata_ratio" not in numbers or numbers["strata"] < 1.05:
        measured = "one stratum in each group" + (
            ", or no signal `stratum`" if "strata" not in numbers else ""
        )
        return Step(question, measured, "nothing to stratify")
    origin = "signal stratum" if "stratum" in signals else "number of segments"
    measured = (
        f"variance between strata is {numbers['strata_ratio']:.2g} times that within "
        f"({origin}, {numbers['strata']:.1f} in each group)"
    )
    if numbers["strata_ratio"] > 1:
        return Step(
            question,
            measured,
            "yes: a baseline within strata, blended (alpha < 1), since the policy's choice of a "
            "stratum deserves credit too",
            ("san",),
        )
    return Step(question, measured, "hardly", avoid=("san",))


def _critic(numbers: Mapping[str, float], group: int) -> Step:
    question = "Is there a good critic?"
    if "critic_explains" not in numbers:
        return Step(
            question,
            "no signal `value`",
            "not needed for groups; for long horizons or single answers, signals.critic()",
        )
    measured = f"it explains {numbers['critic_explains']:.0%} of the variance of returns"
    if numbers["critic_explains"] > 0.3:
        return Step(
            question,
            measured,
            "yes: GAE with lambda of about .95; by segments (hae) if the critic learns only at "
            "their ends",
            ("ppo", "hae"),
        )
    return Step(
        question,
        measured,
        "not yet: its errors would dominate the credit",
        avoid=("ppo", "hae") if group > 1 else (),
    )


def _length(measurement: Measurement, numbers: Mapping[str, float]) -> Step:
    question = "Is length a hidden reward?"
    better, worse = measurement.lengths["tokens_better"], measurement.lengths["tokens_worse"]
    measured = "all rewards are equal"
    if better["count"] and worse["count"]:
        measured = (
            f"better answers have {better['median']:g} tokens, "
            f"worse ones {worse['median']:g} (medians)"
        )
    measured += f"; {numbers['truncated']:.0%} cut off"
    correlation = numbers.get("length_reward", 0.0)
    if numbers["truncated"] > 0.2:
        return Step(
            question,
            measured,
            "too many are cut off: raise `max_new_tokens`, or leave them out of the loss",
        )
    if abs(correlation) > 0.3:
        return Step(
            question,
            f"{measured}; correlation {correlation:+.2f} within groups",
            "length predicts the reward: losses.token_mean or constant, not sequence_mean, which "
            "gives tokens of short answers more weight",
        )
    return Step(question, measured, "no")
