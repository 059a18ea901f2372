"""Joining the seeds of a comparison, and writing its numbers down."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Literal, TypedDict

from jaxprune.measure.figure import Figure, Kind
from jaxprune.report.trial import Trial

Better = Literal["higher", "lower"]

# How values of a trial are known; `Report.kinds` says so for others. Zeros and weights are counted in the arrays.
VALUE_KINDS: dict[str, Kind] = {
    "sparsity_prunable": "measured",
    "sparsity_model": "measured",
    "sparsity_whole_model": "measured",
    "training_flops": "theoretical",
    "kept_weights": "measured",
    "weights": "measured",
    "rmse": "measured",
    "macs": "theoretical",
    "flops": "theoretical",
}
_DIGITS = 4


class Row(TypedDict):
    """The trials of one method at one sparsity, joined over their seeds.

    `spread` is the sample standard deviation of the quality, None for one seed. `values` are means over the seeds that
    have them.
    """

    method: str
    sparsity: float
    seeds: list[int]
    mean: float
    spread: float | None
    diverged: int
    values: dict[str, float]


def join_seeds(trials: Sequence[Trial]) -> list[Row]:
    """Joins the seeds of each method and sparsity.

    A training that diverged (its quality is not finite) makes the mean NaN: leaving it out would flatter the method.

    Args:
      trials: in any order.

    Returns:
      The dense row first, then methods in the order of their first trial, each by ascending sparsity.

    Example:
      >>> rows = join_seeds([Trial("gmp", 0.9, 0, 0.5), Trial("gmp", 0.9, 1, 0.7), Trial("dense", 0.0, 0, 0.8)])
      >>> [(row["method"], round(row["mean"], 3), row["spread"]) for row in rows]
      [('dense', 0.8, None), ('gmp', 0.6, 0.14142135623730948)]
    """
    groups: dict[tuple[str, float], list[Trial]] = {}
    for trial in trials:
        groups.setdefault((trial.method, trial.sparsity), []).append(trial)
    order = {method: place for place, method in enumerate(dict.fromkeys(trial.method for trial in trials))}
    members = sorted(groups.values(), key=lambda g: (not g[0].is_dense, order[g[0].method], g[0].sparsity))
    return [_row(group) for group in members]


def _row(group: Sequence[Trial]) -> Row:
    qualities = [trial.quality for trial in group]
    diverged = sum(not math.isfinite(quality) for quality in qualities)
    names = dict.fromkeys(name for trial in group for name in trial.values)
    return {
        "method": group[0].method,
        "sparsity": group[0].sparsity,
        "seeds": [trial.seed for trial in group],
        "mean": math.nan if diverged else statistics.fmean(qualities),
        "spread": statistics.stdev(qualities) if len(group) > 1 and not diverged else None,
        "diverged": diverged,
        "values": {
            name: statistics.fmean(trial.values[name] for trial in group if name in trial.values) for name in names
        },
    }


def sparsities(rows: Sequence[Row]) -> list[float]:
    """The sparsities asked for, ascending, without the dense model's."""
    return sorted({row["sparsity"] for row in rows if row["method"] != "dense"})


def dense_row(rows: Sequence[Row]) -> Row | None:
    """The row of the dense model, if there is one."""
    return next((row for row in rows if row["method"] == "dense"), None)


def advantage(row: Row, over: Row, better: Better) -> tuple[float, float]:
    """By how much one row is better than another, and the larger of their spreads.

    Example:
      >>> a, b = join_seeds([Trial("a", 0.5, 0, 3.0), Trial("b", 0.5, 0, 2.0)])
      >>> advantage(a, b, "lower")
      (-1.0, 0.0)
    """
    difference = row["mean"] - over["mean"]
    return (difference if better == "higher" else -difference), max(row["spread"] or 0.0, over["spread"] or 0.0)


def best_at(rows: Sequence[Row], sparsity: float, better: Better) -> list[Row]:
    """The best row at a sparsity, and after it those that its spread or their own does not tell from it.

    Example:
      >>> rows = join_seeds([Trial("a", 0.5, 0, 0.9), Trial("b", 0.5, 0, 0.8)])
      >>> [row["method"] for row in best_at(rows, 0.5, "higher")]
      ['a']
    """
    here = [row for row in rows if row["sparsity"] == sparsity and row["method"] != "dense" and not row["diverged"]]
    if not here:
        return []
    first = max(here, key=lambda row: row["mean"] if better == "higher" else -row["mean"])

    def close(row: Row) -> bool:
        lead, spread = advantage(first, row, better)
        return lead <= spread

    return [first, *(row for row in here if row is not first and close(row))]


