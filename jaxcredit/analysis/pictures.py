"""Credit to look at: a group's answers as a tree of prefixes with their values, and the same tokens coloured by several estimators."""

import io
from collections.abc import Callable, Mapping, Sequence

import matplotlib.figure
import numpy as np
from matplotlib.colors import TwoSlopeNorm

from jaxcredit.utils.plain_text import literal_figures, one_line

VALUES, CREDIT = "RdYlGn", "RdBu"
Text = Callable[[int], str]  # how a token is written


class Picture(matplotlib.figure.Figure):
    """A figure that notebooks show, with whatever backend."""

    def _repr_png_(self) -> bytes:
        file = io.BytesIO()
        self.savefig(file, format="png", dpi=110)
        return file.getvalue()


@literal_figures()
def prefix_tree(
    answers: Sequence[Sequence[int]], reward: Sequence[float], text: Text, *, title: str = ""
) -> Picture:
    """The answers of one group as a tree: an edge shows the tokens that its answers share, its colour and number their mean reward."""
    answers, earned = [tuple(a) for a in answers], np.asarray(reward, float)
    if len(answers) != len(earned):
        raise ValueError(
            f"{len(answers)} answers and {len(earned)} rewards: give one reward an answer"
        )
    order = sorted(range(len(answers)), key=lambda i: answers[i])
    height = {i: place for place, i in enumerate(order)}
    deepest = max(map(len, answers), default=1)
    figure = Picture(
        figsize=(1.2 + 0.75 * deepest, 0.6 + 0.42 * len(answers)), layout="constrained"
    )
    axis = figure.add_subplot()
    colour = matplotlib.colormaps[VALUES]
    low, high = earned.min(), earned.max()

    def shade(value):
        return colour(0.5 if high == low else 0.08 + 0.84 * (value - low) / (high - low))

    def grow(members, depth, x, y):
        groups = {}
        for i in members:
            groups.setdefault(answers[i][depth : depth + 1], []).append(i)
        for first, inside in sorted(groups.items()):
            if not first:  # these answers end here
                axis.text(
                    x + 0.12,
                    y,
                    f"{len(inside)} x {earned[inside].mean():.2g}",
                    va="center",
                    fontsize=7,
                    color="0.3",
                )
                continue
            end = depth + 1
            while (
                len({answers[i][end : end + 1] for i in inside}) == 1
                and len(answers[inside[0]]) > end
            ):
                end += 1
            down = float(np.mean([height[i] for i in inside]))
            value = earned[inside].mean()
            axis.plot(
                [x, x + 0.25, end],
                [y, down, down],
                color=shade(value),
                linewidth=1.2 + 0.5 * len(inside),
                solid_joinstyle="round",
            )
            written = one_line("".join(text(t) for t in answers[inside[0]][depth:end]))
            axis.text(x + 0.35, down - 0.12, written, fontsize=8, family="monospace", va="bottom")
            axis.text(
                end - 0.05,
                down + 0.1,
                f"{value:.2f}",
                fontsize=6,
                color="0.35",
                ha="right",
                va="top",
            )
            grow(inside, end, end, down)

    axis.text(
        -0.1,
        float(np.mean(list(height.values()))),
        f"{earned.mean():.2f}",
        ha="right",
        va="center",
        fontsize=8,
    )
    grow(order, 0, 0.0, float(np.mean(list(height.values()))))
    axis.set_ylim(len(answers) - 0.4, -0.7)
    axis.set_xlim(-0.9, deepest + 0.9)
    axis.axis("off")
    axis.set_title(one_line(title), loc="left", fontsize=10)
    return figure


@literal_figures()
def coloured(
    credit: Mapping[str, np.ndarray],
    answers: Sequence[Sequence[int]],
    reward: Sequence[float],
    text: Text,
    *,
    wide: int = 5,
) -> Picture:
    """The same tokens once for each estimator: blue where credit is above 0, red below, each in units of its own largest number.

    `credit[name]` is [answers, columns], column t being the credit of an answer's t-th token.
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
        shown = np.full((len(answers), columns), np.nan)
        for place, i in enumerate(order):
            shown[place, : len(answers[i])] = np.asarray(A, float)[i, : len(answers[i])]
        most = np.nanmax(np.abs(shown)) or 1.0
        axis.imshow(shown / most, cmap=CREDIT, norm=TwoSlopeNorm(0, -1, 1), aspect="auto")
        for (place, t), x in np.ndenumerate(shown):
            if np.isfinite(x):
                dark = abs(x) > 0.6 * most
                word = one_line(text(answers[order[place]][t]))
                axis.text(
                    t, place, word, ha="center", va="center", fontsize=7, color="w" if dark else "k"
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
