"""What a report prints."""

import dataclasses
import io

import pytest
from rich.console import Console

from jaxprune.report import Report, Trial
from tests.report import fakes


def printed(report: Report, width: int = 100) -> str:
    console = Console(width=width, record=True, force_terminal=False, file=io.StringIO())
    with console.file:
        report.print(console)
        return console.export_text()


def test_every_mean_and_every_cost_is_there() -> None:
    report = fakes.report()
    text = printed(report, 200)
    for row in report.rows():
        separator = " ± " if row["method"] == "dense" else " ±"
        assert f"{row['mean']:.4f}{separator}{row['spread']:.4f}" in text
    for figures in report.costs.values():
        for figure in figures.values():
            assert str(figure) in text
    for layer in report.layers:
        assert layer.path in text
    for sentence in report.not_improved():
        assert sentence[:60] in text
    assert "rolled back" in text
    assert "0.45 x" in text


@pytest.mark.parametrize("width", [60, 80, 120])
def test_lines_keep_to_the_width(width: int) -> None:
    for report in (fakes.report(), fakes.hostile()):
        assert max(map(len, printed(report, width).splitlines())) <= width


def test_names_are_not_read_as_markup() -> None:
    report = dataclasses.replace(fakes.hostile(), title=fakes.HOSTILE)
    text = printed(report, 400)
    assert fakes.HOSTILE in text.splitlines()[0]
    words = " ".join(text.split())  # titles are as wide as their tables
    assert f"{fakes.HOSTILE} by sparsity" in words
    for quality in ("error [m/s]", "accuracy [top-5]", "loss [/b]"):
        short = Report("t", quality, [Trial("dense", 0.0, 0, 0.9), Trial("gmp", 0.5, 0, 0.8)])
        assert f"{quality} by sparsity" in " ".join(printed(short).split())


def test_an_empty_report_prints() -> None:
    assert "No model was pruned." in printed(Report("t", "q"))
