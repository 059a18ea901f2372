"""How small does sparse training make a network? RigL on LeNet-300-100, then what is dead is cut away.

    python examples/lenet_compact.py
    python examples/lenet_compact.py --seed 3 --steps 1000 --sparsity 0.98 0.9
    python examples/lenet_compact.py --dataset mnist --data-dir /data/mnist     # as in the RigL paper

Unstructured pruning leaves hidden units and pixels without any weight. They are removed, and what remains is an
ordinary, smaller dense model, which computes the same and can be stored sparsely. The experiment, the optimiser and the
sparsities are those of the RigL paper (Evci et al. 2020, arXiv 1911.11134, appendix B). The default takes two to
three minutes on two CPU cores. It prints a table and writes `report.json` and the models to `--output-dir`.
"""

from __future__ import annotations

import argparse
import os
import platform
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# So that `python examples/lenet_compact.py` finds its helpers from any folder.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jax
import jax.numpy as jnp
import numpy as np
import optax
from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

import jaxprune as jp
from examples.classification import training
from examples.compact import counting, cutting, files, report
from examples.data import images
from examples.models import lenet
from jaxprune.pipeline.records import write_json

PyTree = Any

# 200 passes over the training images, as in the paper.
STEPS = {"mnist_5k": 8_000, "mnist": 120_000}
LEARNING_RATE = 0.2
MOMENTUM = 0.9
WEIGHT_DECAY = 1e-4
DROP_FRACTION = 0.3
_STEPS_PER_CALL = 100


@dataclass(frozen=True)
class Job:
    """What all trainings share."""

    data: images.ImageData
    feed: training.MemoryFeed
    steps: int
    batch_size: int
    sparsity: tuple[float, float]
    every: int

    @property
    def pixels(self) -> int:
        """The pixels of an image."""
        return int(np.prod(self.data.train_x.shape[1:]))


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line; what depends on the image set is filled in."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    add = parser.add_argument
    add("--dataset", choices=tuple(STEPS), default="mnist_5k", help="mnist: the full set, downloaded or in --data-dir")
    add("--data-dir", type=Path, help="a file or folder of yours with the images")
    add("--seed", nargs="+", type=int, default=[0, 1, 2])
    add("--steps", type=int, help="default: " + ", ".join(f"{steps} for {name}" for name, steps in STEPS.items()))
    add("--batch-size", type=int, default=100)
    add("--sparsity", nargs=2, type=float, default=[0.99, 0.89], help="of the two hidden layers; the last stays dense")
    add("--every", type=int, default=100, help="steps between exchanges of weights")
    add("--output-dir", type=Path, default=Path("outputs/lenet_compact"))
    args = parser.parse_args(argv)
    args.steps = STEPS[args.dataset] if args.steps is None else args.steps
    args.seed = list(dict.fromkeys(args.seed))
    for option in ("steps", "batch_size", "every"):
        if getattr(args, option) < 1:
            parser.error(f"--{option.replace('_', '-')} {getattr(args, option)}: must be 1 or more")
    for sparsity in args.sparsity:
        if not 0 < sparsity < 1:
            parser.error(f"--sparsity {sparsity}: a fraction of zeros between 0 and 1 is allowed")
    return args


