"""Collaborative filtering on MovieLens-100k: what is left of the embedding tables when most of them is pruned?

    python examples/recommendation.py
    python examples/recommendation.py --model factorisation --structure element --sparsity 0.9 0.98 --seed 0 1 2 3 4
    python examples/recommendation.py --part validation          # what the recipes were chosen on
    python examples/recommendation.py --resume                   # keeps finished trainings, and goes on after a kill

Two models: matrix factorisation of the ratings (RMSE), and neural collaborative filtering of who rated what (NDCG@10
and the hit rate at 10 for one held-out item among 99 others). Their tables are pruned by single weights, by whole rows
(a user or an item is then left with its bias) and by whole dimensions (which are cut out of both tables). Each is
compared with the same model dense and pruned at random, and with the baselines that have no tables at all: the mean of
all ratings, the biases of users and items, the popularity of items.

It prints a table for each, and writes `report.html`, `report.json` and plots to a folder of `--output-dir` each.
"""

from __future__ import annotations

import argparse
import dataclasses
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# So that `python examples/recommendation.py` finds its helpers from any folder.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jax
import optax
from rich.console import Console

import jaxprune as jp
from examples.data import ratings
from examples.models.recommender import TABLES
from examples.recommender import methods, sizes, splits, tasks
from jaxprune import measure, pipeline
from jaxprune.pipeline.records import Records
from jaxprune.report import Report

PyTree = Any
DEFAULT_STRUCTURES = {"factorisation": ("element", "row", "dimension"), "neural": ("element",)}


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    add = parser.add_argument
    add("--data-dir", type=Path, help="u.data, ml-100k.inter or ml-100k.zip of yours, or their folder")
    add("--model", nargs="+", choices=tasks.MODELS, default=list(tasks.MODELS))
    add("--structure", nargs="+", choices=tuple(methods.STRUCTURES), help="default: all; for neural: element")
    add("--sparsity", nargs="+", type=float, help="default: 0.8 0.95; for rows and for neural 0.5 0.8")
    add("--seed", nargs="+", type=int, default=[0, 1, 2])
    add("--part", choices=splits.PARTS, default="test", help="which part is held out; choose on validation")
    add("--steps", type=int, help="default: " + ", ".join(f"{r.steps} for {m}" for m, r in tasks.RECIPES.items()))
    add("--width", type=int, help="numbers in a row of a table")
    add("--resume", action="store_true", help="keep finished trainings in OUTPUT_DIR/trials, and go on from them")
    add("--output-dir", type=Path, default=Path("outputs/recommendation"))
    args = parser.parse_args(argv)
    for option in ("steps", "width"):
        value = getattr(args, option)
        if value is not None and value < 1:
            parser.error(f"--{option} {value}: must be 1 or more")
    for sparsity in args.sparsity or ():
        if not 0 < sparsity < 1:
            parser.error(f"--sparsity {sparsity}: a fraction of zeros between 0 and 1 is allowed")
    return args


def recipe_of(model: str, args: argparse.Namespace) -> tasks.Recipe:
    """The recipe of a model with what the command line changes."""
    given = {name: getattr(args, name) for name in ("steps", "width") if getattr(args, name) is not None}
    return dataclasses.replace(tasks.RECIPES[model], **given)


def compare(model: str, structure: str, data: ratings.RatingData, args: argparse.Namespace) -> Report:
    """Trains one model under one structure with all its methods, sparsities and seeds."""
    recipe = recipe_of(model, args)
    task = tasks.TASKS[model](data, args.part, recipe)
    params = jax.eval_shape(task.init, jax.random.key(0))
    folder: Path | None = None
    if args.resume:
        kept = args.output_dir / "trials" / f"{model}-{structure}"
        Records(kept, dataclasses.asdict(recipe) | {"part": args.part})  # refuses another recipe or part
        folder = kept / "finished"

    def measured(apply: tasks.Apply, params: PyTree) -> dict[str, float]:
        return task.measure(apply, params) | sizes.sizes(task.apply, params, task.example, task.held_out)

    rate = optax.cosine_decay_schedule(recipe.learning_rate, recipe.steps)
    compared = jp.compare(
        task.apply,
        task.init,
        task.loss,
        task.batches,
        task.evaluate,
        tx=optax.adam(rate),
        steps=recipe.steps,
        methods=methods.methods_of(structure, task, params),
        sparsities=args.sparsity or methods.SPARSITIES[model][structure],
        seeds=args.seed,
        structure=methods.STRUCTURES[structure],
        where=TABLES,
        measure=measured,
        folder=folder,
        quality=task.quality,
        title=f"{data.name}, {model}: pruning of the embedding tables by {structure}",
    )
    return report_of(compared, structure, task, args)


