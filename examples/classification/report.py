"""What a comparison found: seeds joined, and the report that is printed and saved."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

import jaxprune as jp
from examples.classification import shrinking

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


def make_report(runs: Sequence[Mapping[str, Any]], title: str, settings: Mapping[str, Any]) -> jp.Report:
    """The report of a comparison.

    Args:
      runs: results of single runs.
      title: of the page.
      settings: what they share.
    """
    trials = [
        jp.Trial(run["method"], run["sparsity_target"], run["seed"], run["accuracy"], _values(run)) for run in runs
    ]
    return jp.Report(title, "accuracy", trials, notes=[MASKS_DO_NOT_SPEED_UP], settings=settings, kinds=shrinking.KINDS)


def _values(run: Mapping[str, Any]) -> dict[str, float]:
    """What a run found beside its accuracy."""
    names = ["sparsity_prunable", "sparsity_whole_model", "kept_weights", *shrinking.KINDS]
    values = {name: run[name] for name in names if name in run}
    step = run["step_ms_measured"]
    return values if step is None else values | {"step_ms": step}
