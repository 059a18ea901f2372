"""The plots: they show the figures, no label covers another, nothing is left behind."""

import itertools
import sys

import matplotlib as mpl
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.container import ErrorbarContainer
from matplotlib.text import Text

from jaxprune.measure.figure import Figure
from jaxprune.report import Layer, Report, Trial, plots
from tests.report import fakes

SCALE_ROUNDING = 0.5  # of a pixel


def few() -> Report:
    trials = [Trial("dense", 0.0, 0, 0.9), Trial("gmp", 0.9, 0, 0.8)]
    cost = {"dense": Figure(1.0, "s", "measured", "clock"), "gmp": Figure(0.5, "s", "measured", "clock")}
    layers = [Layer(f"layers_{k}/kernel", 100, k) for k in range(1, 90)]
    return Report("A few", "accuracy", trials, layers, {"latency": cost})


REPORTS = {"realistic": fakes.report, "hostile": fakes.hostile, "few": few}


@pytest.fixture(scope="module", params=REPORTS)
def drawn(request: pytest.FixtureRequest) -> dict:
    figures = plots.drawings(REPORTS[request.param]())
    for figure in figures.values():
        FigureCanvasAgg(figure).draw()
    return figures


def test_no_text_covers_another_or_leaves_the_picture(drawn: dict) -> None:
    assert set(drawn) == {"quality", "layers", "costs"}
    for name, figure in drawn.items():
        texts = [t for t in figure.findobj(Text) if t.get_visible() and t.get_text().strip()]
        # The text of ticks outside the limits of an axis is there, but is not drawn.
        axis = figure.axes[0]
        ticks = {*axis.get_xticklabels(), *axis.get_yticklabels()}
        drawn_ticks = {
            label
            for side, (low, high) in ((axis.xaxis, axis.get_xlim()), (axis.yaxis, axis.get_ylim()))
            for place, label in zip(side.get_ticklocs(), side.get_ticklabels(), strict=True)
            if min(low, high) <= place <= max(low, high)
        }
        boxes = [(t.get_text(), t.get_window_extent()) for t in texts if t not in ticks or t in drawn_ticks]
        width, height = figure.bbox.width, figure.bbox.height
        for text, box in boxes:
            assert box.x0 >= -SCALE_ROUNDING and box.x1 <= width + SCALE_ROUNDING, (name, text)
            assert box.y0 >= -SCALE_ROUNDING and box.y1 <= height + SCALE_ROUNDING, (name, text)
        for (one, a), (two, b) in itertools.combinations(boxes, 2):
            across = min(a.x1, b.x1) - max(a.x0, b.x0)
            down = min(a.y1, b.y1) - max(a.y0, b.y0)
            assert across <= SCALE_ROUNDING or down <= 2 * SCALE_ROUNDING, (name, one, two)


def test_quality_shows_means_and_bars() -> None:
    report = fakes.report()
    axes = plots.drawings(report)["quality"].axes[0]
    containers = [c for c in axes.containers if isinstance(c, ErrorbarContainer)]
    assert [c.get_label() for c in containers] == ["random", "gmp", "rigl", "granet"]
    for container in containers:
        rows = [row for row in report.rows() if row["method"] == container.get_label()]
        line, _, (bars,) = container.lines
        np.testing.assert_allclose(np.asarray(line.get_ydata(), float), [row["mean"] for row in rows])
        heights = [segment[1][1] - segment[0][1] for segment in bars.get_segments()]
        np.testing.assert_allclose(heights, [2 * row["spread"] for row in rows])
    dense = report.rows()[0]
    assert [line.get_ydata()[0] for line in axes.lines if line.get_label() == "dense"] == [dense["mean"]]
    band = axes.patches[0]
    assert band.get_y() == pytest.approx(dense["mean"] - dense["spread"])
    assert band.get_height() == pytest.approx(2 * dense["spread"])


def test_layers_show_the_share_that_is_gone() -> None:
    report = fakes.report()
    axes = plots.drawings(report)["layers"].axes[0]
    widths = [bar.get_width() for bar in axes.containers[1]]
    np.testing.assert_allclose(widths, [100 * layer.sparsity for layer in report.layers])


def test_costs_show_ratios_and_how_they_are_known() -> None:
    axes = plots.drawings(fakes.report())["costs"].axes[0]
    bars = [bar for container in axes.containers for bar in container]
    expected = [3.21 / 3.19, 1.42 / 3.19, 1.0, 121300 / 309440, 41020 / 309802, 121700 / 309802]
    np.testing.assert_allclose([bar.get_width() for bar in bars[:6]], expected)
    assert [bool(bar.get_hatch()) for bar in bars] == [False] * 6 + [True] * 2 + [False] * 2
    assert [bar.get_fill() for bar in bars] == [True] * 8 + [False] * 2


def test_only_what_there_are_figures_for_is_drawn() -> None:
    assert plots.drawings(Report("t", "q")) == {}
    assert set(plots.drawings(Report("t", "q", [Trial("gmp", 0.5, 0, float("nan"))]))) == set()
    assert set(plots.drawings(Report("t", "q", layers=[Layer("a", 2, 1)]))) == {"layers"}


def test_matplotlib_is_left_as_it_was() -> None:
    before = dict(mpl.rcParams)
    loaded = "matplotlib.pyplot" in sys.modules
    fakes.report().html()
    assert dict(mpl.rcParams) == before
    assert ("matplotlib.pyplot" in sys.modules) == loaded


def test_without_matplotlib_the_extra_is_named(tmp_path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match=r"jaxprune\[report\]"):
        fakes.report().save(tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]
