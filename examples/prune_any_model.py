"""Four networks, one call: a CNN, a residual network, an LSTM and a matrix factorisation pruned by the same ten lines.

    python examples/prune_any_model.py
    python examples/prune_any_model.py --model lstm --macs 0.5 --max-drop 0.02
    python examples/prune_any_model.py --model cnn --sparsity 0.999    # more than can be had: the best found is kept
    python examples/prune_any_model.py --resume                        # stopped or killed: goes on

Each is trained dense, then read, scored, pruned in rounds, trained again, made smaller (with --macs), verified and
measured by `jp.pipeline.run`. A validation part that no training sees steers the search, so the quality shown is that
of data which helped to choose. Each model gets a page, `OUTPUT_DIR/MODEL/report.html`.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# So that `python examples/prune_any_model.py` finds its helpers from any folder.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jax
import jax.numpy as jnp
import numpy as np
import optax
from flax import linen as nn
from rich.console import Console
from rich.table import Table

import jaxprune as jp
from examples.data import images, ratings, speech
from examples.models.cnn import LinenCNN
from examples.models.residual import ResidualCNN
from examples.recommender import tasks as recommender_tasks
from examples.speech import tasks as speech_tasks

PyTree = Any
MODELS = ("cnn", "resnet", "lstm", "factorisation")


@dataclass(frozen=True)
class Application:
    """What a user of `jp.pipeline.run` brings.

    Attributes:
      apply_fn: `(params, inputs) -> outputs`.
      init: a PRNG key to parameters.
      loss_fn: `(outputs, targets) -> scalar`.
      batches: the batch of a step.
      evaluate: `(apply_fn, params) -> quality`.
      quality: what the quality is called.
      tx: the optimiser.
      steps: of the dense training, and again of what follows.
      max_drop: what the quality may fall.
      target: what to reach by default.
    """

    apply_fn: Callable[[PyTree, Any], Any]
    init: Callable[[jax.Array], PyTree]
    loss_fn: Callable[[Any, Any], jax.Array]
    batches: Callable[[int], tuple[Any, Any]]
    evaluate: Callable[[Any, PyTree], float]
    quality: str
    tx: optax.GradientTransformation
    steps: int
    max_drop: float
    target: Mapping[str, float]


def prune(app: Application, target: jp.Target, round_to: int, folder: Path | None) -> jp.pipeline.Result:
    """The ten lines, the same for every model."""
    return jp.pipeline.run(
        app.apply_fn,
        app.init(jax.random.key(0)),
        app.loss_fn,
        app.batches,
        app.evaluate,
        target=target,
        tx=app.tx,
        steps=app.steps,
        warmup_steps=app.steps,
        round_to=round_to,
        quality=app.quality,
        folder=folder,
    )


def digits(module: nn.Module, steps: int, learning_rate: float) -> Application:
    """Real digits; a fifth of the training images are the validation part, and the test images are not touched."""
    data = images.load("mnist_5k")
    pixels, labels = (np.asarray(data.train_x, np.float32) - 127.5) / 64, np.asarray(data.train_y)
    order = np.random.default_rng(0).permutation(len(pixels))
    held, train = order[: len(order) // 5], order[len(order) // 5 :]

    def batches(step: int) -> tuple[np.ndarray, np.ndarray]:
        chosen = np.random.default_rng(step).choice(train, 64)
        return pixels[chosen], labels[chosen]

    def evaluate(apply_fn: Callable[[PyTree, Any], jax.Array], params: PyTree) -> float:
        return float(jnp.mean(jnp.argmax(apply_fn(params, pixels[held]), axis=-1) == labels[held]))

    def loss_fn(outputs: jax.Array, targets: jax.Array) -> jax.Array:
        return optax.softmax_cross_entropy_with_integer_labels(outputs, targets).mean()

    # Batch statistics stay what they are at the start, mean 0 and variance 1: normalisation is then a learned scale.
    tx = optax.partition({"params": optax.adam(learning_rate), "batch_stats": optax.set_to_zero()}, _collections)
    return Application(
        module.apply,
        lambda key: module.init(key, pixels[:1]),
        loss_fn,
        batches,
        evaluate,
        "accuracy",
        tx,
        steps,
        max_drop=0.01,
        target={"macs": 0.5},
    )


def _collections(params: PyTree) -> PyTree:
    """The name of the collection of each parameter."""
    return {name: jax.tree.map(lambda _, name=name: name, tree) for name, tree in params.items()}


def vowels(steps: int) -> Application:
    """Which of nine speakers says it? An LSTM on real utterances (JapaneseVowels)."""
    recipe = speech_tasks.Recipe(steps=steps, batch_size=32, learning_rate=1e-2, widths=(64,), noise=0.3)
    task = speech_tasks.classification(speech.standardise(speech.japanese_vowels()), "lstm", recipe, "validation")
    return Application(
        task.apply_fn,
        task.init,
        task.loss_fn,
        task.train_batches,
        task.eval_fn,
        task.quality,
        optax.chain(optax.clip_by_global_norm(1.0), optax.adam(3e-3)),
        steps,
        max_drop=0.02,
        target={"macs": 0.5},
    )


def factorisation(steps: int) -> Application:
    """Ratings of films (MovieLens-100k) as products of a row a user and a row a film."""
    recipe = recommender_tasks.RECIPES["factorisation"]
    task = recommender_tasks.rating_task(ratings.load(), "validation", recipe)
    # A table is looked up, not multiplied with: its bytes are what can be saved.
    return Application(
        task.apply,
        task.init,
        task.loss,
        task.batches,
        task.evaluate,
        "negative RMSE",
        optax.adam(5e-3),
        steps,
        max_drop=0.005,
        target={"bytes": 0.5},
    )


def application(name: str, steps: int | None) -> Application:
    """The task of a model.

    Args:
      name: one of `MODELS`.
      steps: of the training; None for as many as it needs.
    """
    if name == "cnn":
        return digits(LinenCNN(classes=10), steps or 400, 1e-3)
    if name == "resnet":
        return digits(ResidualCNN(width=16, stages=(1, 1)), steps or 400, 3e-3)
    return vowels(steps or 300) if name == "lstm" else factorisation(steps or 500)


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    add = parser.add_argument
    add("--model", nargs="+", choices=MODELS, default=list(MODELS))
    goal = parser.add_mutually_exclusive_group()
    for name in ("sparsity", "macs", "bytes", "latency"):
        goal.add_argument(
            f"--{name}",
            type=float,
            help="default: --macs 0.5, and --bytes 0.5 for the factorisation" if name == "macs" else None,
        )
    add("--max-drop", type=float, help="of the quality; default: 0.01 for images, 0.02 for speech, 0.005 for ratings")
    add("--round-to", type=int, default=4, help="channels and units that stay are a multiple of this; default: 4")
    add("--steps", type=int, help="of the dense training, and again of what follows")
    add("--resume", action="store_true", help="keep finished rounds, and go on from those that are there")
    add("--output-dir", type=Path, default=Path("outputs/prune_any_model"))
    return parser.parse_args(argv)


def main(argv: Sequence[str] | None = None) -> dict[str, jp.pipeline.Result]:
    """Prunes each model and prints what became of it.

    Args:
      argv: the command line; by default that of the process.

    Returns:
      The result by model.
    """
    args = parse(argv)
    console = Console()
    given = {name: value for name in ("sparsity", "macs", "bytes", "latency") if (value := getattr(args, name))}
    results = {}
    for name in args.model:
        app = application(name, args.steps)
        target = jp.Target(**(given or app.target), max_drop=app.max_drop if args.max_drop is None else args.max_drop)
        folder = args.output_dir / name
        results[name] = prune(app, target, args.round_to, folder / "rounds" if args.resume else None)
        results[name].report.save(folder)
    table = Table(title="Quality on validation data, and what is left of the costs")
    for column in ("model", "target", "met", "dense", "pruned", "criterion", "weights", "stored", "latency"):
        table.add_column(column, overflow="fold")
    for name, made in results.items():
        costs = [list(made.report.costs[cost].values()) for cost in ("weights", "bytes stored", "latency")]
        table.add_row(
            name,
            made.report.asked.split(",")[0],
            "yes" if made.met else "no",
            f"{made.dense_quality:.4f}",
            f"{made.quality:.4f}",
            made.prediction.best,
            *(f"{(after.value or 0) / (before.value or 1):.2f} x" for before, after in costs),
        )
    console.print(table)
    console.print(
        "Validation data steered the search. Weights are counted, stored bytes are a formula, latency is measured."
    )
    console.print(f"Pages: {args.output_dir}/*/report.html", soft_wrap=True)
    return results


if __name__ == "__main__":
    main()
