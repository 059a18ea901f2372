"""Federated averaging with sparse updates: what accuracy costs in bytes sent, dense and under masks.

    python examples/federated.py
    python examples/federated.py --partition iid --sparsity 0.9 0.98 --seed 0 1 2 3 4
    python examples/federated.py --part validation      # what the recipe was chosen on
    python examples/federated.py --resume               # keeps finished runs, and goes on after a kill

Ten clients hold the 4,000 training images of `mnist_5k`, most of them two kinds of digits only. In each round all get
the model, train it on their own images, and send it back; the server takes the mean. The server is an Optax optimiser
(SGD with learning rate 1 on the mean change), so that to prune is to wrap it in `jp.sparsify`:

- `random`: masks drawn once, the control;
- `snip`: masks from the gradients of all clients before the first round, which costs one dense exchange;
- `gmp`: dense at first, sparser every few rounds;
- `rigl`: sparse from the start; every few rounds the clients also send their largest gradients where no weight is, and
  the server exchanges weights.

Only kept weights travel, and what has changed in the masks. Every byte is counted in the messages themselves, which are
written and read again. It prints a table, and writes `report.html`, `report.json`, `runs.json` and plots to
`--output-dir`.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

# So that `python examples/federated.py` finds its helpers from any folder.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jax
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from examples.data import images
from examples.federation import figure, rounds
from examples.federation.clients import Network, partition
from jaxprune.measure import Figure
from jaxprune.pipeline.records import Records, write_json
from jaxprune.report import Report, Trial

PyTree = Any
VALIDATION = 500


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    add = parser.add_argument
    add("--dataset", choices=("mnist_5k", "mnist", "fashion_mnist"), default="mnist_5k")
    add("--data-dir", type=Path, help="a file or folder of yours with the images")
    add("--method", nargs="+", choices=rounds.NAMES, default=list(rounds.NAMES))
    add("--sparsity", nargs="+", type=float, default=[0.8, 0.95], help="of the hidden kernels")
    add("--seed", nargs="+", type=int, default=[0, 1, 2])
    add("--part", choices=("validation", "test"), default="test", help="choose on validation")
    add("--partition", choices=("shards", "iid"), default="shards", help="shards: most clients have two labels")
    add("--clients", type=int, default=10)
    add("--rounds", type=int, default=30)
    add("--every", type=int, default=2, help="rounds between changes of masks")
    add("--epochs", type=int, default=2, help="passes of a client over its images in a round")
    add("--batch-size", type=int, default=25)
    add("--learning-rate", type=float, default=0.2)
    add("--widths", nargs=2, type=int, default=[128, 64], help="hidden units")
    add("--resume", action="store_true", help="keep finished runs in OUTPUT_DIR/finished, and go on from them")
    add("--output-dir", type=Path, default=Path("outputs/federated"))
    args = parser.parse_args(argv)
    for option in ("clients", "rounds", "every", "epochs", "batch_size"):
        if getattr(args, option) < 1:
            parser.error(f"--{option.replace('_', '-')} {getattr(args, option)}: must be 1 or more")
    for sparsity in args.sparsity:
        if not 0 < sparsity < 1:
            parser.error(f"--sparsity {sparsity}: a fraction of zeros between 0 and 1 is allowed")
    for option in ("method", "sparsity", "seed"):  # naming one twice is no reason to train twice
        setattr(args, option, list(dict.fromkeys(getattr(args, option))))
    return args


def plan_runs(args: argparse.Namespace) -> list[tuple[str, float, int]]:
    """Method, sparsity and seed of every run; those that share a compiled step follow each other."""
    pairs = [(m, s) for m in args.method for s in ([0.0] if m == "dense" else args.sparsity)]
    return [(method, sparsity, seed) for method, sparsity in pairs for seed in args.seed]


def parts(data: images.ImageData, part: str) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Images and labels to train on, and those held out; the test images are not touched for validation."""
    if part == "test":
        return data.train_x, data.train_y, data.test_x, data.test_y
    held_out, train = slice(0, VALIDATION), slice(VALIDATION, None)
    return data.train_x[train], data.train_y[train], data.train_x[held_out], data.train_y[held_out]


def execute_all(args: argparse.Namespace, data: images.ImageData, console: Console) -> list[dict[str, Any]]:
    """Trains what is not finished yet."""
    train_x, train_y, test_x, test_y = parts(data, args.part)
    network = Network((args.widths[0], args.widths[1]), data.classes)
    settings = rounds.Settings(args.rounds, args.every, args.epochs, args.batch_size, args.learning_rate)
    functions = rounds.compiled(network, settings)
    apply = jax.jit(network.apply)
    pixels = test_x.reshape(len(test_x), -1).astype(np.float32) / 255

    def evaluate(params: PyTree) -> float:
        return float(np.mean(np.argmax(np.asarray(apply(params, pixels)), axis=-1) == test_y))

    shared = {n: getattr(args, n) for n in ("dataset", "part", "partition", "clients", "widths")}
    records = Records(args.output_dir / "finished" if args.resume else None, dataclasses.asdict(settings) | shared)
    runs = plan_runs(args)
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed:.0f}/{task.total:.0f} rounds"),
    )
    done: list[dict[str, Any]] = []
    with Progress(*columns, TimeRemainingColumn(), console=console) as progress:
        bar = progress.add_task("", total=len(runs) * args.rounds)

        def advance() -> None:
            progress.advance(bar)

        for method, sparsity, seed in runs:
            name = f"{method}-{sparsity:g}-seed{seed}"
            progress.update(bar, description=name)
            result = records.get(name)
            if result is None:
                clients = partition(train_x, train_y, args.clients, args.partition, seed)
                result = {"method": method, "sparsity": sparsity, "seed": seed}
                result |= rounds.run(functions, clients, method, sparsity, seed, evaluate, advance)
                records[name] = result
            else:
                progress.advance(bar, args.rounds)
            done.append(result)
    return done


