"""Sweeps, claims, learning curves and the HTML report, against numbers by hand and a parser."""

import shutil
import subprocess
from html.parser import HTMLParser

import jax.numpy as jnp
import matplotlib.image
import numpy as np
import pooled_evidence
import pytest
import sploo_bounds
from paths import ROOT

from jaxcredit import arena, credit
from jaxcredit.arena import claims, learn, sweeps
from jaxcredit.arena import html as report
from jaxcredit.arena.matrix import Cell
from jaxcredit.arena.metrics import Interval
from jaxcredit.arena.sweeps import Curve, Sweep

SWEEP = Sweep(
    arena.KeyBranch, "c_pre", (1, 0.8, 0.5), {"a<b": credit.grpo, "c": credit.rloo}, text="a knob"
)


def curve():
    noise = 1 + 0.01 * np.random.default_rng(0).normal(size=201)
    draws = {"broadcast": [1, 1, 1], "a<b": [2, 1, 0.5], "c": [np.inf, 0.1, np.nan]}
    return Curve(
        SWEEP,
        {
            name: {"asnr": np.array(x)[:, None] * (1 if name == "broadcast" else noise)}
            for name, x in draws.items()
        },
    )


class Page(HTMLParser):
    def __init__(self, text):
        super().__init__()
        self.open, self.seen, self.ids, self.text = [], set(), [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.seen.add(tag)
        for key, value in attrs:
            self.ids += [value] if key == "id" else []
            assert key not in ("src", "onclick") and not (
                key.endswith("href") and not value.startswith("#")
            ), (key, value)
        if tag != "meta":
            self.open.append(tag)

    def handle_startendtag(self, tag, attrs):
        pass

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)


def test_the_page_is_whole_and_needs_nothing_else():
    good, bad = Interval(2.0, 1.5, 2.5), Interval(0.5, 0.4, 0.6)
    cells = [
        Cell("KeyBranch", "exact", {"versus/asnr": Interval(np.inf, np.inf, np.inf), "sign": good}),
        Cell("KeyBranch", "a<b", {"versus/asnr": good, "sign": bad}),
        Cell("Twin", "a<b", {}, 'needs "<state>"'),
        Cell("Twin", "exact", {"versus/asnr": bad, "sign": Interval(np.nan, np.nan, np.nan)}),
    ]
    text = report.page(
        cells,
        [curve(), curve()],
        made="jaxcredit arena <&>",
        claims=[("x < y", "z")],
        header=("claim", "verdict"),
    )
    page = Page(text)
    assert (
        not page.open
        and {"svg", "table", "details", "figure"} <= page.seen
        and "script" not in page.seen
    )
    words = "".join(page.text)
    for part in (
        "∞",
        "2 1.5..2.5",
        "wins at 1",
        "loses at 0.5",
        "a<b",
        "x < y",
        "jaxcredit arena <&>",
        "no true gradient",
    ):
        assert part in words, part
    assert (
        text.count("46,147,60") == 2 and text.count("209,73,91") == 1
    )  # cells above 1 and below, in the one table of ratios


@pytest.mark.slow
def test_the_committed_page_renders_in_a_browser(tmp_path):
    browser = next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
    )
    if not browser:
        pytest.skip(
            "no chromium or google-chrome is here: notebooks/arena.html was NOT opened in a browser"
        )
    page = ROOT / "notebooks/arena.html"
    words = [
        browser,
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--window-size=1600,1200",
        "--enable-logging=stderr",
    ]
    words += [
        f"--user-data-dir={tmp_path}",
        f"--screenshot={tmp_path}/page.png",
        "--dump-dom",
        page.as_uri(),
    ]
    shown = subprocess.run(words, capture_output=True, text=True, timeout=300, check=True)
    assert "CONSOLE" not in shown.stderr  # where a browser says what is wrong with a page
    for tag in ("<tr", "<svg", "<details"):
        assert shown.stdout.count(tag) == page.read_text().count(tag) > 0, tag
    pixels = matplotlib.image.imread(tmp_path / "page.png")[..., :3]
    green = (pixels[..., 1] - pixels[..., 0] > 0.15) & (pixels[..., 1] - pixels[..., 2] > 0.1)
    assert green.mean() > 0.01  # cells that win are seen


