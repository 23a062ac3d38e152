"""Figures of one group of answers: the prefix tree with its values, and heat maps of credit."""

import io
from collections.abc import Callable, Mapping, Sequence

import matplotlib.figure
import numpy as np
from matplotlib.colors import TwoSlopeNorm

from jaxcredit.utils.plain_text import literal_figures, one_line

# Color maps of matplotlib.
VALUES, CREDIT = "RdYlGn", "RdBu"
Text = Callable[[int], str]  # from a token's id to its text


class Picture(matplotlib.figure.Figure):
    """Figure that notebooks display, whatever matplotlib's backend is."""

    def _repr_png_(self) -> bytes:
        file = io.BytesIO()
        self.savefig(file, format="png", dpi=110)
        return file.getvalue()


@literal_figures()
def prefix_tree(
    answers: Sequence[Sequence[int]], reward: Sequence[float], text: Text, *, title: str = ""
) -> Picture:
    """Prefix tree of a group's answers.

    An edge shows the tokens that its answers share. Its color and its number are their mean reward.

    Args:
        answers: token ids of each answer.
        reward: reward of each answer.
        text: function from a token's id to its text.
        title: title of the figure.

    Raises:
        ValueError: there are more or fewer rewards than answers.
    """
    answers, outcomes = [tuple(answer) for answer in answers], np.asarray(reward, float)
    if len(answers) != len(outcomes):
        raise ValueError(
            f"{len(answers)} answers and {len(outcomes)} rewards: give one reward for each answer"
        )
    order = sorted(range(len(answers)), key=lambda i: answers[i])
    height = {i: rank for rank, i in enumerate(order)}
    deepest = max(map(len, answers), default=1)
    figure = Picture(
        figsize=(1.2 + 0.75 * deepest, 0.6 + 0.42 * len(answers)), layout="constrained"
    )
    axis = figure.add_subplot()
    color_map = matplotlib.colormaps[VALUES]
    low, high = outcomes.min(), outcomes.max()

    def shade(value):
        return color_map(0.5 if high == low else 0.08 + 0.84 * (value - low) / (high - low))

    def draw(members, depth, x, y):
        """Draw the edges below a node, whose answers `members` share their first `depth` tokens."""
        groups = {}
        for i in members:
            groups.setdefault(answers[i][depth : depth + 1], []).append(i)
        for first, child in sorted(groups.items()):
            if not first:  # answers that end at this node
                axis.text(
                    x + 0.12,
                    y,
                    f"{len(child)} x {outcomes[child].mean():.2g}",
                    va="center",
                    fontsize=7,
                    color="0.3",
                )
                continue
            end = depth + 1
            while (
                len({answers[i][end : end + 1] for i in child}) == 1
                and len(answers[child[0]]) > end
            ):
                end += 1
            level = float(np.mean([height[i] for i in child]))
            value = outcomes[child].mean()
            axis.plot(
                [x, x + 0.25, end],
                [y, level, level],
                color=shade(value),
                linewidth=1.2 + 0.5 * len(child),
                solid_joinstyle="round",
            )
            label = one_line("".join(text(t) for t in answers[child[0]][depth:end]))
            axis.text(x + 0.35, level - 0.12, label, fontsize=8, family="monospace", va="bottom")
            axis.text(
                end - 0.05,
                level + 0.1,
                f"{value:.2f}",
                fontsize=6,
                color="0.35",
                ha="right",
                va="top",
            )
            draw(child, end, end, level)

    axis.text(
        -0.1,
        float(np.mean(list(height.values()))),
        f"{outcomes.mean():.2f}",
        ha="right",
        va="center",
        fontsize=8,
    )
    draw(order, 0, 0.0, float(np.mean(list(height.values()))))
    axis.set_ylim(len(answers) - 0.4, -0.7)
    axis.set_xlim(-0.9, deepest + 0.9)
    axis.axis("off")
    axis.set_title(one_line(title), loc="left", fontsize=10)
    return figure


@literal_figures()
def credit_heatmaps(
    credit: Mapping[str, np.ndarray],
    answers: Sequence[Sequence[int]],
    reward: Sequence[float],
    text: Text,
    *,
    wide: int = 5,
) -> Picture:
    """Heat maps of token credit, one for each estimator.

    Positive credit is blue, negative credit is red. The colors of each map are relative to its
    largest magnitude.

    Args:
        credit: [answers, tokens] for each estimator's name; column t is the credit of an answer's
            t-th token.
        answers: token ids of each answer.
        reward: reward of each answer; answers are sorted by it.
        text: function from a token's id to its text.
        wide: number of maps in a row.
    """
    order = sorted(range(len(answers)), key=lambda i: (-reward[i], tuple(answers[i])))
    columns = max(map(len, answers), default=1)
    rows = -(-len(credit) // wide)
    figure = Picture(
        figsize=(0.36 * columns * wide + 1, rows * (0.28 * len(answers) + 0.6)),
        layout="constrained",
    )
    axes = np.atleast_1d(figure.subplots(rows, min(wide, len(credit)), sharey=True)).reshape(-1)
    for axis, (name, A) in zip(axes, credit.items(), strict=False):
        values = np.full((len(answers), columns), np.nan)
        for rank, i in enumerate(order):
            values[rank, : len(answers[i])] = np.asarray(A, float)[i, : len(answers[i])]
        most = np.nanmax(np.abs(values)) or 1.0
        axis.imshow(values / most, cmap=CREDIT, norm=TwoSlopeNorm(0, -1, 1), aspect="auto")
        for (rank, t), x in np.ndenumerate(values):
            if np.isfinite(x):
                dark = abs(x) > 0.6 * most
                word = one_line(text(answers[order[rank]][t]))
                axis.text(
                    t, rank, word, ha="center", va="center", fontsize=7, color="w" if dark else "k"
                )
        axis.set_title(one_line(name), fontsize=9)
        axis.set_xticks([])
        axis.set_yticks(range(len(answers)), [f"{reward[i]:g}" for i in order], fontsize=7)
        axis.tick_params(length=0)
        for side in axis.spines.values():
            side.set_visible(False)
    for axis in axes[len(credit) :]:
        axis.axis("off")
    return figure
