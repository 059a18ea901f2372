"""One table: what was trained, what is left of it, and what the RigL paper reports."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from typing import Any

from rich import box
from rich.console import Console
from rich.table import Table

# Evci et al. 2020, arXiv 1911.11134, table 2 (appendix B), full MNIST: 13,521.6 GFLOPs is their dense training.
PAPER: dict[str, Any] = {
    "model": "paper, cited",
    "architecture": "408-100-69",
    "error_percent": 1.48,
    "error_percent_best_in_training": 1.44,
    "kernel_sparsity": 0.870,
    "formula_bytes": 31_914,
    "inference_kflops": 12.6,
    "training_gflops": 482.0,
    "training_gflops_dense": 13_521.6,
}
_AVERAGED = (
    "error_percent",
    "kernel_sparsity",
    "file_bytes",
    "formula_bytes",
    "inference_kflops",
    "training_gflops",
)


def aggregate(runs: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Joins the seeds of each model.

    Args:
      runs: figures of single models.

    Returns:
      One row a model, in the order of their first run: means over the seeds, the architecture of each seed, and
      `error_spread`, the sample standard deviation of the error, or `None` for one seed.
    """
    rows: list[dict[str, Any]] = []
    for model in dict.fromkeys(run["model"] for run in runs):
        members = [run for run in runs if run["model"] == model]
        row: dict[str, Any] = {"model": model, "seeds": [run["seed"] for run in members]}
        row["architectures"] = list(dict.fromkeys(run["architecture"] for run in members))
        row |= {name: statistics.fmean(run[name] for run in members) for name in _AVERAGED}
        errors = [run["error_percent"] for run in members]
        row["error_spread"] = statistics.stdev(errors) if len(errors) > 1 else None
        rows.append(row)
    return rows


def caption(data: Mapping[str, Any], steps: int, seeds: int) -> str:
    """Says what was measured on which data, and how to read the columns."""
    over = (
        f"Means over {seeds} seeds, the error ± standard deviation; the architecture of each seed. "
        if seeds > 1
        else ""
    )
    comparable = (
        "The paper trained with another learning rate schedule, and its lowest error in training was 1.44."
        if data["full_mnist"]
        else "The paper's row is for full MNIST: errors and training FLOPs of other data are not comparable with it."
    )
    return (
        f"{data['dataset']}: {data['train']:,} training and {data['test']:,} test images, {steps:,} steps. {over}"
        "Error: on the test images after the last step (measured). File: an uncompressed .npz (measured), of all "
        "values (dense, compact dense) or of the nonzero values and a bit for each position of the kernels; with the "
        "biases and the index of the used pixels. Formula: the paper's, 4 bytes a value and 1 bit a position "
        "(theoretical). Inference of one image: as the dense kernels run it (dense, compact dense; modelled), or with "
        f"every zero skipped (theoretical). Training: the paper's appendix H (theoretical). {comparable}"
    )


def print_table(rows: Sequence[Mapping[str, Any]], note: str, console: Console) -> None:
    """Prints the rows, and the paper's below them."""
    table = Table(title="LeNet-300-100, trained sparse, then cut", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    table.add_column("model", no_wrap=True)
    table.add_column("architecture", no_wrap=True)
    for column in ("error %", "zeros\n%", "file\nbytes", "formula\nbytes", "infer\nkFLOPs", "train\nGFLOPs"):
        table.add_column(column, justify="right", no_wrap=True)
    for row in rows:
        spread = "" if row["error_spread"] is None else f"\n± {row['error_spread']:.2f}"
        _add(table, row, "\n".join(row["architectures"]), f"{row['error_percent']:.2f}{spread}")
    table.add_section()
    _add(table, PAPER, PAPER["architecture"], f"{PAPER['error_percent']:.2f}")
    console.print(table)
    console.print(note)


def _add(table: Table, row: Mapping[str, Any], architecture: str, error: str) -> None:
    table.add_row(
        row["model"].replace(" ", "\n"),  # so that the table fits into 80 columns
        architecture,
        error,
        f"{100 * row['kernel_sparsity']:.1f}",
        f"{row['file_bytes']:,.0f}" if "file_bytes" in row else "-",
        f"{row['formula_bytes']:,.0f}",
        f"{row['inference_kflops']:.1f}",
        f"{row['training_gflops']:,.1f}",
    )
