"""Report of the arena as one self-contained HTML file: the matrix, and a plot of each sweep."""

import html
import io
from collections.abc import Sequence

import matplotlib
import numpy as np
from matplotlib.colors import ListedColormap
from matplotlib.figure import Figure

from jaxcredit.arena import sweeps
from jaxcredit.arena.matrix import Cell
from jaxcredit.arena.sweeps import Curve
from jaxcredit.utils.colors import COLORS

STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; color: #222; max-width: 1500px; margin: 2rem auto;
  padding: 0 1rem }
h1, h2 { font-weight: 600 } p, li { max-width: 62rem } a { color: #2456a6 }
.wide { overflow-x: auto }
table { border-collapse: collapse; font-size: 12px; font-variant-numeric: tabular-nums }
th, td { border: 1px solid #e4e4e4; padding: 2px 6px; text-align: left; white-space: nowrap }
thead th { background: #f6f6f6 }
td.claim { white-space: normal; max-width: 26rem }
td.none { color: #aaa; max-width: 6rem; overflow: hidden; text-overflow: ellipsis }
tr > :first-child { position: sticky; left: 0; background: #fff } td small { font-size: 10px }
.sweeps { display: flex; flex-wrap: wrap; gap: 1.5rem }
figure { margin: 0; width: 460px } figcaption { font-size: 13px } small { color: #777 }
svg { max-width: 100%; height: auto }
"""
INTRODUCTION = """
<p>In these worlds the value of every token is known exactly. An estimator gives credit to the
tokens of the same sampled answers. The number shown is the <b>signal-to-noise ratio of the policy
gradient of this credit</b> over that of broadcast credit (the outcome less the group's mean). A
mean that is not parallel to the true gradient counts as noise. 2 means: as accurate with half as
many groups.</p>
<ul><li>All intervals are paired 95 % bootstrap intervals over groups: both estimators got the
same groups. Green is above 1, red below. About one interval in twenty misses the true value by
chance.</li>
<li>Credit may be wrong token by token and right as an expected gradient, as broadcast credit is.
So errors of credit alone do not rank estimators.</li>
<li>A ratio is measured at the family's initial policy. It tells how accurate the next step is,
not where training ends: for that see the claims.</li>
<li>Values are exact unless a family says otherwise (the critic of PlanLag lags, values of
ReplayNoise are means of four replays). Critics, continuations and potentials are thus shown at
their best, and are charged for the tokens they read. An estimator whose signal no family provides
has a reason instead of numbers.</li>
<li><i>exact</i> is the true advantage; <i>shuffled</i> the same numbers at other tokens of the
answer; <i>flipped</i> its negative.</li>
</ul>
"""
NUMBERS = {
    "versus/asnr": "signal-to-noise ratio over that of broadcast credit",
    "versus/asnr_per_1k": "the same for each token sampled or read, by judges and critics too",
    "cos_mean": "cosine of the mean gradient and the true one: 1 is no bias in direction",
    "sign": "share of tokens with A != 0 whose credit has the right sign",
    "top1": "share of answers whose largest credit is at a token with A != 0",
    "leak": "share of the credit on tokens with A = 0",
}
COARSE = (0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50)
FINE = (0.3, 0.5, 0.7, 0.8, 0.9, 0.95, 1, 1.05, 1.1, 1.2, 1.4, 1.7, 2, 3)
WINS = ListedColormap(["#d1495b", "#dddddd", "#2e933c"])


def page(
    cells: Sequence[Cell],
    curves: Sequence[Curve],
    *,
    made: str,
    claims: Sequence[tuple] = (),
    header: Sequence[str] = (),
) -> str:
    """The report as HTML.

    Args:
        cells: cells of `matrix.run`.
        curves: results of `sweeps.run`.
        made: the command that made the report.
        claims: rows of a table of claims, see `claims.rows`.
        header: headings of that table.
    """
    parts = [
        "<h1>The credit arena</h1>",
        f"<p><small>Made by <code>{html.escape(made)}</code></small></p>",
        INTRODUCTION,
    ]
    if cells:
        parts.append(
            "<h2>All estimators in all families</h2>"
            "<p>Hover over a cell for its other numbers or the whole reason.</p>"
        )
        for i, (number, text) in enumerate(NUMBERS.items()):
            inner = f'<div class="wide">{matrix_table(cells, number)}</div>'
            parts.append(
                inner
                if i == 0
                else f"<details><summary>{html.escape(text)}</summary>{inner}</details>"
            )
    if curves:
        parts.append("<h2>Knobs that change the order of estimators</h2><div class='sweeps'>")
        parts += [figure(curve) for curve in curves]
        parts.append("</div>")
    if claims:
        parts.append(
            "<h2>Claims</h2>"
            + _table(
                header,
                [[f'<td class="claim">{html.escape(x)}</td>' for x in row] for row in claims],
            )
        )
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f"<title>The credit arena</title><style>{STYLE}</style></head><body>\n"
        + ("\n".join(parts) + "\n</body></html>\n")
    )


def matrix_table(cells: Sequence[Cell], number: str) -> str:
    """One number of all cells as an HTML table: estimators are rows, families are columns."""
    families = list(dict.fromkeys(c.family for c in cells))
    by_key = {(c.family, c.estimator): c for c in cells}
    rows = [
        [
            f"<th>{html.escape(name)}</th>",
            *(_cell(by_key.get((family, name)), number) for family in families),
        ]
        for name in dict.fromkeys(c.estimator for c in cells)
    ]
    return _table(["", *families], rows)


def figure(curve: Curve) -> str:
    """A sweep as an HTML figure: plot, description of the knob, and wins of each estimator."""
    summaries = []
    for name in curve.sweep.estimators:
        regions = sweeps.regions(curve, name)
        words = [
            f"{word} at {', '.join(f'{v:g}' for v in regions[word])}"
            for word in ("wins", "loses")
            if regions[word]
        ]
        summaries.append(f"<b>{html.escape(name)}</b> {' and '.join(words) or 'ties everywhere'}")
    text = (
        f"{html.escape(curve.sweep.title)}, {html.escape(curve.sweep.text)}. "
        + "; ".join(summaries)
        + "."
    )
    return f"<figure>{draw(curve)}<figcaption>{text}</figcaption></figure>"


def draw(curve: Curve) -> str:
    """Plot of a sweep as SVG: ratios with intervals, a strip of wins (green) and losses (red)."""
    sweep, x = curve.sweep, np.arange(len(curve.sweep.values))
    picture = Figure(figsize=(4.6, 3.6 + 0.16 * len(sweep.estimators)), layout="constrained")
    top, strip = picture.subplots(
        2, 1, sharex=True, height_ratios=[3, 0.22 * len(sweep.estimators)]
    )
    sides = []
    for name, color in zip(sweep.estimators, COLORS, strict=False):
        estimates = np.array(curve.versus(name), float)
        shown = np.where(np.isfinite(estimates), np.clip(estimates, 0.02, 100), np.nan)
        top.fill_between(x, shown[:, 1], shown[:, 2], color=color, alpha=0.2, linewidth=0)
        top.plot(x, shown[:, 0], color=color, marker="o", markersize=3, linewidth=1.5, label=name)
        sides.append([sweeps.side(e) for e in curve.versus(name)])
    top.axhline(1, color="0.6", linewidth=0.8, linestyle=":")
    top.set_yscale("log")
    low, high = top.get_ylim()
    ticks = [v for v in COARSE if low <= v <= high]
    ticks = ticks if len(ticks) > 2 else [v for v in FINE if low <= v <= high]
    top.set_yticks(ticks, [f"{v:g}" for v in ticks])
    top.minorticks_off()
    top.set_title(sweep.title, fontsize=10, loc="left")
    top.set_ylabel(f"{sweep.number} over {sweep.base}", fontsize=8)
    top.legend(frameon=False, fontsize=7)
    strip.imshow(sides, cmap=WINS, vmin=-1, vmax=1, aspect="auto", interpolation="none")
    strip.set_yticks(range(len(sides)), list(sweep.estimators), fontsize=7)
    strip.set_xticks(x, [f"{v:g}" for v in sweep.values])
    strip.set_xlabel(sweep.knob, fontsize=8)
    for axis in (top, strip):
        axis.tick_params(labelsize=7, length=2)
        axis.spines[["top", "right"]].set_visible(False)
    return svg(picture, salt=sweep.title + sweep.number)


def svg(picture: Figure, *, salt: str) -> str:
    """A matplotlib figure as an SVG element, with text as text.

    Args:
        picture: the figure.
        salt: part of the element ids, which must differ between the figures of a page.
    """
    out = io.StringIO()
    with matplotlib.rc_context({"svg.fonttype": "none", "svg.hashsalt": salt}):
        picture.savefig(out, format="svg", metadata={"Date": None})
    return out.getvalue()[out.getvalue().index("<svg") :]


def _table(header, rows):
    head = "".join(f"<th>{html.escape(h)}</th>" for h in header)
    return (
        f"<table><thead><tr>{head}</tr></thead><tbody>"
        + "".join(f"<tr>{''.join(row)}</tr>" for row in rows)
        + "</tbody></table>"
    )


def _cell(cell, number):
    if cell is None:
        return "<td></td>"
    if cell.reason:
        reason = html.escape(cell.reason, quote=True)
        return f'<td class="none" title="{reason}">{reason}</td>'
    e = cell.numbers.get(number)
    if e is None or np.isnan(e.value):
        return '<td class="none">no true gradient</td>'
    rest = [
        f"{name} {cell.numbers[name].value:.3g}"
        for name in (*NUMBERS, "tokens_sampled", "tokens_read")
        if name in cell.numbers
    ]
    title = html.escape("; ".join(rest), quote=True)
    return f'<td{_shade(e, number)} title="{title}">{_with_interval(e)}</td>'


def _with_interval(e):
    return (
        "∞"
        if e.value == np.inf
        else "−∞"
        if e.value == -np.inf
        else f"{e.value:.3g} <small>{e.low:.2g}..{e.high:.2g}</small>"
    )


def _shade(e, number):
    side = sweeps.side(e) if number.startswith("versus") else 0
    if not side:
        return ""
    strength = min(abs(np.log2(max(e.value, 1e-3))) / 4, 1) * 0.5 + 0.12
    color = "46,147,60" if side > 0 else "209,73,91"
    return f' style="background: rgba({color},{strength:.2f})"'
