"""A report on the terminal, as tables of rich."""

from typing import TYPE_CHECKING

from rich.console import Group
from rich.padding import Padding
from rich.table import Table
from rich.text import Text

from jaxprune.report.findings import asked, reached
from jaxprune.report.rows import (
    VALUE_KINDS,
    Row,
    best_at,
    cell_text,
    counted,
    dense_name,
    dense_row,
    percent,
    quality_text,
    quality_writer,
    ratio_to,
    sparsities,
    value_text,
)

if TYPE_CHECKING:
    from collections.abc import Callable, Sequence

    from rich.console import RenderableType

    from jaxprune.report.report import Report

# With more sparsities than these a table is long, not wide.
_COLUMNS = 5


def tables(report: "Report") -> Group:
    """Every table of a report that has something in it, then what did not improve, then the notes."""
    parts: list[RenderableType] = [
        Text(report.title, style="bold"),
        Padding(Text(f"Asked: {asked(report)}\nReached: {reached(report)}"), (0, 0, 1, 0)),
    ]
    if report.trials:
        parts.append(_quality(report))
    if any(row["values"] for row in report.rows()):
        parts.append(_values(report))
    parts += [_costs(report)] if report.costs else []
    parts += [_layers(report)] if report.layers else []
    parts += [_history(report)] if report.history else []
    parts.append(_list("What did not improve, and why", report.not_improved() or ["Every cost that was given fell."]))
    if report.notes:
        parts.append(_list("Notes", report.notes))
    return Group(*parts)


def _table(title: str, caption: str, *columns: str) -> Table:
    # As Text, for names may hold what rich takes for markup, such as "error [m/s]".
    heads = {"title": Text(title, "table.title"), "caption": Text(caption, "table.caption") if caption else None}
    table = Table(**heads, title_justify="left", caption_justify="left")
    for place, column in enumerate(columns):
        table.add_column(Text(column), justify="right" if place else "left", overflow="fold")
    return table


def _list(title: str, sentences: "Sequence[str]") -> Group:
    lines = [Padding(Text(f"- {sentence}"), (0, 0, 0, 2)) for sentence in sentences]
    return Group(Padding(Text(title, style="bold"), (1, 0, 0, 0)), *lines)


def _quality(report: "Report") -> Table:
    rows = report.rows()
    write = quality_writer(rows)
    levels = sparsities(rows)
    caption = (
        f"Measured: mean ± sample standard deviation over seeds; {report.better} is better. Bold: the best at its "
        "sparsity, and all that the spread does not tell from it."
    )
    dense = dense_row(rows)
    title = f"{report.quality} by {report.axis}"
    if dense:
        title += f"; dense {quality_text(dense, write)} over {counted(len(dense['seeds']), 'seed')}"
    best = {id(row) for level in levels for row in best_at(rows, level, report.better)}
    if len(levels) > _COLUMNS:
        table = _table(title, caption, "method", report.axis, report.quality, "seeds")
        for row in rows:
            text = Text(_compact(row, write), "bold" if id(row) in best else "")
            table.add_row(Text(row["method"]), percent(row["sparsity"]), text, str(len(row["seeds"])))
        return table
    table = _table(title, caption, "method", *map(percent, levels), "seeds")
    for method in dict.fromkeys(row["method"] for row in rows if row["method"] != "dense"):
        mine = {row["sparsity"]: row for row in rows if row["method"] == method}
        seeds = {seed for row in mine.values() for seed in row["seeds"]}
        cells = [
            Text(_compact(mine[level], write), "bold" if id(mine[level]) in best else "")
            if level in mine
            else Text("-")
            for level in levels
        ]
        table.add_row(Text(method), *cells, Text(str(len(seeds))))
    return table


def _compact(row: Row, write: "Callable[[float], str]") -> str:
    """Where a cell is too narrow it breaks before the sign."""
    return quality_text(row, write).replace("± ", "±")


def _values(report: "Report") -> Table:
    rows = report.rows()
    names = list(dict.fromkeys(name for row in rows for name in row["values"]))
    kinds = {**VALUE_KINDS, **report.kinds}
    heads = [f"{name.replace('_', ' ')}\n{kinds.get(name, 'kind not stated')}" for name in names]
    table = _table("Beside it", "Means over seeds.", "method", report.axis, *heads)
    for row in rows:
        cells = [value_text(name, row["values"][name]) if name in row["values"] else "-" for name in names]
        table.add_row(Text(row["method"]), percent(row["sparsity"]), *cells)
    return table


def _costs(report: "Report") -> Table:
    models = list(dict.fromkeys(model for figures in report.costs.values() for model in figures))
    table = _table("Costs", "x: what is left of the dense model's. Less is better.", "cost", *models)
    for name, figures in report.costs.items():
        cells = []
        for model in models:
            figure = figures.get(model)
            ratio = None if figure is None else ratio_to(figure, figures[dense_name(figures)])
            factor = "" if ratio is None or model == dense_name(figures) else f"\n{ratio:.2f} x"
            cells.append(Text("-" if figure is None else f"{figure}{factor}"))
        table.add_row(Text(name), *cells)
    return table


def _layers(report: "Report") -> Table:
    caption = "Measured: counted in the final model."
    table = _table("What is left of each layer", caption, "layer", "weights", "kept", "gone")
    for layer in report.layers:
        table.add_row(Text(layer.path), f"{layer.weights:,}", f"{layer.kept:,}", percent(layer.sparsity))
    return table


def _history(report: "Report") -> Table:
    names = list(dict.fromkeys(name for entry in report.history for name in entry))
    table = _table("Rounds", "", "round", *names)
    for number, entry in enumerate(report.history, 1):
        table.add_row(str(number), *(Text(cell_text(name, entry.get(name))) for name in names))
    return table