def quality_writer(rows: Sequence[Row]) -> Callable[[float], str]:
    """Writes qualities with as many decimals as the dense one needs for four digits, or else the largest.

    A perplexity of thousands, of weights pruned at random, must not cost the others their decimals.

    Example:
      >>> quality_writer(join_seeds([Trial("dense", 0.0, 0, 24.281), Trial("random", 0.7, 0, 2360.2)]))(25.104)
      '25.10'
    """
    dense = dense_row(rows)
    if dense and dense["mean"] and math.isfinite(dense["mean"]):
        rows = [dense]
    typical = max((abs(row["mean"]) for row in rows if math.isfinite(row["mean"])), default=1.0)
    decimals = _DIGITS - 1 - math.floor(math.log10(typical)) if typical else _DIGITS
    decimals = min(max(decimals, 0), 8)
    return lambda value: f"{value:.{decimals}f}"


def quality_text(row: Row, write: Callable[[float], str]) -> str:
    """Mean and spread of a row, or how many of its seeds diverged.

    Example:
      >>> row = join_seeds([Trial("gmp", 0.5, 0, 0.9), Trial("gmp", 0.5, 1, math.nan)])[0]
      >>> quality_text(row, str)
      'diverged (1 of 2 seeds)'
    """
    if row["diverged"]:
        return f"diverged ({row['diverged']} of {len(row['seeds'])} seeds)"
    return write(row["mean"]) + ("" if row["spread"] is None else f" ± {write(row['spread'])}")


def counted(number: int, noun: str) -> str:
    """A number of things.

    Example:
      >>> counted(1, "seed"), counted(3, "seed")
      ('1 seed', '3 seeds')
    """
    return f"{number} {noun}{'' if number == 1 else 's'}"


def percent(fraction: float, digits: int = 4) -> str:
    """A fraction as per cent.

    Example:
      >>> percent(0.9), percent(0.98765)
      ('90 %', '98.77 %')
    """
    return f"{100 * fraction:.{digits}g} %"


def value_text(name: str, value: float) -> str:
    """A value of a trial: sparsities as per cent, large numbers grouped, others to four digits.

    Example:
      >>> value_text("sparsity_prunable", 0.9), value_text("kept_weights", 12345.4), value_text("rmse", 0.94312)
      ('90 %', '12,345', '0.9431')
    """
    if not math.isfinite(value):
        return str(value)
    if name.startswith("sparsity"):
        return percent(value)
    if abs(value) >= 1000 or value == round(value):
        return f"{value:,.0f}"
    return f"{value:.{_DIGITS}g}"


def cell_text(name: str, value: object) -> str:
    """A cell of the table of rounds.

    Example:
      >>> cell_text("kept", True), cell_text("drop", 0.00254), cell_text("drop", None)
      ('yes', '0.00254', '-')
    """
    if value is None:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return value_text(name, value) if isinstance(value, int | float) else str(value)


def ratio_to(figure: Figure, dense: Figure) -> float | None:
    """What is left of a cost of the dense model; None where the two cannot be compared.

    A measured figure is not compared with a modelled one, nor seconds with bytes; and what is below 0, such as the
    joules above idle of a call that is lost in the noise, is no share of anything.

    Example:
      >>> seconds = Figure(2.0, "s", "measured", "wall clock")
      >>> ratio_to(Figure(1.0, "s", "measured", "wall clock"), seconds)
      0.5
      >>> ratio_to(Figure(1.0, "s", "modelled", "roofline"), seconds) is None
      True
    """
    if figure.value is None or dense.value is None or (figure.unit, figure.kind) != (dense.unit, dense.kind):
        return None
    return figure.value / dense.value if figure.value >= 0 and 0 < dense.value < math.inf else None


def dense_name(figures: Mapping[str, Figure]) -> str:
    """The model that the others are compared with: `"dense"`, or the first."""
    return "dense" if "dense" in figures else next(iter(figures))
