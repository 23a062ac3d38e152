"""RE-Searcher (arXiv 2509.26048): each search states its goal, and says afterwards whether it was reached. The weights are our design."""

from collections.abc import Sequence


def re_searcher(
    outcome: float,
    reflections: Sequence[bool],
    verdicts: Sequence[bool],
    *,
    formed: bool = True,
    reflection_weight: float = 0.2,
    format_weight: float = 0.1,
) -> float:
    """outcome + w_r mean 1[the policy's flag is the judge's] + w_f 1[well formed]; a trajectory without a search reflects on nothing: 0."""
    agree = [r == v for r, v in zip(reflections, verdicts, strict=True)]
    return (
        outcome
        + reflection_weight * (sum(agree) / len(agree) if agree else 0.0)
        + format_weight * formed
    )


def re_searcher_turns(
    reflections: Sequence[bool], verdicts: Sequence[bool], outcome: float, *, weight: float = 0.2
) -> list[float]:
    """The same by turn: a search earns weight / n where its reflection is right, the answer the outcome."""
    each = weight / max(len(reflections), 1)
    return [each * (r == v) for r, v in zip(reflections, verdicts, strict=True)] + [outcome]
