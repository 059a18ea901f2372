"""The plots of a report, drawn with matplotlib: quality against sparsity, sparsity of the layers, costs.

They are figures of matplotlib's object interface: no window, no state of `pyplot`, no change of its settings. They are
narrow, with their legend below, so that they can be read on a telephone without being made smaller.
"""

import importlib
import itertools
import math
import textwrap
from typing import TYPE_CHECKING, Any

from jaxprune.measure import figure as measured
from jaxprune.report.rows import Row, dense_name, dense_row, percent, ratio_to, sparsities

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    from jaxprune.report.report import Report

# On white; `svg` replaces each by a variable of the page, which knows a dark one as well.
INK, MUTED, LINE, PAPER = "#1a2230", "#5c6878", "#d9dfe7", "#fefeff"
SERIES = ("#2463c8", "#c2560c", "#16803d", "#8d3fb4", "#0d7b85", "#bf293a", "#79590f", "#b83180")
# Random pruning is the control: grey, and never one of the colours.
CONTROL = "#6d7786"
_MARKERS = "osD^vPXp"
_WIDTH = 4.4
_FONT = 9.5
_LINE = 0.2  # inches that a line of text takes
# More bars than these cannot be labelled: layers are then numbered.
_LABELLED = 40
# Ratios beyond are cut, so that one of them does not make all others invisible.
_LARGEST_RATIO = 2.0
_LOOKS: dict[str, dict[str, Any]] = {
    "measured": {},
    "modelled": {"facecolor": PAPER, "hatch": "//////"},
    "theoretical": {"fill": False, "linestyle": "--"},
}


def drawings(report: "Report", *, titles: bool = True) -> "dict[str, Figure]":
    """The plots that there are figures for, by name: `quality`, `layers`, `costs`.

    Args:
      report: the report.
      titles: whether a plot has a title; on the page a heading stands over it.

    Returns:
      Figures of matplotlib.

    Raises:
      ImportError: matplotlib is not installed.
    """
    plots = {}
    if any(math.isfinite(row["mean"]) for row in report.rows()):
        plots["quality"] = _quality(report, f"{report.title}: {report.quality} by {report.axis}" if titles else "")
    if report.layers:
        plots["layers"] = _layers(report, f"{report.title}: what is left of each layer" if titles else "")
    if any(len(figures) > 1 for figures in report.costs.values()):
        plots["costs"] = _costs(report, f"{report.title}: costs, as a part of the dense model's" if titles else "")
    return plots


def _new(height: float, title: str) -> "tuple[Figure, Axes]":
    try:
        module = importlib.import_module("matplotlib.figure")
    except ImportError as error:
        raise ImportError(
            "The plots of a report need matplotlib, which is not installed: pip install 'jaxprune[report]'. Its tables "
            "(Report.print) and its JSON (Report.to_dict) do not."
        ) from error
    figure = module.Figure(figsize=(_WIDTH, height), layout="constrained", facecolor=PAPER)
    axes = figure.add_subplot(facecolor=PAPER)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.spines["bottom"].set_color(LINE)
    axes.tick_params(colors=MUTED, labelsize=_FONT, length=0)
    axes.grid(axis="y", color=LINE, linewidth=0.8)
    axes.set_axisbelow(True)
    if title:
        lines = textwrap.wrap(_short(title, 100), 46)
        figure.set_figheight(height + _LINE * len(lines))
        figure.suptitle(_text("\n".join(lines)), fontsize=_FONT + 1, color=INK, fontweight="bold")
    return figure, axes


def _text(text: str) -> str:
    """Matplotlib reads mathematics between two dollars; these are names."""
    return text.replace("$", r"\$")


def _short(text: str, length: int) -> str:
    """The two ends of a text that is too long: a path is told by both."""
    if len(text) <= length:
        return text
    return f"{text[: (length - 1) // 2]}…{text[-(length // 2) :]}"


def position(sparsity: float) -> float:
    """Where a sparsity stands on the axis: one step to the right is half of what was kept.

    Example:
      >>> position(0.5), position(0.75)
      (1.0, 2.0)
    """
    return abs(-math.log2(1 - sparsity))


def _colours(methods: list[str]) -> dict[str, str]:
    coloured = [method for method in methods if method != "random"]
    return {method: SERIES[k % len(SERIES)] for k, method in enumerate(coloured)} | {"random": CONTROL}


