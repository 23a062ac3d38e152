"""The table of metrics: unit, meaning and direction of every number in metrics.jsonl.

Console, plots, TensorBoard, reports and docs/metrics.md take names, labels and descriptions from
this table. A new metric needs a row here.
"""

from typing import Literal, NamedTuple


class Metric(NamedTuple):
    """Row of the table.

    Attributes:
        unit: unit of the values.
        meaning: one sentence without its final period.
        better: "up" if larger values are better, "down" if smaller ones are, "" if neither.
        label: short name for the console and for legends; "": the last part of the metric's name.
        console: whether the console and the final table show the metric.
        panel: title of the panel of curves.png that draws the metric; "": not drawn.
    """

    unit: str
    meaning: str
    better: Literal["up", "down", ""] = ""
    label: str = ""
    console: bool = False
    panel: str = ""


ACCURACY = "eval/greedy_accuracy"
HELD_OUT_REWARD = "eval/greedy_reward"
ANNOTATOR = "ANNOTATOR/"  # stands for the name that an annotator has in Experiment.signals
_FRACTIONS = "fractions"
_REWARD = "reward"

# Name: row, in the order in which console and plots show the metrics.
METRICS = {
    # Evaluation.
    ACCURACY: Metric(
        "fraction",
        "Fraction of the scored held-out problems whose greedy answer has a reward of at least 1",
        "up",
        "greedy accuracy",
        console=True,
        panel="held-out accuracy (greedy)",
    ),
    HELD_OUT_REWARD: Metric(
        "reward",
        "Mean reward of greedy answers to the held-out problems; "
        "a graded reward can rise long before the accuracy",
        "up",
        "greedy reward",
        console=True,
        panel=_REWARD,
    ),
    "eval/unscored": Metric(
        "answers",
        "Greedy answers that the reward left unscored (None); no mean includes them",
        "down",
    ),
    "warmup/steps": Metric(
        "steps", "Optimizer steps of the supervised warm-up; step 0 of a run with a warm-up only"
    ),
    # Sampled rollouts.
    "reward": Metric(
        "reward", "Mean reward of the sampled answers", "up", console=True, panel=_REWARD
    ),
    "entropy": Metric(
        "nats per token",
        "Mean entropy of the policy at the trained tokens",
        console=True,
        panel="entropy (nats per token)",
    ),
    "length": Metric(
        "tokens per answer",
        "Mean number of sampled tokens of an answer",
        console=True,
        panel="answer length (tokens)",
    ),
    "kl": Metric(
        "nats per token",
        "KL divergence from the reference policy (k3 estimator); with a reference policy only",
        console=True,
        panel="KL to the reference",
    ),
    "reward_range": Metric("reward", "Largest minus smallest reward of all answers of the step"),
    "unscored": Metric(
        "answers",
        "Sampled answers that the reward left unscored (None); no mean includes them",
        "down",
    ),
    "groups_unscored": Metric("groups", "Groups without any scored answer", "down"),
    "length_better": Metric(
        "tokens per answer",
        "Mean length of the answers with a reward above the mean of their group",
    ),
    "length_worse": Metric(
        "tokens per answer",
        "Mean length of the answers with a reward below the mean of their group",
    ),
    # Optimizer steps.
    "clip_fraction": Metric(
        "fraction",
        "Fraction of the trained tokens with an advantage whose loss has no gradient (clipped)",
        console=True,
        panel=_FRACTIONS,
    ),
    "signal_group_fraction": Metric(
        "fraction",
        "Fraction of the groups whose rewards differ, so that a group-relative advantage is not 0",
        "up",
        panel=_FRACTIONS,
    ),
    "truncated": Metric(
        "fraction",
        "Fraction of the answers that reached the token limit without a stop token",
        "down",
        panel=_FRACTIONS,
    ),
    "prefix_collisions": Metric(
        "fraction",
        "Fraction of the sampled tokens whose prefix, the token included, "
        "is also that of another row of the group",
        panel=_FRACTIONS,
    ),
    "modal_share": Metric(
        "fraction",
        "Largest fraction of a group that agrees on the first half of an answer of mean length, "
        "averaged over groups",
        panel=_FRACTIONS,
    ),
    "singleton_branch_fraction": Metric(
        "fraction",
        "Of the positions at which an answer leaves others of its group, "
        "the fraction after which it shares its prefix with no other",
    ),
    "active_token_fraction": Metric(
        "fraction", "Fraction of the sampled tokens whose weight in the loss is above 0"
    ),
    "anchor_peers": Metric(
        "segments",
        "Mean number of segments of the group that share a segment's state, itself included; "
        "with the signal `state` only",
    ),
    "strata_ratio": Metric(
        "ratio",
        "Variance of the return between strata over the variance within them; "
        "with the signal `stratum` only",
    ),
    "loss": Metric("loss", "Loss, averaged over the optimizer steps"),
    "credit_rms": Metric(
        "advantage", "Root mean square of the estimator's advantages over the sampled tokens"
    ),
    "advantage_rms": Metric(
        "advantage", "Root mean square of the advantages over the trained tokens"
    ),
    "sampler_logp_diff": Metric(
        "nats",
        "Mean absolute difference between log-probabilities of the sampler and of the trainer",
        "down",
        "mean difference",
        panel="log-probs, sampler to trainer",
    ),
    "sampler_logp_diff_max": Metric(
        "nats",
        "Largest absolute difference between log-probabilities of the sampler and of the trainer",
        "down",
    ),
    "ratio_max": Metric("ratio", "Largest importance ratio of a trained token"),
    "grad_norm": Metric(
        "norm",
        "Global norm of the gradient, averaged over the optimizer steps",
        panel="gradient norm",
    ),
    "update_norm": Metric(
        "norm",
        "Global norm of the change of the parameters, averaged over the optimizer steps",
    ),
    "skipped": Metric(
        "optimizer steps",
        "Optimizer steps that were skipped because their gradient or update was not finite",
        "down",
    ),
    ANNOTATOR + "loss": Metric(
        "loss", "Loss of a learned annotator before its first optimizer step of the rollout"
    ),
    ANNOTATOR + "explained_variance": Metric(
        "fraction",
        "1 - Var(target - value) / Var(target) of a value model over the sampled tokens",
        "up",
    ),
    # Costs.
    "tokens": Metric("tokens", "Tokens sampled in the step, those of dropped groups included"),
    "sampling_rounds": Metric(
        "rounds", "Rounds of dynamic sampling in the step; with dynamic sampling only", "down"
    ),
    "groups_dropped": Metric(
        "groups",
        "Sampled groups that were not used for training; with dynamic sampling only",
        "down",
    ),
    "groups_without_signal": Metric(
        "groups",
        "Groups of equal rewards that fill the batch after the last round; "
        "with dynamic sampling only",
        "down",
    ),
    "flops": Metric(
        "FLOP",
        "Floating-point operations that the model needs for the step, sampling included, "
        "recomputation and padding excluded",
    ),
    # Wall-clock time. These depend on the machine and are not reproducible.
    "time/tokens_per_s": Metric(
        "tokens/s",
        "Sampled tokens per second of the whole step",
        "up",
        "tokens per s",
        console=True,
        panel="tokens per second",
    ),
    "time/step_s": Metric("s", "Time since the previous step was logged", "down"),
    "time/work_s": Metric(
        "s",
        "Time of sampling, scoring and updating; evaluation, saving and compilation are excluded",
        "down",
    ),
    "time/update_s": Metric("s", "Time spent waiting for the update of the previous step", "down"),
    "time/sample_s": Metric("s", "Time spent waiting for sampled answers after the update", "down"),
    "time/reward_s": Metric("s", "Time spent decoding and scoring the answers", "down"),
    "time/total_s": Metric("s", "Working time since the run began, downtime excluded"),
    "time/began": Metric("s", "Unix time at which the run began"),
    "time/good_s": Metric("s", "Sum of time/work_s over the steps that count"),
    "time/goodput": Metric(
        "fraction",
        "time/good_s over the time since the run began; the rest is evaluation, saving, "
        "compilation, repeated steps and downtime",
        "up",
    ),
    "time/mfu": Metric(
        "fraction",
        "Model FLOPs utilization: FLOPs of the step per time/work_s over the peak of the devices; "
        "for devices of known peak only",
        "up",
    ),
}

