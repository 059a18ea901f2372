"""The page, read as a file: complete, escaped, self-contained."""

import collections
import html.parser
import json
import re
from pathlib import Path

import pytest

from jaxprune.measure.figure import Figure
from jaxprune.report import Report, Trial
from jaxprune.report.markup import tag
from tests.report import fakes

VOID = {"meta", "br"}


class Page(html.parser.HTMLParser):
    """Checks that elements nest, and keeps their attributes and the text outside style and drawings."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.elements: list[tuple[str, dict[str, str | None]]] = []
        self.open: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()
        assert not self.open

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.elements.append((tag, dict(attrs)))

    def handle_endtag(self, tag: str) -> None:
        assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        if not {"style", "svg"} & set(self.open):
            self.words.append(data)

    @property
    def text(self) -> str:
        return "".join(self.words)


@pytest.fixture(scope="module")
def realistic() -> str:
    return fakes.page("report")


@pytest.fixture(scope="module")
def hostile() -> str:
    return fakes.page("hostile")


def test_everything_of_the_report_is_on_the_page(realistic: str) -> None:
    report, text = fakes.report(), Page(realistic).text
    for row in report.rows():
        assert f"{row['mean']:.4f} ± {row['spread']:.4f}" in text
    for figures in report.costs.values():
        for figure in figures.values():
            assert figure.quantity() in text
            assert figure.source in text
    for layer in report.layers:
        assert f"{layer.path}{layer.weights:,}{layer.kept:,}" in text
    for sentence in [*report.not_improved(), *report.notes]:
        assert sentence in text
    assert "begin 60, end 450, every 10" in text
    assert "resumeno" in text
    assert report.environment["jax"] in text
    assert "rolled back: lost more than 0.005" in text
    assert "What did not improve, and why" in text


def test_every_cost_carries_its_kind(realistic: str) -> None:
    badges = re.findall(r'<span class="kind (\w+)">(\w+)</span>', realistic)
    assert collections.Counter(badges) == {
        ("measured", "measured"): 9,
        ("modelled", "modelled"): 3,
        ("theoretical", "theoretical"): 3,
    }


@pytest.mark.parametrize("name", ["realistic", "hostile"])
def test_nothing_is_loaded_and_nothing_runs(name: str, request: pytest.FixtureRequest) -> None:
    text = request.getfixturevalue(name)
    for element, attributes in Page(text).elements:
        assert element not in {"script", "link", "img", "iframe", "object", "embed", "base", "form", "image", "a"}
        for key, value in attributes.items():
            assert not key.startswith("on")
            assert key not in {"src", "srcset", "data", "action", "xlink:href"}
            if key == "href":
                assert value is not None and value.startswith("#")
    style = re.search(r"<style>(.*?)</style>", text, re.DOTALL)
    assert style is not None
    assert not re.search(r"url\(|@import|//", style[1])
    assert not re.search(r"url\((?!#)", text)


@pytest.mark.parametrize("name", ["realistic", "hostile"])
def test_names_inside_drawings_are_unique_and_found(name: str, request: pytest.FixtureRequest) -> None:
    text = request.getfixturevalue(name)
    names = [attributes["id"] for _, attributes in Page(text).elements if "id" in attributes]
    assert len(names) == len(set(names))
    used = re.findall(r'url\(#([^)]+)\)|href="#([^"]+)"', text)
    assert used
    assert {one or two for one, two in used} <= set(names)


def test_text_is_escaped(hostile: str) -> None:
    assert "<script" not in hostile
    text = Page(hostile).text
    report = fakes.hostile()
    # Title, heading, quality, method, layer, cost, source, note, settings, environment, rounds.
    assert text.count(fakes.HOSTILE) > 30
    for sentence in report.not_improved():
        assert sentence in text


def test_drawings_are_described(realistic: str) -> None:
    labels = [a["aria-labelledby"] for element, a in Page(realistic).elements if element == "svg"]
    assert len(labels) == 3
    for names in labels:
        title, description = names.split()
        assert re.search(f'<title id="{title}">[^<]+</title>', realistic)
        assert re.search(f'<desc id="{description}">[^<]+</desc>', realistic)
    assert "gmp at 90 %: 0.96" in realistic


def test_drawings_follow_the_colours_of_the_page(realistic: str) -> None:
    drawings = re.findall(r"<svg.*?</svg>", realistic, re.DOTALL)
    for drawing in drawings:
        assert not re.findall(r"#[0-9a-f]{6}\b", drawing)
        assert set(re.findall(r"var\((--[\w-]+)\)", drawing)) <= set(re.findall(r"(--[\w-]+):", realistic))


def test_the_same_report_gives_the_same_page() -> None:
    costs = {"latency": fakes.costs()["latency of one batch"]}
    report = Report("t", "q", [Trial("gmp", 0.5, 0, 0.9)], costs=costs, environment={"jax": "1"})
    assert report.html() == report.html()


def test_best_is_what_the_spread_does_not_tell_apart() -> None:
    trials = [Trial("a", 0.5, seed, 0.9 + 0.01 * seed) for seed in range(3)]
    trials += [Trial("b", 0.5, seed, 0.905 + 0.001 * seed) for seed in range(3)]
    trials += [Trial("c", 0.5, seed, 0.8 + 0.001 * seed) for seed in range(3)]
    bold = re.findall(r'<td class="best">([\d.]+)', Report("t", "q", trials).html())
    assert bold == ["0.9100", "0.9060"]
    bold = re.findall(r'<td class="best">([\d.]+)', Report("t", "q", trials, better="lower").html())
    assert bold == ["0.8010"]


def test_an_empty_report_is_a_page() -> None:
    assert "No model was pruned." in Page(Report("t", "q").html()).text


def test_save_writes_every_file(tmp_path: Path) -> None:
    report = fakes.report()
    path = report.save(tmp_path / "new" / "folder")
    assert path == tmp_path / "new" / "folder" / "report.html"
    names = sorted(file.name for file in path.parent.iterdir())
    assert names == ["costs.png", "layers.png", "quality.png", "report.html", "report.json"]
    assert Report.from_dict(json.loads((path.parent / "report.json").read_text())).trials == report.trials
    for name in names[:3]:
        assert (path.parent / name).read_bytes().startswith(b"\x89PNG")


def test_asked_and_reached_are_made_or_given(realistic: str) -> None:
    text = Page(realistic).text
    assert "Random, gmp, rigl and granet at 50 %, 80 %, 90 % and 95 % sparsity, with 3 seeds." in text
    assert "Sparsity prunable: as asked for." in text
    given = Report("t", "q", asked="90 % at most 0.005 lost", reached="80 %: the best that was found")
    assert "Asked90 % at most 0.005 lostReached80 %: the best that was found" in Page(given.html()).text


def test_what_was_not_reached_is_said() -> None:
    trials = [Trial("gmp", s, 0, 0.9, {"sparsity_prunable": r}) for s, r in ((0.5, 0.5), (0.9, 0.85))]
    assert "as asked for but for 85 % where 90 % was asked for" in Page(Report("t", "q", trials).html()).text


def test_missing_figures_are_not_zeros() -> None:
    figure = Figure(1.0, "s", "measured", "clock")
    costs = {"a": {"dense": figure, "x": figure}, "b": {"dense": figure, "y": figure}}
    cells = re.findall(r"<td>-</td>", Report("t", "q", costs=costs).html())
    assert len(cells) == 2


def test_tag_escapes_attributes_and_children() -> None:
    assert tag("p", "<", tag("i", '"'), title='"<') == '<p title="&quot;&lt;">&lt;<i>&quot;</i></p>'
