"""Pruning transformers without training, from calibration text: magnitude, Wanda, SparseGPT, masked refit and ALPS.

    python examples/one_shot_transformer.py
    python examples/one_shot_transformer.py --task minilm --seed 0
    python examples/one_shot_transformer.py --sparsity 0.5 0.8 --methods wanda sparsegpt
    python examples/one_shot_transformer.py --task both --steps 2800 --sparsity 0.5 0.6 0.7 --samples 128 --held-out 256

Two models: a decoder that is trained here on the source of the Python standard library (once, then it is loaded),
judged by its perplexity on files that it has not seen; and all-MiniLM-L6-v2 with its real weights, judged by the cosine
of its sentence embeddings to the dense ones. Every method sees the same calibration text and prunes block after block
(`jp.prune_sequential`). A seed draws other calibration text; the dense model is the same. The default, a short training
of the decoder, takes under five minutes on two CPU cores; the last line above is what the README's tables were made by.

Zeros do not make dense kernels faster: this example is about what is lost; `shrink_transformer.py` makes a model
smaller. It prints a table, and writes `report.html`, `report.json` and a plot for each model to `--output-dir`.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# So that `python examples/one_shot_transformer.py` finds its helpers from any folder.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jax
from rich.console import Console
from rich.progress import Progress

import jaxprune as jp
from examples.language.tasks import Task, language_model, sentence_encoder
from examples.language.training import Config
from jaxprune.pipeline.records import Records

PyTree = Any
METHODS: dict[str, Any] = {
    "random": None,
    "magnitude": jp.posttraining.magnitude(),
    "wanda": jp.posttraining.wanda(),
    "sparsegpt": jp.posttraining.sparsegpt(),
    "wanda+refit": jp.posttraining.repaired(),
    "alps": jp.posttraining.alps(),
}
REPAIRING = ("sparsegpt", "wanda+refit", "alps")
NOTES = (
    "The spread is that of the calibration text, or of random masks; the dense model is one. Magnitude sees no data.",
    "Masks do not speed up dense kernels; examples/shrink_transformer.py makes a model smaller.",
)


def parser() -> argparse.ArgumentParser:
    """The command line."""
    made = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    made.add_argument("--task", default="language", choices=["both", "language", "minilm"])
    made.add_argument("--methods", nargs="+", default=list(METHODS), choices=list(METHODS))
    made.add_argument("--sparsity", type=float, nargs="*", default=[0.5, 0.7])
    made.add_argument("--nm", type=int, nargs=2, default=[2, 4], metavar=("N", "M"), help="N kept of M; 0 0 for none")
    made.add_argument("--seed", type=int, nargs="+", default=[0, 1, 2], help="of the calibration text")
    made.add_argument("--order", default="block", choices=["block", "op"])
    made.add_argument("--target", default="self", choices=["self", "dense"])
    made.add_argument("--samples", type=int, default=64, help="calibration windows, or sentences times four")
    made.add_argument("--held-out", type=int, default=128, help="windows, or pairs of sentences, to measure on")
    made.add_argument("--steps", type=int, default=500, help="of the training of the language model")
    made.add_argument("--data-dir", type=Path, default=None, help="a folder with text, or with MiniLM's files")
    made.add_argument("--resume", action="store_true", help="keep what has finished, and go on from what is there")
    made.add_argument("--output-dir", type=Path, default=Path("outputs/one_shot_transformer"))
    return made


def shares(args: argparse.Namespace) -> list[tuple[str, float, dict[str, Any]]]:
    """What is asked for: a mark for the method's name, the fraction of zeros, and the arguments that say so."""
    n, m = args.nm
    patterns = [(f" {n}:{m}", 1 - n / m, {"structure": jp.NM(n, m)})] if m else []
    return [*(("", s, {"sparsity": s}) for s in args.sparsity), *patterns]


def prune(task: Task, name: str, seed: int, share: dict[str, Any], args: argparse.Namespace) -> dict[str, float]:
    """Prunes a model and measures what is left of it."""
    start = time.perf_counter()
    found: dict[str, float] = {}
    if name == "random":
        key = jax.random.key(seed)
        masks = jp.compute_masks(
            task.params, share.get("sparsity"), score=jp.scores.random, key=key, where=task.where,
            structure=share.get("structure", jp.Unstructured()),
        )  # fmt: skip
        params = jax.block_until_ready(jp.apply_masks(task.params, masks))
    else:
        pruned = jp.prune_sequential(
            task.apply_fn,
            task.params,
            task.batches(seed),
            METHODS[name],
            where=task.where,
            weights=task.weights,
            order=args.order,
            target=args.target if name in REPAIRING else "self",
            **share,
        )
        params, masks = jax.block_until_ready(pruned.params), pruned.masks
        found["layer_error"] = statistics.fmean(layer.error for layer in pruned.layers)
    found["seconds"] = time.perf_counter() - start
    chosen = [mask for mask in jax.tree.leaves(masks) if mask.ndim]
    found["sparsity_prunable"] = 1 - sum(int(mask.sum()) for mask in chosen) / sum(mask.size for mask in chosen)
    return found | task.measure(params)


def compare(task: Task, args: argparse.Namespace, progress: Progress) -> jp.Report:
    """Prunes a model by every method, sparsity and seed, and measures each."""
    dense = task.measure(task.params)
    quality = next(iter(dense))
    settings = {name: getattr(args, name) for name in ("order", "target", "samples", "held_out")}
    records = Records(
        args.output_dir / "trials" / task.slug if args.resume else None,
        settings | {"source": task.source, "dense": dense},
    )
    runs = [(name, share, seed) for share in shares(args) for name in args.methods for seed in args.seed]
    # Magnitude does not look at the data.
    runs = [run for run in runs if run[0] != "magnitude" or run[2] == args.seed[0]]
    trials = [jp.Trial("dense", 0.0, 0, dense.pop(quality), dense)]
    for name, (mark, sparsity, share), seed in progress.track(runs, description=task.name):
        key = f"{name}{mark.replace(':', '-')} {sparsity} {seed}"
        if (found := records.get(key)) is None:
            records[key] = found = prune(task, name, seed, share, args)
        found = dict(found)
        trials.append(jp.Trial(name + mark, sparsity, seed, found.pop(quality), found))
    return jp.Report(
        f"{task.name}, pruned without training",
        quality,
        trials,
        notes=[f"{task.source}.", *NOTES],
        settings=settings | {"seeds": args.seed},
        better=task.better,
        kinds=dict.fromkeys([*dense, "layer_error", "seconds"], "measured"),
    )


def main(argv: Sequence[str] | None = None) -> dict[str, jp.Report]:
    """Runs the comparison; returns a report for each model."""
    args = parser().parse_args(argv)
    console = Console()
    tasks = []
    if args.task in ("both", "language"):
        folder = args.output_dir / f"dense-{args.steps}"
        tasks.append(language_model(Config(steps=args.steps), folder, args.data_dir, args.samples, args.held_out))
    if args.task in ("both", "minilm"):
        tasks.append(sentence_encoder(args.data_dir, 4 * args.samples, args.held_out))
    reports: dict[str, jp.Report] = {}
    for task in tasks:
        with Progress(console=console) as progress:
            report = reports[task.name] = compare(task, args, progress)
        report.print(console)
        console.print(f"written to {report.save(args.output_dir / task.slug)}", soft_wrap=True)
    return reports


if __name__ == "__main__":
    main()
