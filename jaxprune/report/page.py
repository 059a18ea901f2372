"""A report as one page of HTML: no network, no script, no other file; light and dark; wide and narrow."""

import importlib.resources
import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from jaxprune.measure.figure import Figure
from jaxprune.report import plots
from jaxprune.report.findings import asked, headline, reached, signed
from jaxprune.report.markup import Safe, joined, tag
from jaxprune.report.rows import (
    VALUE_KINDS,
    Row,
    best_at,
    cell_text,
    dense_name,
    dense_row,
    percent,
    quality_text,
    quality_writer,
    ratio_to,
    sparsities,
    value_text,
)
from jaxprune.report.svg import inline

if TYPE_CHECKING:
    from jaxprune.report.report import Report

# Should a text ever get past the escaping, the browser still loads and runs nothing.
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; img-src data:; base-uri 'none'; form-action 'none'"
_NONE = "-"
# Longer tables that only add to others are folded.
_LONG = 20
_KINDS = (
    "Measured: read from a clock, a counter, a file or the arrays themselves. Modelled: estimated by software. "
    "Theoretical: from a formula, for hardware that does nothing for what is gone."
)


def page(report: "Report") -> str:
    """The whole page.

    Args:
      report: the report.

    Returns:
      The text of an HTML file.

    Raises:
      ImportError: matplotlib is not installed.
    """
    drawn = plots.drawings(report, titles=False)
    drawings = {name: inline(figure, name, *_words(report, name)) for name, figure in drawn.items()}
    style = importlib.resources.files("jaxprune.report").joinpath("page.css").read_text(encoding="utf-8")
    head = tag(
        "head",
        tag("meta", charset="utf-8"),
        tag("meta", http_equiv="Content-Security-Policy", content=_POLICY),
        tag("meta", name="viewport", content="width=device-width, initial-scale=1"),
        tag("meta", name="color-scheme", content="light dark"),
        tag("title", report.title),
        tag("style", Safe(style)),
    )
    main = tag(
        "main",
        _header(report),
        _quality(report, drawings.get("quality")),
        _costs(report, drawings.get("costs")),
        _not_improved(report),
        _layers(report, drawings.get("layers")),
        _values(report),
        _history(report),
        _list("Notes", report.notes, "notes"),
        tag(
            "div",
            _pairs("Settings", report.settings),
            _pairs("Environment", report.environment),
            class_="pair",
        ),
        tag("footer", _KINDS),
    )
    return f"<!DOCTYPE html>\n{tag('html', head, tag('body', main), lang='en')}\n"


def _header(report: "Report") -> Safe:
    byline = [f"jaxprune {report.environment.get('jaxprune', '')}".strip()]
    byline += [str(report.environment[name]) for name in ("date", "devices") if name in report.environment]
    tiles = [
        tag(
            "li",
            *(tag("span", text, class_=name) for name, text in zip(("label", "value", "remark"), tile, strict=True)),
        )
        for tile in headline(report)
    ]
    return tag(
        "header",
        tag("h1", report.title),
        tag("p", " · ".join(byline), class_="byline"),
        tag(
            "dl",
            tag("dt", "Asked"),
            tag("dd", asked(report)),
            tag("dt", "Reached"),
            tag("dd", reached(report)),
            class_="goal",
        ),
        tag("ul", *tiles, class_="tiles") if tiles else None,
    )


def _words(report: "Report", name: str) -> tuple[str, str]:
    """Title and description of a drawing."""
    if name == "quality":
        return f"{report.quality} by {report.axis}", plots.describe_quality(report.rows())
    if name == "layers":
        parts = "; ".join(f"{layer.path}: {percent(layer.sparsity)}" for layer in report.layers)
        return "Weights gone, by layer", parts
    parts = [
        f"{cost}, {model}: {figure}" for cost, figures in report.costs.items() for model, figure in figures.items()
    ]
    return "Costs, as a part of the dense model's", "; ".join(parts)