def report_of(compared: pipeline.Comparison, structure: str, task: tasks.Task, args: argparse.Namespace) -> Report:
    """The report, with the baselines, and with the RMSE itself where that is the quality."""
    trials = list(compared.trials)
    error = task.quality == "RMSE"
    if error:  # `jp.compare` wants a quality of which more is better, and was given the negative
        trials = [dataclasses.replace(trial, quality=trial.values["rmse"]) for trial in trials]
    costs = costs_of(trials, compared)
    shown = ("sparsity_prunable", "kept_weights", "bytes_packed", "bytes_shrunk", "hit_rate_10")
    trials = [
        dataclasses.replace(trial, values={name: trial.values[name] for name in shown if name in trial.values})
        for trial in trials
    ]
    notes = [
        f"Baseline, {name}: " + ", ".join(f"{key} {value:.4f}" for key, value in values.items()) + " (measured)."
        for name, values in task.baselines.items()
    ]
    notes.append(methods.NOTES[structure])
    notes.append(
        f"The {args.part} part is held out, and is the same for all seeds: the spread is that of training alone."
    )
    return compared.report(
        trials=trials,
        better="lower" if error else "higher",
        notes=notes,
        costs=costs,
        kinds={"bytes_packed": "theoretical", "bytes_shrunk": "theoretical", "hit_rate_10": "measured"},
    )


def costs_of(trials: Sequence[jp.report.Trial], compared: pipeline.Comparison) -> dict[str, dict[str, measure.Figure]]:
    """Bytes of the dense model, and of the best one at the highest sparsity."""
    highest = max(trial.sparsity for trial in trials)
    best = compared.best(highest)
    chosen = {
        "dense": [trial for trial in trials if trial.is_dense],
        f"{best}, {highest:.0%} pruned": [t for t in trials if t.method == best and t.sparsity == highest],
    }
    forms = {
        "arrays, masked": ("bytes_dense", "entries x itemsize"),
        "file, packed": ("bytes_packed", "a bit for each weight of a table, and the values"),
        "arrays, shrunk": ("bytes_shrunk", "entries x itemsize without empty rows and dimensions, and a bit a row"),
    }

    def figure(members: Sequence[jp.report.Trial], value: str, formula: str) -> measure.Figure:
        mean = statistics.fmean(trial.values[value] for trial in members)
        return measure.Figure(mean, "bytes", "theoretical", f"formula: {formula}")

    return {
        name: {
            model: figure(members, "bytes_dense" if model == "dense" else value, formula)
            for model, members in chosen.items()
        }
        for name, (value, formula) in forms.items()
    }


def main(argv: Sequence[str] | None = None) -> dict[str, Report]:
    """Runs the comparisons.

    Args:
      argv: the command line; by default that of the process.

    Returns:
      The reports by `MODEL-STRUCTURE`.
    """
    args = parse(argv)
    console = Console()
    began = time.perf_counter()
    data = ratings.load(args.data_dir)
    counts = f"{len(data.ratings):,} ratings of {data.items:,} items by {data.users:,} users"
    console.print(f"{data.name}: {counts}, from {data.source}", soft_wrap=True)
    reports: dict[str, Report] = {}
    for model in args.model:
        for structure in args.structure or DEFAULT_STRUCTURES[model]:
            name = f"{model}-{structure}"
            report = reports[name] = compare(model, structure, data, args)
            report.print(console)
            report.save(args.output_dir / name)
    folders = ", ".join(f"{args.output_dir}/{name}" for name in reports)
    console.print(f"{time.perf_counter() - began:.0f} s (measured). Reports: {folders}", soft_wrap=True)
    return reports


if __name__ == "__main__":
    main()