CONSOLE = tuple(name for name, metric in METRICS.items() if metric.console)


def lookup(name: str) -> Metric | None:
    """Row of a metric; None for a metric without a row, such as one of a user's own annotator.

    >>> lookup("critic/loss") is METRICS["ANNOTATOR/loss"]
    True
    """
    return METRICS.get(name) or METRICS.get(ANNOTATOR + name.rpartition("/")[2])


def label(name: str) -> str:
    """Short name of a metric for people.

    >>> label("eval/greedy_accuracy"), label("grad_norm")
    ('greedy accuracy', 'grad norm')
    """
    metric = lookup(name)
    return (metric and metric.label) or name.rpartition("/")[2].replace("_", " ")


def description(name: str) -> str:
    """Meaning of a metric with its unit, as one sentence; "" for a metric without a row."""
    metric = lookup(name)
    return f"{metric.meaning} ({metric.unit})." if metric else ""


def panels() -> dict[str, list[str]]:
    """Names of the drawn metrics by the title of their panel, in the order of the table."""
    titles: dict[str, list[str]] = {}
    for name, metric in METRICS.items():
        if metric.panel:
            titles.setdefault(metric.panel, []).append(name)
    return titles


def to_markdown() -> str:
    """Content of docs/metrics.md."""
    head = [
        "# Metrics",
        "",
        "A run appends one JSON object per training step to `metrics.jsonl`, with these keys.",
        "A number that is not finite is written as `null`. Keys that begin with `time/` depend on",
        "the machine; all others are the same in a run that was interrupted and resumed.",
        "`ANNOTATOR` stands for the name of an annotator in `Experiment.signals`, such as critic.",
        "",
        "`jaxcredit/train/runs/metric_table.py` is the source of this page, and",
        "`python tests/train/test_metric_table.py` rewrites it.",
        "",
        "| metric | unit | better | meaning |",
        "|---|---|---|---|",
    ]
    rows = [f"| `{name}` | {m.unit} | {m.better} | {m.meaning} |" for name, m in METRICS.items()]
    return "\n".join([*head, *rows]) + "\n"