def _figure(drawing: Safe | None, caption: str) -> Safe | None:
    return None if drawing is None else tag("figure", drawing, tag("figcaption", caption))


def _section(title: str, *children: str | None, class_: str | None = None) -> Safe:
    return tag("section", tag("h2", title), *children, class_=class_)


def _table(name: str, columns: Sequence[str], rows: Sequence[Sequence[Safe]], class_: str | None = None) -> Safe:
    """A table that scrolls by itself where it is wider than the page; the keyboard reaches it, too."""
    head = tag("thead", tag("tr", *map(_head, columns))) if columns else None
    body = tag("tbody", *(tag("tr", *cells) for cells in rows))
    return tag(
        "div", tag("table", head, body, class_=class_), class_="scroll", tabindex="0", role="region", aria_label=name
    )


def _head(column: str) -> Safe:
    return column if isinstance(column, Safe) and column.startswith("<th") else tag("th", column, scope="col")


def _first(text: str) -> Safe:
    return tag("th", text, scope="row")


def _quality(report: "Report", drawing: Safe | None) -> Safe | None:
    rows = report.rows()
    if not rows:
        return None
    levels = sparsities(rows)
    best = {id(row) for level in levels for row in best_at(rows, level, report.better)}
    table = []
    for method in dict.fromkeys(row["method"] for row in rows):
        mine = {row["sparsity"]: row for row in rows if row["method"] == method}
        seeds = sorted({seed for row in mine.values() for seed in row["seeds"]})
        if method == "dense":
            text = f"{quality_text(mine[0.0], quality_writer(rows))}, nothing pruned"
            cells = [tag("td", text, colspan=str(len(levels) or 1), class_="whole")]
        else:
            cells = [_quality_cell(mine.get(level), rows, best) for level in levels]
        table.append([_first(method), *cells, tag("td", str(len(seeds)))])
    columns = ["method", *([percent(level) for level in levels] or [report.quality]), "seeds"]
    caption = (
        "Measured: mean ± sample standard deviation over seeds, and the difference to dense; "
        f"{report.better} is better. Bold: the best at its sparsity, and all that the spread does not tell from it."
    )
    return _section(
        f"{report.quality[:1].upper()}{report.quality[1:]} by {report.axis}",
        tag("div", _table(report.quality, columns, table), tag("p", caption, class_="caption")),
        _figure(
            drawing, "Bars: one standard deviation over seeds. Dashed line and band: the dense model and its spread."
        ),
    )


def _quality_cell(row: Row | None, rows: Sequence[Row], best: set[int]) -> Safe:
    if row is None:
        return tag("td", _NONE)
    write = quality_writer(rows)
    dense = dense_row(rows)
    change = math.nan if dense is None else row["mean"] - dense["mean"]
    difference = tag("span", signed(change, write), class_="small") if math.isfinite(change) else None
    return tag("td", quality_text(row, write), difference, class_="best" if id(row) in best else None)


def _costs(report: "Report", drawing: Safe | None) -> Safe | None:
    if not report.costs:
        return _section("Costs before and after", tag("p", f"Nothing but {report.quality} was measured."))
    models = list(dict.fromkeys(model for figures in report.costs.values() for model in figures))
    rows = [
        [_first(name), *(_cost_cell(figures.get(model), model, figures) for model in models)]
        for name, figures in report.costs.items()
    ]
    caption = "Less is better. x: what is left of the dense model's cost; figures of different kinds are not compared."
    looks = (
        "Full bars are measured, hatched ones modelled, dashed outlines theoretical. The mark, and the figure beside "
        "each name, are the dense model's."
    )
    return _section(
        "Costs before and after",
        _table("costs", ["cost", *models], rows),
        tag("p", caption, class_="caption"),
        _figure(drawing, looks),
    )