def _quality(report: "Report", title: str) -> "Figure":
    rows = report.rows()
    levels = sparsities(rows)
    methods = list(dict.fromkeys(row["method"] for row in rows if row["method"] != "dense"))
    figure, axes = _new(3.1, title)
    span = position(levels[-1]) - position(levels[0]) if len(levels) > 1 else 1.0
    dense = dense_row(rows)
    if dense and math.isfinite(dense["mean"]):
        axes.axhline(dense["mean"], color=INK, linestyle=(0, (5, 3)), linewidth=1.2, label="dense")
        if dense["spread"]:
            low, high = dense["mean"] - dense["spread"], dense["mean"] + dense["spread"]
            axes.axhspan(low, high, color=INK, alpha=0.13, linewidth=0)
    gaps = [position(b) - position(a) for a, b in itertools.pairwise(levels)]
    step = min([0.012 * span, *(0.4 * gap / len(methods) for gap in gaps)])
    colours = _colours(methods)
    for place, method in enumerate(methods):
        mine = [row for row in rows if row["method"] == method and not row["diverged"]]
        # Moved apart a little, so that bars of methods that are close do not hide each other.
        aside = (place - (len(methods) - 1) / 2) * step
        axes.errorbar(
            [position(row["sparsity"]) + aside for row in mine],
            [row["mean"] for row in mine],
            yerr=[row["spread"] or 0.0 for row in mine],
            color=colours[method],
            linestyle=":" if method == "random" else "-" if place <= len(SERIES) else "--",
            marker=_MARKERS[place % len(_MARKERS)],
            markersize=4.5,
            linewidth=1.5,
            elinewidth=1.2,
            capsize=2.5,
            label=_text(_short(method, 30)),
        )
    _sparsity_axis(axes, levels, span)
    note = ", log. in what is kept" if len(levels) > 2 else ""
    axes.set_xlabel(_text(f"{report.axis}{note}"), color=MUTED, fontsize=_FONT)
    axes.set_ylabel(_text(f"{_short(report.quality, 34)}\n({report.better} is better)"), color=MUTED, fontsize=_FONT)
    _legend(figure, axes)
    return figure


def _sparsity_axis(axes: "Axes", levels: list[float], span: float) -> None:
    if not levels:
        axes.set_xticks([])
        return
    shown: list[float] = []
    for level in reversed(levels):
        if not shown or position(shown[-1]) - position(level) > 0.15 * span:
            shown.append(level)
    axes.set_xticks([position(level) for level in shown], [percent(level) for level in shown])
    axes.set_xlim(position(levels[0]) - 0.07 * span, position(levels[-1]) + 0.07 * span)