def table_of(runs: Sequence[dict[str, Any]]) -> Table:
    """One line a method and sparsity: accuracy, and what was sent for it."""
    groups: dict[tuple[str, float], list[dict[str, Any]]] = {}
    for run in runs:
        groups.setdefault((run["method"], run["sparsity"]), []).append(run)
    dense = statistics.fmean(_total(run) for run in runs if run["method"] == "dense") if ("dense", 0.0) in groups else 0
    table = Table(title="Accuracy and bytes sent by all clients (lengths of messages, measured)", title_justify="left")
    for column in ("method", "zeros %", "accuracy %", "MB up", "MB down", "of it for\nmasks MB", "dense /\nthis"):
        table.add_column(column, justify="left" if column == "method" else "right", no_wrap=True)
    for (method, sparsity), members in groups.items():
        accuracy = [100 * run["accuracy"][-1] for run in members]
        spread = f" ± {statistics.stdev(accuracy):.1f}" if len(members) > 1 else ""

        def megabytes(of: Callable[[dict[str, Any]], float], members: list[dict[str, Any]] = members) -> float:
            return statistics.fmean(of(run) for run in members) / 1e6

        total = megabytes(_total)
        table.add_row(
            method,
            f"{100 * sparsity:g}",
            f"{statistics.fmean(accuracy):.1f}{spread}",
            f"{megabytes(lambda run: run['up'][-1]):.2f}",
            f"{megabytes(lambda run: run['down'][-1]):.2f}",
            f"{megabytes(lambda run: run['masks_up'] + run['masks_down']):.2f}",
            f"{dense / 1e6 / total:.1f} x" if dense else "-",
        )
    return table


def accuracy_within(run: dict[str, Any], budget: float) -> float:
    """The accuracy after the last round that ends within a number of bytes; 0 where not one round does."""
    within = [a for a, up, down in zip(run["accuracy"], run["up"], run["down"], strict=True) if up + down <= budget]
    return within[-1] if within else 0.0


def report_of(runs: Sequence[dict[str, Any]], args: argparse.Namespace, source: str) -> Report:
    """The report: accuracy after the last round, and the bytes of all messages."""
    trials = [
        Trial(
            run["method"],
            run["sparsity"],
            run["seed"],
            run["accuracy"][-1],
            {"bytes_up": run["up"][-1], "bytes_down": run["down"][-1], "nonzero_weights": run["nonzero"]},
        )
        for run in runs
    ]
    sent: dict[str, list[float]] = {}
    for run in runs:
        name = "dense" if run["method"] == "dense" else f"{run['method']}, {100 * run['sparsity']:g} % pruned"
        sent.setdefault(name, []).append(_total(run))
    figures = {
        name: Figure(statistics.fmean(values), "bytes", "measured", "lengths of all messages", repetitions=len(values))
        for name, values in sent.items()
    }
    notes = [f"Images: {source}. Accuracy on the {args.part} images after {args.rounds} rounds."]
    budget = max((_total(run) for run in runs if run["method"] == "random"), default=0.0)
    dense = [accuracy_within(run, budget) for run in runs if run["method"] == "dense"]
    if dense and budget:
        notes.append(
            f"Within {budget / 1e6:.1f} MB, what all rounds take with random masks at {min(args.sparsity):g}, dense "
            f"training reaches an accuracy of {statistics.fmean(dense):.3f}."
        )
    keep = {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()}
    return Report(
        f"Federated averaging on {args.dataset}, {args.clients} clients, {args.partition}",
        "accuracy",
        trials,
        costs={"traffic": figures},
        notes=notes,
        settings=keep,
        kinds={"bytes_up": "measured", "bytes_down": "measured", "nonzero_weights": "measured"},
    )


def main(argv: Sequence[str] | None = None) -> Report:
    """Runs the comparison.

    Args:
      argv: the command line; by default that of the process.

    Returns:
      The report.
    """
    args = parse(argv)
    console = Console()
    began = time.perf_counter()
    data = images.load(args.dataset, args.data_dir)
    console.print(f"{data.name}: {len(data.train_x):,} training images, from {data.source}", soft_wrap=True)
    runs = execute_all(args, data, console)
    report = report_of(runs, args, data.source)
    console.print(table_of(runs))
    for line in (*report.not_improved(), *report.notes):
        console.print(f"- {line}")
    report.save(args.output_dir)
    write_json(args.output_dir / "runs.json", {"settings": report.settings, "runs": runs})
    figure.draw(runs, report.title, args.output_dir / "accuracy_by_bytes.png")
    seconds = time.perf_counter() - began
    console.print(f"{seconds:.0f} s (measured). Wrote report.html and accuracy_by_bytes.png to {args.output_dir}")
    return report


def _total(run: dict[str, Any]) -> float:
    return float(run["up"][-1] + run["down"][-1])


if __name__ == "__main__":
    main()