def _cost_cell(figure: Figure | None, model: str, figures: Mapping[str, Figure]) -> Safe:
    if figure is None:
        return tag("td", _NONE)
    if figure.value is None:
        return tag("td", tag("span", "not measured", class_="worse"), tag("span", figure.note, class_="small"))
    first = dense_name(figures)
    ratio = None if model == first else ratio_to(figure, figures[first])
    remark = ", ".join(
        [
            figure.source,
            *([f"{figure.repetitions} repetitions"] if figure.repetitions else []),
            *filter(None, [figure.note]),
        ]
    )
    return tag(
        "td",
        figure.quantity(),
        Safe(" "),
        tag("span", figure.kind, class_=f"kind {figure.kind}"),
        None if ratio is None else tag("span", f"{ratio:.2f} x", class_="ratio"),
        tag("span", remark, class_="small"),
    )


def _not_improved(report: "Report") -> Safe:
    sentences = report.not_improved()
    if not sentences:
        return _section("What did not improve, and why", tag("p", "Every cost that was given fell."), class_="honest")
    return _list("What did not improve, and why", sentences, "honest") or Safe()


def _list(title: str, sentences: Sequence[str], class_: str) -> Safe | None:
    if not sentences:
        return None
    return _section(title, tag("ul", *(tag("li", sentence) for sentence in sentences)), class_=class_)


def _layers(report: "Report", drawing: Safe | None) -> Safe | None:
    if not report.layers:
        return None
    rows = [
        [
            _first(layer.path),
            *(tag("td", text) for text in (f"{layer.weights:,}", f"{layer.kept:,}", percent(layer.sparsity))),
        ]
        for layer in report.layers
    ]
    table = _table("layers", ["layer", "weights", "kept", "gone"], rows)
    return _section(
        "What is left of each layer",
        _figure(drawing, "Measured: counted in the final model. The mark is that of all these layers together."),
        tag("details", tag("summary", f"All {len(rows)} layers as a table"), table),
    )


def _values(report: "Report") -> Safe | None:
    rows = report.rows()
    names = list(dict.fromkeys(name for row in rows for name in row["values"]))
    if not names:
        return None
    kinds = {**VALUE_KINDS, **report.kinds}
    heads = [
        joined(name.replace("_", " "), tag("span", kinds.get(name, "kind not stated"), class_="small"))
        for name in names
    ]
    table = [
        [
            _first(row["method"]),
            tag("td", percent(row["sparsity"])),
            *(tag("td", value_text(name, row["values"][name]) if name in row["values"] else _NONE) for name in names),
        ]
        for row in rows
    ]
    whole = _table("values", ["method", report.axis, *heads], table)
    if len(table) > _LONG:
        whole = tag("details", tag("summary", f"All {len(table)} rows"), whole)
    return _section("What else was counted", whole, tag("p", "Means over seeds.", class_="caption"))


def _history(report: "Report") -> Safe | None:
    if not report.history:
        return None
    names = list(dict.fromkeys(name for entry in report.history for name in entry))
    words = {name: "text" for name in names if any(isinstance(entry.get(name), str) for entry in report.history)}
    rows = [
        [_first(str(number)), *(tag("td", cell_text(n, entry.get(n)), class_=words.get(n)) for n in names)]
        for number, entry in enumerate(report.history, 1)
    ]
    heads = [tag("th", name.replace("_", " "), scope="col", class_=words.get(name)) for name in names]
    return _section("Rounds", _table("rounds", ["round", *heads], rows))


def _pairs(title: str, values: Mapping[str, Any]) -> Safe | None:
    if not values:
        return None
    rows = [[_first(name), tag("td", _setting(value))] for name, value in values.items()]
    return _section(title, _table(title, [], rows, class_="pairs"))


def _setting(value: Any) -> str:
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_setting(inner)}" for name, inner in value.items())
    if isinstance(value, list | tuple):
        return ", ".join(_setting(inner) for inner in value)
    return {True: "yes", False: "no"}[value] if isinstance(value, bool) else "none" if value is None else str(value)
