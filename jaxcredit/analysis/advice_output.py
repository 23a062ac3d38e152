"""Output of `jaxcredit advise`: a dict for JSON, or a table for the terminal."""

from collections.abc import Mapping
from typing import Any

from jaxcredit.analysis.advise import Step, estimators
from jaxcredit.analysis.measurement import Measurement
from jaxcredit.tasks.statistics import Estimate


def as_dict(
    measurement: Measurement, steps: list[Step], source: Mapping[str, Any]
) -> dict[str, Any]:
    """Measurement, answers and recommendations as nested dicts and lists, for JSON.

    Args:
        measurement: statistics of the rollouts.
        steps: answers of the decision tree.
        source: entries that describe where the rollouts come from.
    """
    numbers = {
        name: number._asdict() if isinstance(number, Estimate) else number
        for name, number in measurement.numbers.items()
    }
    return {
        **source,
        "size": measurement.size,
        "signals": measurement.signals,
        "numbers": numbers,
        "modal_share": measurement.modal,
        "lengths": measurement.lengths,
        "steps": [step._asdict() for step in steps],
        "recommend": [{"estimator": name, "why": reason} for name, reason in estimators(steps)],
    }


def show(measurement: Measurement, steps: list[Step], title: str, console) -> None:
    """Print the questions as a table, then the recommended estimators.

    Args:
        measurement: statistics of the rollouts.
        steps: answers of the decision tree.
        title: name of the rollouts, for the table's title.
        console: a `rich.console.Console`.
    """
    from rich.text import Text

    from jaxcredit.utils.tables import Column, Sheet

    size = measurement.size
    counts = f"{size['prompts']} prompts x {size['group']} answers, {size['tokens']:,} tokens"
    columns = [
        Column(name, wraps=True, least=14)
        for name in ("question", "measured", "verdict", "estimators")
    ]
    table = Sheet(*columns, title=f"{title}: {counts}", lines=True)
    for step in steps:
        names = [*step.take, *(f"not {name}" for name in step.avoid)]
        table.add_row(step.question, step.measured, step.verdict, Text("\n".join(names)))
    console.print(table)
    if measurement.modal:
        shares = "  ".join(f"{depth}: {share:.0%}" for depth, share in measurement.modal.items())
        console.print(
            f"share of a group on its modal prefix, by its tokens: {shares}", highlight=False
        )
    names = [name for name, _ in estimators(steps)]
    console.print(
        f"try: {', '.join(names) or 'rloo'}; compare with rloo or grpo at the same number of "
        "sampled tokens",
        highlight=False,
    )
