"""Pruning transformers without training: magnitude, Wanda, SparseGPT, masked refit and ALPS, from calibration text.

    python examples/one_shot_transformer.py
    python examples/one_shot_transformer.py --task minilm --seed 0
    python examples/one_shot_transformer.py --sparsity 0.5 0.8 --methods wanda sparsegpt

Two models: a decoder that is trained here on the source of the Python standard library (once; a few minutes on two
cores, then it is loaded), judged by its perplexity on files that it has not seen; and all-MiniLM-L6-v2 with its real
weights, judged by the cosine of its sentence embeddings to the dense ones. Every method sees the same calibration text
and prunes block after block (`jp.prune_sequential`). A seed draws other calibration text; the dense model is the same.

Zeros do not make dense kernels faster: this example is about what is lost; `shrink_transformer.py` makes a model
smaller. It prints a table, and writes `results.json` and a plot to `--output-dir`.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# So that `python examples/one_shot_transformer.py` finds its helpers from any folder.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jax
import matplotlib
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

import jaxprune as jp
from examples.language.tasks import Task, language_model, sentence_encoder
from examples.language.training import Config

matplotlib.use("Agg")
import matplotlib.pyplot as plt

METHODS: dict[str, Any] = {
    "magnitude": jp.posttraining.magnitude(),
    "wanda": jp.posttraining.wanda(),
    "sparsegpt": jp.posttraining.sparsegpt(),
    "wanda+refit": jp.posttraining.repaired(),
    "alps": jp.posttraining.alps(),
}


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    made.add_argument("--task", default="both", choices=["both", "language", "minilm"])
    made.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    made.add_argument("--sparsity", type=float, nargs="*", default=[0.5, 0.6, 0.7])
    made.add_argument("--nm", type=int, nargs=2, default=[2, 4], metavar=("N", "M"), help="N kept of M; 0 0 for none")
    made.add_argument("--seed", type=int, nargs="+", default=[0, 1, 2], help="of the calibration text")
    made.add_argument("--order", default="block", choices=["block", "op"])
    made.add_argument("--target", default="self", choices=["self", "dense"])
    made.add_argument("--samples", type=int, default=128, help="calibration windows, or sentences times four")
    made.add_argument("--held-out", type=int, default=256, help="windows, or pairs of sentences, to measure on")
    made.add_argument("--steps", type=int, default=Config.steps, help="of the training of the language model")
    made.add_argument("--data-dir", type=Path, default=None, help="a folder with text, or with MiniLM's files")
    made.add_argument("--output-dir", type=Path, default=Path("runs/one_shot_transformer"))
    return made


def settings(args: argparse.Namespace) -> list[tuple[str, dict[str, Any]]]:
    """The sparsities, with their names."""
    made: list[tuple[str, dict[str, Any]]] = [(f"{100 * s:.0f} %", {"sparsity": s}) for s in args.sparsity]
    n, m = args.nm
    return [*made, (f"{n}:{m}", {"structure": jp.NM(n, m)})] if m else made


def compare(task: Task, args: argparse.Namespace, progress: Progress) -> list[dict[str, Any]]:
    """Prunes a model by every method, sparsity and seed, and measures each."""
    runs = [(name, label, seed) for label, _ in settings(args) for name in args.methods for seed in args.seed]
    shares = dict(settings(args))
    bar = progress.add_task(task.name, total=len(runs))
    rows: list[dict[str, Any]] = [{"method": "dense", "sparsity": "", "seed": 0, **task.measure(task.params)}]
    for name, label, seed in runs:
        if name == "magnitude" and seed != args.seed[0]:  # it does not look at the data
            progress.advance(bar)
            continue
        start = time.perf_counter()
        pruned = jp.prune_sequential(
            task.apply_fn,
            task.params,
            task.batches(seed),
            METHODS[name],
            where=task.where,
            weights=task.weights,
            order=args.order,
            target=args.target if name in ("sparsegpt", "alps", "wanda+refit") else "self",
            **shares[label],
        )
        jax.block_until_ready(pruned.params)
        seconds = time.perf_counter() - start
        error = statistics.fmean(layer.error for layer in pruned.layers)
        masks = [mask for mask in jax.tree.leaves(pruned.masks) if mask.ndim]
        zeros = 1 - sum(int(mask.sum()) for mask in masks) / sum(mask.size for mask in masks)
        found = {"layer_error": error, "zeros": zeros, "seconds": seconds, **task.measure(pruned.params)}
        rows.append({"method": name, "sparsity": label, "seed": seed, **found})
        progress.advance(bar)
    return rows


def joined(rows: Sequence[dict[str, Any]], metrics: Sequence[str]) -> list[dict[str, Any]]:
    """Mean and sample standard deviation over the seeds."""
    groups: dict[tuple[str, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["sparsity"], row["method"]), []).append(row)
    made = []
    for (label, method), members in groups.items():
        line: dict[str, Any] = {"sparsity": label, "method": method, "seeds": [row["seed"] for row in members]}
        for key in (*metrics, "seconds"):
            values = [row[key] for row in members if key in row]
            spread = statistics.stdev(values) if len(values) > 1 else None
            line[key] = (statistics.fmean(values), spread) if values else None
        made.append(line)
    return made


def table(task: Task, lines: Sequence[dict[str, Any]], metrics: Sequence[str]) -> Table:
    """One line a method and sparsity."""
    seeds = max(len(line["seeds"]) for line in lines)
    made = Table(title=f"{task.name} ({task.source}); mean ± standard deviation over {seeds} calibration sets")
    for column in ("zeros", "method", *metrics, "seconds, with compilation"):
        made.add_column(column, justify="left" if column in ("zeros", "method") else "right")
    last = None
    for line in lines:
        if last not in (None, line["sparsity"]):
            made.add_section()
        last = line["sparsity"]
        cells = []
        for key in (*metrics, "seconds"):
            mean, spread = line[key] if line[key] is not None else (None, None)
            digits = 1 if key == "seconds" else 3
            shown = "" if mean is None else f"{mean:.{digits}f}"
            cells.append(shown if spread is None else f"{shown} ± {spread:.{digits}f}")
        made.add_row(line["sparsity"], line["method"], *cells)
    return made


def plot(task: Task, lines: Sequence[dict[str, Any]], metric: str, path: Path) -> None:
    """The first metric against the sparsity, a curve a method, with error bars."""
    figure, axes = plt.subplots(figsize=(6.4, 4.2), layout="constrained")
    labels = list(dict.fromkeys(line["sparsity"] for line in lines if line["sparsity"]))
    for k, method in enumerate(dict.fromkeys(line["method"] for line in lines if line["sparsity"])):
        own = [line for line in lines if line["method"] == method]
        # N:M is another structure: its points are not joined with those of the sparsities.
        for pattern, style in ((False, "o-"), (True, "o")):
            part = [line for line in own if (":" in line["sparsity"]) == pattern]
            places = [labels.index(line["sparsity"]) for line in part]
            means, spread = [line[metric][0] for line in part], [line[metric][1] or 0.0 for line in part]
            label = None if pattern and len(part) < len(own) else method
            axes.errorbar(places, means, spread, fmt=style, color=f"C{k}", capsize=3, label=label)
    dense = next(line[metric][0] for line in lines if line["method"] == "dense")
    axes.axhline(dense, color="black", linestyle=":", label="dense")
    if task.better == "lower":
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:.0f}")
        axes.yaxis.set_minor_formatter("{x:.0f}")
    axes.set_xticks(range(len(labels)), labels)
    axes.set_xlabel("zeros in the pruned kernels")
    axes.set_ylabel(f"{metric} ({task.better} is better)")
    axes.set_title(task.name)
    axes.legend()
    figure.savefig(path, dpi=150)
    plt.close(figure)


def main(argv: Sequence[str] | None = None) -> dict[str, list[dict[str, Any]]]:
    """Runs the comparison."""
    args = parser().parse_args(argv)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    console = Console()
    tasks = []
    if args.task in ("both", "language"):
        config = Config(steps=args.steps)
        folder = args.output_dir / "dense"
        tasks.append(language_model(config, folder, args.data_dir, args.samples, args.held_out))
    if args.task in ("both", "minilm"):
        tasks.append(sentence_encoder(args.data_dir, 4 * args.samples, args.held_out))
    results: dict[str, list[dict[str, Any]]] = {}
    for task in tasks:
        with Progress(console=console) as progress:
            rows = compare(task, args, progress)
        metrics = [key for key in rows[0] if key not in ("method", "sparsity", "seed")]
        lines = joined(rows, metrics)
        console.print(table(task, lines, metrics))
        plot(task, lines, metrics[0], args.output_dir / f"{task.name.replace(' ', '_')}.png")
        results[task.name] = rows
    written = {"settings": {key: str(value) for key, value in vars(args).items()}, "results": results}
    (args.output_dir / "results.json").write_text(json.dumps(written, indent=1))
    console.print(f"written to {args.output_dir}")
    return results


if __name__ == "__main__":
    main()
