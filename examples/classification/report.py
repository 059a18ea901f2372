"""What a comparison found, as the report that is printed and saved."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import jaxprune as jp
from examples.classification import shrinking

MASKS_DO_NOT_SPEED_UP = (
    "Masks do not speed up dense kernels: zeros are stored and multiplied like any other weight, so "
    "step times (measured) do not fall with sparsity, and mask updates add to them."
)


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
