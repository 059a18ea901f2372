"""A residual CNN that becomes smaller while it is trained, against the same network trained dense.

    python examples/shrink_cnn.py
    python examples/shrink_cnn.py --dataset mnist_5k --steps 300
    python examples/shrink_cnn.py --macs 0.25 --cuts 3 --seed 0 1 2 3 4
    python examples/shrink_cnn.py --width 48 --steps 600 --macs 0.08 --seed 0 1 2

Both train the same network from the same weights on the same batches for the same number of steps. The smaller one is
cut between phases: a plan is drawn every few steps from the norms of the channels, the first cut comes when these plans
have settled (early bird) or at the latest after an eighth of the training, and parameters, batch statistics and
momentum are cut together. After that every step is faster. The original Flax module runs at all sizes.

All times are measured in this process, without compilation, which is given beside them. The default takes two to three
minutes on two CPU cores; the last line above, which made the README's table, about 20. It prints a table and writes
`shrink_cnn.json` to `--output-dir`.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# So that `python examples/shrink_cnn.py` finds its helpers from any folder.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jax
import jax.numpy as jnp
import numpy as np
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

import jaxprune as jp
from examples.classification.training import MemoryFeed, accuracy
from examples.data import images
from examples.phases.latency import medians
from examples.phases.training import Outcome, Settings, network, run

BATCHES = (1, 64)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    made.add_argument("--dataset", default="fashion_mnist", choices=sorted(images.DATASETS))
    made.add_argument("--data-dir", type=Path, default=None, help="a folder with the files of the data set")
    made.add_argument("--steps", type=int, default=400)
    made.add_argument("--width", type=int, default=24, help="channels of the first stage, before any cut")
    made.add_argument("--batch-size", type=int, default=64)
    made.add_argument("--macs", type=float, default=0.2, help="share of the multiply-adds that stays")
    made.add_argument("--cuts", type=int, default=2, help="in how many cuts that share is reached")
    made.add_argument("--rate", type=float, default=0.1, help="first learning rate")
    made.add_argument("--lasso", type=float, default=1e-4, help="strength of the group lasso before the last cut")
    made.add_argument("--seed", type=int, nargs="+", default=[0])
    made.add_argument("--repetitions", type=int, default=200, help="of the latency measurements")
    made.add_argument("--output-dir", type=Path, default=Path("outputs/shrink_cnn"))
    return made


def compare(feed: MemoryFeed, args: argparse.Namespace, seed: int, progress: Progress) -> dict[str, Any]:
    """Trains both networks of one seed and measures them."""
    outcomes: dict[str, Outcome] = {}
    for name, macs in (("dense", 1.0), ("shrunk", args.macs)):
        task = progress.add_task(f"{name}, seed {seed}", total=args.steps)
        settings = Settings(args.steps, args.width, args.rate, macs, args.cuts, lasso=args.lasso)
        outcomes[name] = run(feed, settings, seed, lambda done, task=task: progress.update(task, completed=done))
        progress.remove_task(task)
    x, _ = feed.first_batch(jax.random.key(seed))
    row: dict[str, Any] = {"seed": seed, "history": outcomes["shrunk"].history}
    for name, outcome in outcomes.items():
        cost = jp.trace(network, outcome.variables, x[:1]).cost()
        row[name] = {
            "accuracy": accuracy(network, outcome.variables, feed),
            "seconds": outcome.seconds,
            "compiling": outcome.compiling,
            "macs": cost.macs,
            "parameters": cost.parameters,
        }
    compiled = jax.jit(network)
    for size in BATCHES:
        batch = jnp.resize(x, (size, *x.shape[1:]))
        calls = {name: (lambda o=o, batch=batch: compiled(o.variables, batch)) for name, o in outcomes.items()}
        for name, milliseconds in medians(calls, args.repetitions).items():
            row[name][f"ms_batch_{size}"] = milliseconds
    return row


def table(rows: Sequence[dict[str, Any]]) -> Table:
    """One line a network, with mean and standard deviation over the seeds, and one with the ratios."""
    counted = f"over {len(rows)} seeds: mean ± standard deviation" if len(rows) > 1 else f"with seed {rows[0]['seed']}"
    made = Table(title=f"measured {counted}", title_justify="left")
    columns = {"training\ns": "seconds", "compiling\ns": "compiling", "MACs\nM": "macs", "weights\nk": "parameters"}
    columns |= {f"ms,\nbatch {size}": f"ms_batch_{size}" for size in BATCHES}
    units = {"macs": 1e6, "parameters": 1e3}
    for column in ("", "accuracy\n%", *columns):
        made.add_column(column, justify="right" if column else "left", overflow="fold")
    for name in ("dense", "shrunk"):
        accuracies = [100 * row[name]["accuracy"] for row in rows]
        spread = f" ±{np.std(accuracies, ddof=1):.2f}" if len(rows) > 1 else ""
        means = [np.mean([row[name][key] for row in rows]) / units.get(key, 1) for key in columns.values()]
        made.add_row(name, f"{np.mean(accuracies):.2f}{spread}", *(f"{mean:,.2f}" for mean in means))
    lost = np.mean([100 * (row["dense"]["accuracy"] - row["shrunk"]["accuracy"]) for row in rows])
    ratios = [np.median([row["dense"][key] / row["shrunk"][key] for row in rows]) for key in columns.values()]
    made.add_section()
    made.add_row("dense / shrunk", f"{lost:.2f} lost", *(f"{ratio:.1f} x" for ratio in ratios))
    return made


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Runs the comparison."""
    args = parser().parse_args(argv)
    data = images.load(args.dataset, args.data_dir)
    feed = MemoryFeed(data, args.batch_size)
    console = Console()
    console.print(
        f"{data.name}: {len(data.train_x):,} training and {len(data.test_x):,} test images, from {data.source}"
    )
    rows = []
    with Progress(console=console) as progress:
        for seed in args.seed:
            rows.append(compare(feed, args, seed, progress))
            for line in rows[-1]["history"]:
                console.print(f"seed {seed}: {line}")
    console.print(table(rows))
    args.output_dir.mkdir(parents=True, exist_ok=True)
    (args.output_dir / "shrink_cnn.json").write_text(json.dumps(rows, indent=2))
    return rows


if __name__ == "__main__":
    main()
