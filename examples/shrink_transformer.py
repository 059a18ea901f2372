"""A smaller transformer without training: heads, MLP features and whole blocks removed, and the rest repaired.

    python examples/shrink_transformer.py
    python examples/shrink_transformer.py --macs 0.9 0.8 0.7 0.6 --methods random flap "flap + repair"
    python examples/shrink_transformer.py --steps 2800 --macs 0.9 0.8 0.7 --samples 128 --held-out 256 --repetitions 100

The decoder of `one_shot_transformer.py` (trained here once on the source of the Python standard library) is cut to a
share of its multiply-adds. Scores by chance, by weights and by fluctuation (FLAP) choose heads and MLP features of all
blocks together; then either nothing, or a least-squares repair of the layers that read what was cut, from calibration
text. Or whole blocks are left out. Everything is physically smaller: latency is measured on what runs.

It prints a table, and writes `report.html`, `report.json` and a plot to `--output-dir`. A seed draws other calibration
text. The default, a short training of the decoder, takes under five minutes on two CPU cores; the last line above is
what the README's table was made by.
"""

from __future__ import annotations

import argparse
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

import jaxprune as jp
from examples.language import training
from examples.language.evaluation import make_evaluator
from examples.language.training import Config
from examples.phases.latency import medians
from jaxprune.measure.figure import Kind
from jaxprune.pipeline.records import Records

PyTree = Any
METHODS = ("random", "magnitude", "magnitude + repair", "flap", "flap + repair", "blocks")
KINDS: dict[str, Kind] = {
    "macs": "modelled",
    "weights": "measured",
    "bits per byte": "measured",
    "ms, batch 1": "measured",
    "dense / this": "measured",
}
NOTES = (
    "No training after the cut. The spread is that of the calibration text, or of random scores.",
    "Whole blocks go one at a time: their multiply-adds can be fewer than asked for.",
)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    made.add_argument("--macs", type=float, nargs="+", default=[0.9, 0.7], help="shares of the multiply-adds")
    made.add_argument("--methods", nargs="+", default=list(METHODS), choices=METHODS)
    made.add_argument("--seed", type=int, nargs="+", default=[0, 1, 2], help="of the calibration text")
    made.add_argument("--samples", type=int, default=32, help="calibration windows")
    made.add_argument("--held-out", type=int, default=128, help="windows to measure on")
    made.add_argument("--steps", type=int, default=500, help="of the training of the dense model")
    made.add_argument("--repetitions", type=int, default=30, help="of the latency measurements")
    made.add_argument("--data-dir", type=Path, default=None, help="a folder with text")
    made.add_argument("--resume", action="store_true", help="keep what has finished, and go on from what is there")
    made.add_argument("--model-dir", type=Path, default=Path("outputs/one_shot_transformer"), help="of the dense model")
    made.add_argument("--output-dir", type=Path, default=Path("outputs/shrink_transformer"))
    return made


def cut(
    model: jp.Model, params: PyTree, batches: list[jax.Array], method: str, macs: float, seed: int
) -> tuple[PyTree, Callable[..., Any]]:
    """Removes heads and MLP features to a share of the multiply-adds; gives the smaller parameters and function."""
    inner = [name for name in model.groups if name.startswith("block_")]
    if method.startswith("flap"):
        stats = jp.calibrate(model.apply_fn, params, batches, jp.stats.moments)
        scores = jp.posttraining.flap_scores(model, params, stats)
    elif method == "random":
        scores = jp.group_scores(model, params, jp.scores.random, key=jax.random.key(seed))
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
) -> tuple[PyTree, Callable[..., Any]]:
    """Leaves out the blocks without which the calibration loss rises least."""

    def apply_of(params: PyTree) -> Callable[..., Any]:
        depth = jp.depth.count(params, "block_{}")
        return training.make_apply(training.make_model(dataclasses.replace(config, depth=depth)))

    @jax.jit
    def loss(params: PyTree) -> jax.Array:
        return jnp.mean(training.token_losses(apply_of(params), params, batches[0]))

    def cost(params: PyTree) -> int:
        return jp.trace(apply_of(params), params, batches[0][:1]).cost().macs

    whole = cost(params)
    while cost(params) > macs * whole and jp.depth.count(params, "block_{}") > 1:
        changes = jp.depth.loss_changes(loss, params, "block_{}")
        params = jp.depth.remove(params, "block_{}", [int(changes.argmin())])
    return params, apply_of(params)


def compare(args: argparse.Namespace, config: Config, progress: Progress) -> jp.Report:
    """Makes every smaller model, and measures each beside the dense one."""
    dense_model, dense, data = training.train_or_load(config, args.model_dir / f"dense-{args.steps}", args.data_dir)
    apply = training.make_apply(dense_model)
    example = jnp.zeros((1, config.context), jnp.int32)
    model = jp.trace(apply, dense, example)
    one = training.calibration_batches(data, 1, 1, config.context)[0]

    def measured(fn: Callable[..., Any], params: PyTree) -> dict[str, float]:
        quality = make_evaluator(fn, data, "test", config.context, args.held_out)(params)
        compiled, base = jax.jit(fn), jax.jit(apply)
        times = medians({"dense": lambda: base(dense, one), "this": lambda: compiled(params, one)}, args.repetitions)
        return {
            "perplexity": quality.perplexity,
            "bits per byte": quality.bits_per_byte,
            "macs": jp.trace(fn, params, example).cost().macs,
            "weights": sum(leaf.size for leaf in jax.tree.leaves(params)),
            "ms, batch 1": times["this"],
            "dense / this": times["dense"] / times["this"],
        }

    def smaller(share: float, method: str, seed: int) -> dict[str, float]:
        batches = training.calibration_batches(data, args.samples // 32, 32, config.context, seed)
        if method == "blocks":
            params, fn = drop_blocks(config, dense, batches, share)
        else:
            params, fn = cut(model, dense, batches, method, share, seed)
        return measured(fn, params)

    settings = {name: getattr(args, name) for name in ("steps", "samples", "held_out", "repetitions")}
    records = Records(
        args.output_dir / "trials" if args.resume else None, settings | {"data": data.fingerprint(), **vars(config)}
    )
    runs = [(share, method, seed) for share in args.macs for method in args.methods for seed in args.seed]
    # Magnitude does not look at the data.
    runs = [run for run in runs if run[1] != "magnitude" or run[2] == args.seed[0]]
    found = measured(apply, dense)
    trials = [jp.Trial("dense", 0.0, 0, found.pop("perplexity"), found)]
    for share, method, seed in progress.track(runs, description="shrinking"):
        key = f"{method} {share} {seed}"
        if (found := records.get(key)) is None:
            records[key] = found = smaller(share, method, seed)
        found = dict(found)
        trials.append(jp.Trial(method, round(1 - share, 6), seed, found.pop("perplexity"), found))
    return jp.Report(
        "A decoder cut without training",
        "perplexity",
        trials,
        notes=[f"{data.source}.", *NOTES],
        settings=settings | {"seeds": args.seed},
        axis="MACs removed",
        better="lower",
        kinds=KINDS,
    )


def main(argv: Sequence[str] | None = None) -> jp.Report:
    """Runs the comparison; returns its report."""
    args = parser().parse_args(argv)
    console = Console()
    with Progress(console=console) as progress:
        report = compare(args, Config(steps=args.steps), progress)
    report.print(console)
    console.print(f"written to {report.save(args.output_dir)}", soft_wrap=True)
    return report


if __name__ == "__main__":
    main()