def test_regions_are_where_the_interval_lies():
    assert sweeps.regions(curve(), "a<b") == {"wins": [1], "loses": [0.5], "even": [0.8]}
    assert sweeps.regions(curve(), "c") == {"wins": [1], "loses": [0.8], "even": [0.5]}
    ratio = curve().versus("a<b")[0]
    assert ratio.low < 2 < ratio.high and ratio.high - ratio.low < 0.2


def test_verdicts_are_words_for_intervals():
    values = (1, 0.8, 0.5)
    for sides, words in {
        (1, 1, 1): "holds",
        (-1, -1, -1): "reverses",
        (0, 0, 0): "not seen",
        (1, 0, 0): "holds where c = 1",
        (0, 0, -1): "reverses where c = 0.5",
        (1, 0, -1): "holds where c = 1, reverses where c = 0.5",
    }.items():
        assert claims.verdict_in_words(sides, values, "c") == words
    up, none, down = Interval(2, 1.5, 3), Interval(1, 0.5, 1.5), Interval(0.3, 0.1, 0.5)
    found = claims.Finding(
        claims.Claim("x", "a", "b"), "1", "F", (1, 2, 3), [up, none, down], [up, none, down], "c"
    )
    assert found.sides() == {
        "credit": [1, 0, -1],
        "learning": [1, 1, 1],
    }  # a difference is held against 0
    assert found.verdict() == "credit: holds where c = 1, reverses where c = 3; learning: holds"
    little = claims.Finding(found.claim, "1", "F", (1,), [up], [Interval(0.01, 0.005, 0.015)], "c")
    assert little.sides()["learning"] == [0]  # sure, and too little to speak of
    assert claims.markdown([found]).count("\n") == 3 and claims.table([found]).row_count == 1


def test_truncated_groups_have_a_share_of_the_variance_that_correlation_moves():
    found = claims.truncation()
    for e, rho in zip(found.credit, (-0.2, 0, 0.5), strict=True):
        assert abs(e.value - (1 + 3 * rho)) < 0.1
    assert found.sides() == {"credit": [-1, 0, 1]}


def test_what_was_learnt_in_numbers():
    objective = np.array([[[0.2, 0.6, 1.0, 1.0], [0.2, 0.2, 0.6, 0.2]]])
    learnt = learn.LearningCurves(objective, np.array([1.0]))
    np.testing.assert_allclose(learnt.share()[0, 0], [0, 0.5, 1, 1])
    np.testing.assert_allclose(learnt.area(), [[2.5 / 3, 0.5 / 3]])
    np.testing.assert_allclose(learnt.final(), [[1, 0]])
    np.testing.assert_array_equal(learnt.steps_to(0.9), [[2, np.inf]])
    e = learn.paired_difference(np.array([[1.0, 2, 3]]), np.zeros((1, 3)))[0]
    assert (
        e.value == 2
        and abs(e.high - 2 - 4.3027 / 3**0.5) < 1e-3
        and abs(e.low - 2 + 4.3027 / 3**0.5) < 1e-3
    )


def test_bounds_are_judged_by_their_worst_cell():
    def places(*ratios):
        return [
            sploo_bounds.GridCell(
                "F",
                f"k={i}",
                {"p0": Interval(*r), "safe": Interval(1, 1, 1), "l1": Interval(1, 1, 1)},
            )
            for i, r in enumerate(ratios)
        ]

    sure, open_, broken = (1.0, 0.98, 1.1), (0.95, 0.9, 1.0), (0.9, 0.88, 0.92)
    assert sploo_bounds.verdict(places(sure), "p0", 0.96) == "holds"
    assert sploo_bounds.verdict(places(sure, open_), "p0", 0.96) == "not broken; sure in 1 of 2"
    assert sploo_bounds.verdict(places(sure, broken), "p0", 0.96) == "broken in 1 of 2"
    assert (
        sploo_bounds.worst(places(sure, broken, open_), "p0").knobs == "k=1"
        and sploo_bounds.table(places(sure)).row_count == 2
    )
    assert len(sploo_bounds.BOUNDS) == 3 and len(list(sploo_bounds.trees(T=2))) == 6


