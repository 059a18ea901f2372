"""The plot of a federated comparison: accuracy against the bytes that were sent."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np

matplotlib.use("Agg")
import matplotlib.pyplot as plt

# Of the curves that a method has at several sparsities, the dashes tell which is which.
_DASHES = ("-", "--", ":", "-.")


def draw(runs: Sequence[Mapping[str, Any]], title: str, path: Path) -> None:
    """Draws one curve a method and sparsity: means over seeds, with a band of one standard deviation.

    Args:
      runs: with `method`, `sparsity`, and by round `accuracy`, `up` and `down`.
      title: of the plot.
      path: of the PNG.
    """
    figure, axes = plt.subplots(figsize=(7.2, 4.6), layout="constrained")
    groups: dict[tuple[str, float], list[Mapping[str, Any]]] = {}
    for run in runs:
        groups.setdefault((run["method"], run["sparsity"]), []).append(run)
    methods = list(dict.fromkeys(method for method, _ in groups))
    sparsities = sorted({sparsity for method, sparsity in groups if method != "dense"})
    for (method, sparsity), members in groups.items():
        megabytes = np.mean([np.add(run["up"], run["down"]) for run in members], axis=0) / 1e6
        accuracy = 100 * np.array([run["accuracy"] for run in members])
        mean, spread = accuracy.mean(axis=0), accuracy.std(axis=0, ddof=int(len(members) > 1))
        dense = method == "dense"
        color = "black" if dense else f"C{methods.index(method)}"
        dashes = "-" if dense else _DASHES[sparsities.index(sparsity) % len(_DASHES)]
        label = method if dense else f"{method} {100 * sparsity:g} %"
        axes.plot(megabytes, mean, dashes, color=color, label=label)
        axes.fill_between(megabytes, mean - spread, mean + spread, color=color, alpha=0.12, linewidth=0)
    axes.set(xscale="log", title=title)
    axes.set(xlabel="MB sent up and down by all clients, lengths of messages", ylabel="test accuracy (%)")
    axes.grid(alpha=0.3)
    axes.legend(fontsize="small")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)
    plt.close(figure)
