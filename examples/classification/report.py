"""What a comparison found: a table on the screen, a plot, and a JSON file."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
from rich.console import Console
from rich.table import Table

matplotlib.use("Agg")
import matplotlib.pyplot as plt

MASKS_DO_NOT_SPEED_UP = (
    "Masks do not speed up dense kernels: zeros are stored and multiplied like any other weight, so "
    "step times (measured) do not fall with sparsity, and mask updates add to them."
)


def aggregate(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Joins the seeds of each method and sparsity.

    Args:
      runs: results of single runs.

    Returns:
      One row a method and sparsity, in the order of their first run. `accuracy_spread` is the
      sample standard deviation over the seeds, or `None` for one seed.
    """
    groups: dict[tuple[str, float], list[Mapping[str, Any]]] = {}
    for run in runs:
        groups.setdefault((run["method"], run["sparsity_target"]), []).append(run)
    rows: list[dict[str, Any]] = []
    for (method, target), members in groups.items():
        accuracies = [run["accuracy"] for run in members]
        times = [run["step_ms_measured"] for run in members if run["step_ms_measured"] is not None]
        rows.append(
            {
                "method": method,
                "sparsity_target": target,
                "seeds": [run["seed"] for run in members],
                "accuracy_mean": statistics.fmean(accuracies),
                "accuracy_spread": statistics.stdev(accuracies) if len(members) > 1 else None,
                "sparsity_prunable": statistics.fmean(r["sparsity_prunable"] for r in members),
                "sparsity_whole_model": statistics.fmean(r["sparsity_whole_model"] for r in members),
                "kept_weights": round(statistics.fmean(r["kept_weights"] for r in members)),
                "weights": members[0]["weights"],
                "step_ms_measured": statistics.median(times) if times else None,
            }
        )
    return rows


def print_table(rows: Sequence[Mapping[str, Any]], console: Console) -> None:
    """Prints the table and what its figures do not mean."""
    seeds = max(len(row["seeds"]) for row in rows)
    accuracy = "on test images" + (f", mean ± standard deviation over {seeds} seeds" if seeds > 1 else "")
    table = Table(
        title="Accuracy at the same number of steps",
        caption=(
            f"Accuracy {accuracy}. Zeros in the leaves that may be pruned, and in the whole model of "
            f"{rows[0]['weights']:,} weights. Step time: median, measured."
        ),
    )
    table.add_column("method", no_wrap=True)
    for column in ("accuracy %", "zeros %\nprunable", "zeros %\nmodel", "kept", "step ms\nmeasured"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        spread, step_ms = row["accuracy_spread"], row["step_ms_measured"]
        table.add_row(
            row["method"],
            f"{100 * row['accuracy_mean']:.2f}" + ("" if spread is None else f" ± {100 * spread:.2f}"),
            f"{100 * row['sparsity_prunable']:.2f}",
            f"{100 * row['sparsity_whole_model']:.2f}",
            f"{row['kept_weights']:,}",
            "-" if step_ms is None else f"{step_ms:.1f}",
        )
    console.print(table)
    console.print(MASKS_DO_NOT_SPEED_UP)


def plot(rows: Sequence[Mapping[str, Any]], title: str, path: Path) -> None:
    """Draws accuracy against sparsity; the dense model is a dashed line.

    Args:
      rows: from `aggregate`.
      title: of the plot.
      path: of the PNG.
    """
    figure, axes = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
    methods = list(dict.fromkeys(row["method"] for row in rows))
    for method in methods:
        mine = sorted(
            (row for row in rows if row["method"] == method),
            key=lambda row: row["sparsity_prunable"],
        )
        accuracy = [100 * row["accuracy_mean"] for row in mine]
        if method == "dense":
            axes.axhline(accuracy[0], color="black", linestyle="--", label="dense")
            continue
        sparsity = [100 * row["sparsity_prunable"] for row in mine]
        spread = [100 * (row["accuracy_spread"] or 0.0) for row in mine]
        axes.errorbar(sparsity, accuracy, yerr=spread, marker="o", capsize=3, label=method)
    axes.set(xlabel="zeros in prunable leaves (%)", ylabel="test accuracy (%)", title=title)
    axes.grid(alpha=0.3)
    axes.legend()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)