@pytest.mark.slow
def test_a_sweep_and_a_learner_of_a_small_world():
    sweep = Sweep(
        arena.Strata,
        "offset",
        (0.0, 0.3),
        {"san": credit.san, "grpo": credit.grpo},
        number="asnr/act",
    )
    found = sweeps.measure(sweep, prompts=100, group=8, resamples=50)
    ratio = found.versus("san", "grpo")[1]
    assert found.draws["san"]["asnr"].shape == (2, 51) and ratio.low > 1.5
    experiment = claims.ClaimTest(
        "0",
        sweep,
        (claims.Claim("x", "san", "grpo", "asnr/act"),),
        steps=40,
        prompts=4,
        group=8,
        rate=0.2,
    )
    (finding,) = claims.measure(experiment, seeds=3, prompts=100)
    assert len(finding.learning) == 2 and all(e.low <= e.value <= e.high for e in finding.learning)
    tasks = arena.Strata(**{"offset": jnp.array([0.0, 0.3])})
    with pytest.raises(ValueError):  # a leading axis for every knob, or none
        learn.learn(tasks, credit.grpo, steps=2, seeds=3)


def test_pooled_is_held_against_the_better_rival():
    """By credit and by learning; a family without learners counts for credit only."""
    draws = {
        name: np.full(21, x) + np.linspace(-0.01, 0.01, 21)
        for name, x in {"grpo": 1.0, "tempo": 2.0, "good": 3.0, "bad": 0.5}.items()
    }
    seeds = np.linspace(0, 0.02, 8)
    area = {
        "grpo": 0.5 + seeds,
        "tempo": 0.4 + seeds,
        "good": 0.6 + seeds,
        "bad": 0.5 + seeds + 0.001 * (-1) ** np.arange(8),
    }
    f = pooled_evidence.CellResult("World", "k=1", draws, area)
    assert f.rival("snr") == "tempo" and f.rival("area") == "grpo"
    blind = f._replace(area={}, cell="k=2")
    assert pooled_evidence.verdict([f, blind], "good", "snr") == "beats 2, ties 0, loses 0"
    assert (
        pooled_evidence.verdict([f, blind], "bad", "snr")
        == "beats 0, ties 0, loses 2 (World k=1, World k=2)"
    )
    assert pooled_evidence.verdict([f, blind], "good", "area") == "beats 1, ties 0, loses 0"
    assert pooled_evidence.verdict([f, blind], "bad", "area") == "beats 0, ties 1, loses 0"


@pytest.mark.slow
def test_pooled_evidence_finds_a_key_that_prefixes_cannot(monkeypatch):
    """If all answers branch before the key, TEMPO finds nothing; pooled evidence finds the key."""
    monkeypatch.setattr(pooled_evidence, "LEARNERS", ("grpo", "tempo", "pooled"))
    monkeypatch.setattr(pooled_evidence, "GROUPS", (16, 256))
    key = arena.KeyBranch(**{"c_pre": np.float32(0.5), "q": np.float32(0.1)})
    here = pooled_evidence.FamilyCells("KeyBranch", ["c_pre=0.5"], pooled_evidence.stack([key]))
    (f,) = pooled_evidence.measure(here, seeds=6, steps=40, prompts=64, group=8, seed=0)
    assert f.versus("pooled", "snr").low > 5 and f.ratio("p0", "rloo").high < 1.2
    assert f.versus("pooled", "area").low > 0
    first, second = pooled_evidence.tables([f])
    assert first.row_count == second.row_count == 1