def make_optimizer(job: Job, method: str, key: jax.Array) -> optax.GradientTransformation:
    """SGD with Nesterov momentum and a cosine decay to zero; RigL wraps it."""
    inner = optax.chain(
        optax.add_decayed_weights(WEIGHT_DECAY, mask=lambda params: jax.tree.map(lambda p: p.ndim > 1, params)),
        optax.sgd(optax.cosine_decay_schedule(LEARNING_RATE, job.steps), momentum=MOMENTUM, nesterov=True),
    )
    if method == "dense":
        return inner
    first, second = job.sparsity
    pruner = jp.pruners.rigl(
        None,
        every=job.every,
        end=max(1, job.steps * 3 // 4),
        drop_fraction=DROP_FRACTION,
        where=r"layer[12]/kernel",
        rules=[jp.Rule(pattern="layer1/kernel", sparsity=first), jp.Rule(pattern="layer2/kernel", sparsity=second)],
    )
    return jp.sparsify(inner, pruner, key=key)


class Trainer:
    """Trains one method; its seeds share the compiled step."""

    def __init__(self, job: Job, method: str) -> None:
        """Compiles nothing yet.

        Args:
          job: what all trainings share.
          method: `dense` or `rigl`.
        """
        self.job, self.method = job, method
        # Only `init` uses the key that an optimiser was made with; afterwards it is in the state.
        optimizer = make_optimizer(job, method, jax.random.key(0))
        self._advance = job.feed.advance(training.make_update(lenet.apply, optimizer, method != "dense"))

        @jax.jit
        def first_state(key: jax.Array) -> training.TrainState:
            params = lenet.init(jax.random.fold_in(key, 0), job.pixels, job.data.classes)
            return training.TrainState(params, make_optimizer(job, method, jax.random.fold_in(key, 1)).init(params))

        self._first_state = first_state

    def train(self, seed: int, after_call: Any) -> PyTree:
        """The trained parameters, with their zeros; both methods start from the same weights on the same batches."""
        key = jax.random.key(seed)
        state, _ = training.train(
            self._advance,
            self._first_state(key),
            jax.random.fold_in(key, 2),
            start=0,
            steps=self.job.steps,
            steps_per_call=_STEPS_PER_CALL,
            clock=training.Clock([], set()),
            after_call=after_call,
        )
        return training.forward_params(state, self.method != "dense")


def evaluate(job: Job, method: str, seed: int, trained: PyTree, folder: Path) -> list[dict[str, Any]]:
    """The figures of a trained model and, where it has zeros, of the compact model that is cut out of it.

    Args:
      job: what all trainings share.
      method: `dense` or `rigl`.
      seed: of the training.
      trained: the parameters, with their zeros.
      folder: for the model files, which are written and stay.

    Returns:
      One dictionary for each row of the table.
    """
    samples = job.steps * job.batch_size
    training_flops = counting.training_flops(method, counting.forward_flops(trained), samples, job.every)

    def row(name: str, model: PyTree, apply: training.Apply, pixels: np.ndarray, sparse: bool) -> dict[str, Any]:
        flops = counting.forward_flops(model)
        save = files.save_sparse if sparse else files.save_dense
        return {
            "model": name,
            "seed": seed,
            "architecture": "-".join(map(str, lenet.architecture(model))),
            "error_percent": 100 * (1 - training.accuracy(apply, model, job.feed)),
            "kernel_sparsity": counting.kernel_sparsity(model),
            "file_bytes": save(folder / f"{name.replace(' ', '_')}_seed{seed}.npz", model, pixels),
            "formula_bytes": counting.formula_bytes(model, bitmask=sparse),
            "inference_kflops": (flops.nonzero if sparse else flops.dense) / 1e3,
            "training_gflops": training_flops / 1e9,
        }

    every_pixel = np.ones(job.pixels, bool)
    if method == "dense":
        return [row("dense", trained, lenet.apply, every_pixel, sparse=False)]
    x = lenet.to_unit_interval(jnp.asarray(job.data.test_x))
    small = cutting.compact(trained, x)
    difference = cutting.largest_difference(
        lambda x: lenet.apply(trained, x), lambda x: small.apply(small.params, x), x
    )
    told = {"largest_difference_to_masked": difference, "removed_hidden_units": small.removed}
    return [
        row("RigL masked", trained, lenet.apply, every_pixel, sparse=True),
        row("compact dense", small.params, small.apply, small.pixels, sparse=False) | told,
        row("compact sparse", small.params, small.apply, small.pixels, sparse=True) | told,
    ]


def run(job: Job, seeds: Sequence[int], folder: Path, console: Console) -> list[dict[str, Any]]:
    """Trains and measures everything."""
    runs: list[dict[str, Any]] = []
    columns = (TextColumn("{task.description}"), BarColumn(), TextColumn("{task.completed:.0f}/{task.total:.0f} steps"))
    with Progress(*columns, TimeRemainingColumn(), console=console, refresh_per_second=4) as progress:
        bar = progress.add_task("", total=2 * len(seeds) * job.steps)
        for number, method in enumerate(("dense", "rigl")):
            trainer = Trainer(job, method)
            for position, seed in enumerate(seeds):
                progress.update(bar, description=f"{method} seed {seed}")
                before = (number * len(seeds) + position) * job.steps

                def after_call(state: Any, done: int, loss: float, before: int = before) -> bool:
                    progress.update(bar, completed=before + done)
                    return False

                runs += evaluate(job, method, seed, trainer.train(seed, after_call), folder)
    return runs


def main(argv: Sequence[str] | None = None) -> dict[str, Any]:
    """Runs the experiment.

    Args:
      argv: the command line; by default that of the process.

    Returns:
      The content of `report.json`.
    """
    args = parse(argv)
    console = Console()
    began = time.perf_counter()
    data = images.load(args.dataset, args.data_dir)
    console.print(f"{args.dataset} from {data.source}", soft_wrap=True)
    feed = training.MemoryFeed(data, args.batch_size, lenet.to_unit_interval)
    job = Job(data, feed, args.steps, args.batch_size, tuple(args.sparsity), args.every)
    runs = run(job, args.seed, args.output_dir, console)

    rows = report.aggregate(runs)
    train, test = len(data.train_x), len(data.test_x)
    about = {"dataset": args.dataset, "train": train, "test": test, "full_mnist": train == 60_000}
    note = report.caption(about, job.steps, len(args.seed))
    report.print_table(rows, note, console)
    worst = max(run["largest_difference_to_masked"] for run in runs if "largest_difference_to_masked" in run)
    console.print(f"Compact against masked logits: apart by at most {worst:.1e} of the largest logit (measured).")
    content: dict[str, Any] = {
        "settings": {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()},
        "data": {**about, "source": data.source},
        "environment": {
            "jax": jax.__version__,
            "jaxprune": jp.__version__,
            "device": jax.devices()[0].device_kind,
            "cpu_cores": os.cpu_count(),
            "python": platform.python_version(),
        },
        "seconds_measured": time.perf_counter() - began,
        "note": note,
        "rows": rows,
        "paper_cited": report.PAPER,
        "runs": runs,
    }
    write_json(args.output_dir / "report.json", content)
    seconds = content["seconds_measured"]
    console.print(f"{seconds:.0f} s (measured). Wrote {args.output_dir}/report.json and the models", soft_wrap=True)
    return content


if __name__ == "__main__":
    main()
