"""A smaller transformer without training: heads, MLP features and whole blocks removed, and the rest repaired.

    python examples/shrink_transformer.py
    python examples/shrink_transformer.py --macs 0.9 0.8 0.7 0.6 --seed 0 1 2

The decoder of `one_shot_transformer.py` (trained here once on the source of the Python standard library) is cut to a
share of its multiply-adds. Scores by weights and by fluctuation (FLAP) choose heads and MLP features of all
blocks together; then either nothing, or a least-squares repair of the layers that read what was cut, from calibration
text. Or whole blocks are left out. Everything is physically smaller: latency is measured on what runs.

It prints a table and writes `results.json` to `--output-dir`. A seed draws other calibration text.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

# So that `python examples/shrink_transformer.py` finds its helpers from any folder.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import dataclasses

import jax
import jax.numpy as jnp
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

import jaxprune as jp
from examples.language import training
from examples.language.evaluation import make_evaluator
from examples.language.training import Config
from examples.phases.latency import medians

PyTree = Any
METHODS = ("magnitude", "magnitude + repair", "flap", "flap + repair", "blocks")


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    made.add_argument("--macs", type=float, nargs="+", default=[0.9, 0.8, 0.7], help="shares of the multiply-adds")
    made.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    made.add_argument("--seed", type=int, nargs="+", default=[0, 1, 2], help="of the calibration text")
    made.add_argument("--samples", type=int, default=128, help="calibration windows")
    made.add_argument("--held-out", type=int, default=256, help="windows to measure on")
    made.add_argument("--steps", type=int, default=Config.steps, help="of the training of the dense model")
    made.add_argument("--repetitions", type=int, default=100, help="of the latency measurements")
    made.add_argument("--data-dir", type=Path, default=None, help="a folder with text")
    made.add_argument("--output-dir", type=Path, default=Path("runs/one_shot_transformer"))
    return made


def cut(
    model: jp.Model, params: PyTree, batches: list[jax.Array], method: str, macs: float
) -> tuple[PyTree, Callable[..., Any]]:
    """Removes heads and MLP features to a share of the multiply-adds; gives the smaller parameters and function."""
    inner = [name for name in model.groups if name.startswith("block_")]
    if method.startswith("flap"):
        stats = jp.calibrate(model.apply_fn, params, batches, jp.stats.moments)
        scores = jp.posttraining.flap_scores(model, params, stats)
    else:
        scores = jp.group_scores(model, params, jp.scores.magnitude, power=2.0)
    scores = {name: score for name, score in scores.items() if name in inner}
    plan = jp.select(model, scores, jp.Budget(macs=macs), min_keep=1)
    if method.endswith("repair"):
        stats = jp.calibrate(model.apply_fn, params, batches, jp.stats.gram)
        params = jp.posttraining.repair_consumers(model, plan, params, stats)
    return jp.shrink(model, plan, params), jp.shrunk_function(model, plan)


def drop_blocks(
    config: Config, params: PyTree, batches: list[jax.Array], macs: float
) -> tuple[PyTree, Callable[..., Any], Config]:
    """Leaves out the blocks without which the calibration loss rises least."""

    def apply_of(depth: int) -> Callable[..., Any]:
        return training.make_apply(training.make_model(dataclasses.replace(config, depth=depth)))

    @jax.jit
    def loss(params: PyTree) -> jax.Array:
        apply = apply_of(jp.depth.count(params, "block_{}"))
        return jnp.mean(training.token_losses(apply, params, batches[0]))

    def cost(params: PyTree) -> int:
        apply = apply_of(jp.depth.count(params, "block_{}"))
        return jp.trace(apply, params, batches[0][:1]).cost().macs

    whole = cost(params)
    while cost(params) > macs * whole and jp.depth.count(params, "block_{}") > 1:
        changes = jp.depth.loss_changes(loss, params, "block_{}")
        params = jp.depth.remove(params, "block_{}", [int(changes.argmin())])
    depth = jp.depth.count(params, "block_{}")
    return params, apply_of(depth), dataclasses.replace(config, depth=depth)


def compare(args: argparse.Namespace, config: Config, progress: Progress) -> list[dict[str, Any]]:
    """Makes every smaller model, and measures each beside the dense one."""
    dense_model, dense, data = training.train_or_load(config, args.output_dir / "dense", args.data_dir)
    apply = training.make_apply(dense_model)
    example = jnp.zeros((1, config.context), jnp.int32)
    model = jp.trace(apply, dense, example)
    one = training.calibration_batches(data, 1, 1, config.context)[0]

    def measured(fn: Callable[..., Any], params: PyTree) -> dict[str, float]:
        quality = make_evaluator(fn, data, "test", config.context, args.held_out)(params)
        compiled, base = jax.jit(fn), jax.jit(apply)
        times = medians({"dense": lambda: base(dense, one), "this": lambda: compiled(params, one)}, args.repetitions)
        cost = jp.trace(fn, params, example).cost()
        return {
            "perplexity": quality.perplexity,
            "macs": cost.macs,
            "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
            "speed-up": times["dense"] / times["this"],
            "ms": times["this"],
        }

    rows = [{"method": "dense", "share": 1.0, "seed": 0, **measured(apply, dense)}]
    runs = [(share, method, seed) for share in args.macs for method in args.methods for seed in args.seed]
    bar = progress.add_task("shrinking", total=len(runs))
    for share, method, seed in runs:
        progress.advance(bar)
        if method == "magnitude" and seed != args.seed[0]:  # it does not look at the data
            continue
        batches = training.calibration_batches(data, args.samples // 32, 32, config.context, seed)
        if method == "blocks":
            params, fn, _ = drop_blocks(config, dense, batches, share)
        else:
            params, fn = cut(model, dense, batches, method, share)
        rows.append({"method": method, "share": share, "seed": seed, **measured(fn, params)})
    return rows


def table(rows: Sequence[dict[str, Any]]) -> Table:
    """One line a share and method, with mean and standard deviation over the seeds."""
    made = Table(title="no training after the cut; mean ± standard deviation over the calibration sets")
    for column in ("MACs asked", "method", "perplexity", "MACs", "parameters", "ms, batch 1", "dense / this"):
        made.add_column(column, justify="left" if column == "method" else "right")
    groups: dict[tuple[float, str], list[dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["share"], row["method"]), []).append(row)
    for (share, method), members in groups.items():
        values = {key: [row[key] for row in members] for key in members[0] if key not in ("method", "share", "seed")}
        spread = f" ± {statistics.stdev(values['perplexity']):.2f}" if len(members) > 1 else ""
        made.add_row(
            f"{share:.2f}",
            method,
            f"{statistics.fmean(values['perplexity']):.2f}{spread}",
            f"{statistics.fmean(values['macs']) / 1e6:.1f} M",
            f"{statistics.fmean(values['parameters']) / 1e3:,.0f} k",
            f"{statistics.median(values['ms']):.2f}",
            f"{statistics.median(values['speed-up']):.2f} x",
        )
    return made


def main(argv: Sequence[str] | None = None) -> list[dict[str, Any]]:
    """Runs the comparison."""
    args = parser().parse_args(argv)
    args.output_dir.mkdir(parents=True, exist_ok=True)
    console = Console()
    with Progress(console=console) as progress:
        rows = compare(args, Config(steps=args.steps), progress)
    console.print(table(rows))
    (args.output_dir / "shrink_results.json").write_text(json.dumps(rows, indent=1))
    console.print(f"written to {args.output_dir}")
    return rows


if __name__ == "__main__":
    main()