def _legend(figure: "Figure", axes: "Axes") -> None:
    handles, labels = axes.get_legend_handles_labels()
    if not labels:
        return
    columns = max(1, min(len(labels), 50 // (max(map(len, labels)) + 7)))
    figure.set_figheight(figure.get_figheight() + _LINE * math.ceil(len(labels) / columns))
    figure.legend(
        handles,
        labels,
        loc="outside lower center",
        ncols=columns,
        frameon=False,
        fontsize=_FONT,
        labelcolor=INK,
        columnspacing=1.4,
        handlelength=2.0,
    )


def _layers(report: "Report", title: str) -> "Figure":
    layers = report.layers
    labelled = len(layers) <= _LABELLED
    figure, axes = _new(0.7 + 0.34 * len(layers) if labelled else 3.2, title)
    gone = [100 * layer.sparsity for layer in layers]
    kept, weights = (sum(getattr(layer, name) for layer in layers) for name in ("kept", "weights"))
    total = 100 * (weights - kept) / weights
    if not labelled:
        axes.bar(range(1, len(layers) + 1), gone, width=0.85, color=SERIES[0])
        axes.axhline(total, color=INK, linestyle=(0, (5, 3)), linewidth=1.2, label=f"together {total:.3g} %")
        axes.set(ylim=(0, 100), xlim=(0, len(layers) + 1))
        axes.set_ylabel("weights gone (%)", color=MUTED, fontsize=_FONT)
        axes.set_xlabel("number of the layer, in the order of the model", color=MUTED, fontsize=_FONT)
        _legend(figure, axes)
        return figure
    # The name stands over its bar: beside it, long paths would leave no room for bars.
    places = [-float(k) for k in range(len(layers))]
    axes.barh(places, [100.0] * len(layers), height=0.3, color=LINE)
    axes.barh(places, gone, height=0.3, color=SERIES[0])
    for place, layer, share in zip(places, layers, gone, strict=True):
        name = {"color": INK, "fontsize": _FONT, "va": "bottom"}
        axes.text(0, place + 0.2, _text(_short(layer.path, 36)), ha="left", **name)
        axes.text(100, place + 0.2, f"{share:.3g} % of {layer.weights:,}", ha="right", **{**name, "color": MUTED})
    # At the bars only: a line from top to bottom would cross the numbers.
    tops, bottoms = [place + 0.19 for place in places], [place - 0.19 for place in places]
    axes.vlines([total] * len(places), bottoms, tops, color=INK, linewidth=1.4, label=f"together {total:.3g} %")
    axes.set(ylim=(places[-1] - 0.4, 0.85), xlim=(0, 100), yticks=[])
    axes.grid(visible=False)
    axes.set_xlabel("weights gone (%)", color=MUTED, fontsize=_FONT)
    _legend(figure, axes)
    return figure


def _costs(report: "Report", title: str) -> "Figure":
    blocks = [(name, figures) for name, figures in report.costs.items() if len(figures) > 1]
    lines = sum(0.95 + (len(f) - 1 if f[dense_name(f)].value is not None else 0) for _, f in blocks)
    figure, axes = _new(0.75 + 0.27 * lines, title)
    ratios = [ratio_to(f, figures[dense_name(figures)]) or 0.0 for _, figures in blocks for f in figures.values()]
    limit = min(max(1.1, *ratios), _LARGEST_RATIO)
    models = list(dict.fromkeys(m for _, figures in blocks for m in figures if m != dense_name(figures)))
    colours = {model: SERIES[k % len(SERIES)] for k, model in enumerate(models)}
    place = 0.0
    for name, figures in blocks:
        dense = figures[dense_name(figures)]
        figure_text = "not measured" if dense.value is None else str(dense)
        heading = f"{_short(name, 48 - len(figure_text))}: {figure_text}"
        axes.text(0, place, _text(heading), color=INK, fontsize=_FONT, va="center", fontweight="bold")
        place -= 0.95
        if dense.value is None:
            continue
        top = place + 0.45
        for model, cost in figures.items():
            if model != dense_name(figures):
                _cost_bar(axes, place, limit, model, cost, ratio_to(cost, dense), colours[model])
                place -= 1.0
        axes.vlines(1.0, place + 0.55, top, color=INK, linewidth=1.4)
    axes.set(ylim=(place + 0.4, 0.6), xlim=(0, 2.35 * limit), yticks=[])
    axes.grid(visible=False)
    axes.set_xticks([0, 0.5, 1.0, *([1.5, 2.0] if limit > 1.5 else [])])
    cut = f"; bars end at {limit:g}" if max(ratios) > limit else ""
    axes.set_xlabel(f"part of the dense model's cost{cut}", color=MUTED, fontsize=_FONT, loc="left")
    return figure


def _cost_bar(
    axes: "Axes", place: float, limit: float, model: str, cost: measured.Figure, ratio: float | None, colour: str
) -> None:
    if ratio is not None:
        bar = min(ratio, limit)
        look = {"facecolor": colour, "edgecolor": colour, **_LOOKS[cost.kind]}
        axes.barh(place, bar, height=0.56, linewidth=1.0, **look)
        words = f"{_short(model, 16)}: {cost.quantity()}, {ratio:.2f} x"
    elif cost.value is None:
        words = f"{_short(model, 16)}: not measured"
    else:
        words = f"{_short(model, 16)}: {cost.quantity()} ({cost.kind})"
    axes.text(1.05 * limit, place, _text(words), color=INK, fontsize=_FONT - 1, va="center")


def describe_quality(rows: list[Row]) -> str:
    """The quality plot in words, for who cannot see it."""
    parts = [
        f"{row['method']} at {percent(row['sparsity'])}: {row['mean']:.4g}"
        + ("" if row["spread"] is None else f" plus or minus {row['spread']:.2g}")
        for row in rows
        if math.isfinite(row["mean"])
    ]
    return "; ".join(parts) + "."
