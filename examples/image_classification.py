"""Which pruner keeps the most accuracy? Dense, random, GMP and RigL on images, at equal budgets.

    python examples/image_classification.py
    python examples/image_classification.py --method dense rigl granet --sparsity 0.95 --seed 0 1 2
    python examples/image_classification.py --structure nm:2:4 --method dense gmp sr_ste
    python examples/image_classification.py --structure channel --sparsity 0.5 0.75     # and made smaller
    python examples/image_classification.py --resume          # stopped or killed: goes on
    python examples/image_classification.py --dataset imagenet --data-dir /data/imagenet

Every method trains the same network from the same initial weights on the same batches for the same
number of steps, with the same allocation (uniform by default). The default takes about two minutes
on two CPU cores. It prints tables and writes `report.html`, `report.json`, plots and `runs.json` to
`--output-dir`. With `--structure channel` the channels that are gone are cut out of the arrays, and the
smaller network is measured.
"""

from __future__ import annotations

import argparse
import hashlib
import signal
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

# So that `python examples/image_classification.py` finds its helpers from any folder.
sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

import jax
import numpy as np
from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeRemainingColumn

import jaxprune as jp
from examples.classification import checkpoints, methods, report, shrinking, tasks, training
from jaxprune.pipeline.records import write_json

PyTree = Any


@dataclass(frozen=True)
class Run:
    """One training of a comparison; `sparsity` is 0 for the dense model."""

    method: str
    sparsity: float
    seed: int

    @property
    def name(self) -> str:
        """The name of its folder."""
        sparsity = "" if self.method == "dense" else f"-{self.sparsity:g}"
        return f"{self.method}{sparsity}-seed{self.seed}"


@dataclass(frozen=True)
class Compiled:
    """The compiled functions of a method and sparsity, shared by its seeds.

    Attributes:
      init: parameters, a key and a batch to the first state.
      advance: runs a number of steps.
    """

    init: Callable[..., training.TrainState]
    advance: training.Advance


@dataclass(frozen=True)
class Job:
    """What all runs of a comparison share."""

    task: tasks.Task
    plan: methods.Settings
    recipe: tasks.Recipe
    steps_per_call: int
    checkpoint_every: int
    folder: Path | None
    should_stop: Callable[[], bool]


def parse(argv: Sequence[str] | None) -> argparse.Namespace:
    """Reads the command line; what depends on the image set is filled in."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    add = parser.add_argument
    add("--dataset", choices=tuple(tasks.RECIPES), default="mnist_5k")
    add("--data-dir", type=Path, help="a file or folder of yours with the images")
    add("--model", choices=tasks.MODELS, help="default: cnn; resnet50 for imagenet")
    add("--framework", choices=("linen", "nnx"), default="linen")
    add("--method", nargs="+", choices=methods.NAMES, default=["dense", "random", "gmp", "rigl"])
    add("--sparsity", nargs="+", type=float, help="default: 0.9 0.98; N:M fixes its own")
    add("--structure", default="unstructured", help="unstructured, nm:2:4, block:4x4 or channel")
    add("--allocation", choices=tuple(methods.allocations()), default="uniform")
    add("--seed", nargs="+", type=int, default=[3, 4], help="default: 3 4; the recipe was chosen with 0 to 2")
    add("--steps", type=int, help="default: 800 for mnist_5k")
    add("--batch-size", type=int)
    add("--learning-rate", type=float)
    add("--image-size", type=int, default=224, help="side of the crops of imagenet")
    add("--steps-per-call", type=int, help="steps in one compiled call; default: 1 on CPU, else 20")
    add("--checkpoint-dir", type=Path, help="default with --resume: OUTPUT_DIR/checkpoints")
    add("--checkpoint-every", type=int, help="steps; default: a quarter of the training")
    add("--resume", action="store_true", help="go on from the checkpoints, and keep making them")
    add("--output-dir", type=Path, default=Path("outputs/image_classification"))
    args = parser.parse_args(argv)

    recipe = tasks.RECIPES[args.dataset]
    args.steps = recipe.steps if args.steps is None else args.steps
    args.batch_size = recipe.batch_size if args.batch_size is None else args.batch_size
    args.learning_rate = args.learning_rate or recipe.learning_rate
    args.model = args.model or recipe.model
    if args.steps_per_call is None:
        # Measured: XLA:CPU runs convolutions inside a loop on one thread, ten times slower.
        args.steps_per_call = 1 if jax.default_backend() == "cpu" else 20
    args.checkpoint_every = args.checkpoint_every or max(1, args.steps // 4)
    if args.resume and args.checkpoint_dir is None:
        args.checkpoint_dir = args.output_dir / "checkpoints"
    for option in ("steps", "batch_size", "image_size", "steps_per_call", "checkpoint_every"):
        if getattr(args, option) < 1:
            parser.error(f"--{option.replace('_', '-')} {getattr(args, option)}: must be 1 or more")
    try:
        fixed = methods.fixed_sparsity(methods.parse_structure(args.structure))
    except ValueError as error:
        parser.error(str(error))
    if args.sparsity is None:
        args.sparsity = [0.9, 0.98] if fixed is None else [fixed]
    for sparsity in args.sparsity:
        if not 0 < sparsity < 1:
            parser.error(f"--sparsity {sparsity}: a fraction of zeros between 0 and 1 is allowed")
        if fixed is not None and sparsity != fixed:
            parser.error(f"--structure {args.structure} fixes the sparsity at {fixed}; omit it")
    for option in ("method", "sparsity", "seed"):  # naming one twice is no reason to train twice
        setattr(args, option, list(dict.fromkeys(getattr(args, option))))
    return args


def plan_runs(args: argparse.Namespace) -> list[Run]:
    """All runs; those that share a compiled step follow each other."""
    pairs: list[tuple[str, float]] = []
    for method in args.method:
        pairs += [(method, s) for s in ([0.0] if method == "dense" else args.sparsity)]
    return [Run(method, sparsity, seed) for method, sparsity in pairs for seed in args.seed]


def make_job(args: argparse.Namespace, should_stop: Callable[[], bool]) -> Job:
    """Loads the images and prepares what the runs share."""
    recipe = replace(tasks.RECIPES[args.dataset], learning_rate=args.learning_rate)
    task = tasks.make_task(args.dataset, args.data_dir, args.model, args.framework, args.batch_size, args.image_size)
    structure = methods.parse_structure(args.structure)
    where = tasks.without_head(task.where) if args.structure == "channel" else task.where
    allocation = methods.allocations()[args.allocation]
    plan = methods.Settings(None, args.steps, structure, allocation, where)
    folder: Path | None = args.checkpoint_dir
    if folder is not None:
        shared = ("dataset", "model", "framework", "structure", "allocation", "steps", "batch_size")
        shared += ("learning_rate", "image_size", "steps_per_call")
        settings = {name: getattr(args, name) for name in shared}
        checkpoints.open_folder(folder, settings, args.resume)
    return Job(task, plan, recipe, args.steps_per_call, args.checkpoint_every, folder, should_stop)


def optimizer_of(job: Job, run: Run, key: jax.Array, gradients: PyTree = None) -> Any:
    """The optimiser of a method and sparsity; what is random comes from `key`."""
    fixed = methods.fixed_sparsity(job.plan.structure)
    sparsity = None if fixed is not None else run.sparsity
    inner = tasks.make_inner(job.recipe, job.plan.steps, job.recipe.learning_rate)
    return methods.make_optimizer(run.method, inner, sparsity, job.plan, key, gradients)


def compile_run(job: Job, run: Run) -> Compiled:
    """Makes the compiled functions of a method and sparsity."""

    def loss_of(params: PyTree, x: jax.Array, y: jax.Array) -> jax.Array:
        return training.mean_loss(job.task.apply, params, x, y)

    @jax.jit
    def init(params: PyTree, key: jax.Array, x: jax.Array, y: jax.Array) -> training.TrainState:
        needs = run.method in methods.NEEDS_GRADIENTS
        gradients = jax.grad(loss_of)(params, x, y) if needs else None
        return training.TrainState(params, optimizer_of(job, run, key, gradients).init(params))

    # Only `init` uses the key that an optimiser was made with; afterwards it is in the state.
    update = training.make_update(job.task.apply, optimizer_of(job, run, jax.random.key(0)), run.method != "dense")
    return Compiled(init, job.task.feed.advance(update))


def first_state(job: Job, run: Run, compiled: Compiled) -> training.TrainState:
    """The state before step 0, a function of the run alone."""
    params = job.task.init(jax.random.fold_in(jax.random.key(run.seed), 0))
    key = jax.random.fold_in(jax.random.key(run.seed), 1)
    return compiled.init(params, key, *job.task.feed.first_batch(batch_key(run)))


def batch_key(run: Run) -> jax.Array:
    """The key of the batches; the same for every method."""
    return jax.random.fold_in(jax.random.key(run.seed), 2)


def execute(
    job: Job, run: Run, compiled: dict[Any, Compiled], progress: Progress, bar: TaskID
) -> dict[str, Any] | None:
    """Trains one run from its last checkpoint.

    Args:
      job: what the runs share.
      run: which one.
      compiled: functions by method and sparsity; what is missing is added.
      progress: the progress display.
      bar: its bar.

    Returns:
      The result, or `None` when it was stopped; its state is then saved.
    """
    store = None if job.folder is None else checkpoints.RunStore(job.folder / run.name)
    progress.update(bar, description=run.name)
    try:
        if store is not None and (saved := store.result()) is not None:
            progress.advance(bar, job.plan.steps)
            return saved
        pruned = run.method != "dense"
        functions = compiled.get((run.method, run.sparsity))
        if functions is None:
            functions = compiled[run.method, run.sparsity] = compile_run(job, run)
        start, state = 0, first_state(job, run, functions)
        if store is not None:
            start, state = store.restore(state)
        clock, seen = training.Clock([], set()), start
        last_loss = float("nan")
        progress.advance(bar, start)

        def after_call(state: training.TrainState, done: int, loss: float) -> bool:
            nonlocal seen, last_loss
            progress.advance(bar, done - seen)
            passed = done // job.checkpoint_every > seen // job.checkpoint_every
            seen, last_loss = done, loss
            if store is not None and passed and done < job.plan.steps:
                store.save(done, state)
            return job.should_stop()

        state, done = training.train(
            functions.advance,
            state,
            batch_key(run),
            start=start,
            steps=job.plan.steps,
            steps_per_call=job.steps_per_call,
            clock=clock,
            after_call=after_call,
        )
        if store is not None:
            store.save(done, state)
        if done < job.plan.steps:
            return None
        result = measure(job, run, state, pruned)
        result |= {"last_loss": last_loss, "step_ms_measured": clock.median_ms()}
        if store is not None:
            store.finish(result)
        return result
    finally:
        if store is not None:
            store.close()


def measure(job: Job, run: Run, state: training.TrainState, pruned: bool) -> dict[str, Any]:
    """Counts the zeros and the right answers of a trained model."""
    params = training.forward_params(state, pruned)
    masks = jp.get_masks(state.opt_state, state.params) if pruned else jax.tree.map(lambda p: np.ones((), bool), params)
    counts = jp.summary(params, masks, where=job.plan.where)
    digest = hashlib.sha256()
    for leaf in jax.tree.leaves(params):
        digest.update(np.asarray(leaf).tobytes())
    smaller = job.plan.structure == jp.Channel(axis=-1) and pruned
    shrunk = shrinking.shrink(job.task, params, masks, batch_key(run)) if smaller else {}
    return {
        **shrunk,
        "method": run.method,
        "sparsity_target": run.sparsity,
        "seed": run.seed,
        "steps": job.plan.steps,
        "accuracy": training.accuracy(job.task.apply, params, job.task.feed),
        "sparsity_prunable": counts.pruned.sparsity,
        "sparsity_whole_model": counts.total.sparsity,
        "kept_weights": counts.total.kept,
        "weights": counts.total.weights,
        "sha256": digest.hexdigest(),  # of the parameters: equal for equal bits
    }


@contextmanager
def stop_on_interrupt() -> Iterator[Callable[[], bool]]:
    """Turns the first Ctrl-C into a wish to stop, so that no step is cut in half; the second kills."""
    stopped = False

    def handler(signum: int, frame: Any) -> None:
        nonlocal stopped
        stopped = True
        signal.signal(signal.SIGINT, signal.default_int_handler)

    try:
        before = signal.signal(signal.SIGINT, handler)
    except ValueError:  # only the main thread may set handlers
        yield lambda: False
        return
    try:
        yield lambda: stopped
    finally:
        signal.signal(signal.SIGINT, before)


def main(argv: Sequence[str] | None = None, should_stop: Callable[[], bool] | None = None) -> dict[str, Any]:
    """Runs the comparison.

    Args:
      argv: the command line; by default that of the process.
      should_stop: asked after every compiled call; true stops as Ctrl-C does.

    Returns:
      The content of `runs.json`; after a stop, `{"stopped": True, "runs": [...]}`.
    """
    args = parse(argv)
    console = Console()
    began = time.perf_counter()
    results: list[dict[str, Any]] = []
    with stop_on_interrupt() as interrupted:
        job = make_job(args, lambda: interrupted() or bool(should_stop and should_stop()))
        console.print(f"{args.dataset} from {job.task.source}", soft_wrap=True)
        runs = plan_runs(args)
        compiled: dict[Any, Compiled] = {}
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            TextColumn("{task.completed:.0f}/{task.total:.0f} steps"),
        )
        with Progress(*columns, TimeRemainingColumn(), console=console, refresh_per_second=4) as bar:
            whole = bar.add_task("", total=len(runs) * args.steps)
            for run in runs:
                result = execute(job, run, compiled, bar, whole)
                if result is None:
                    break
                results.append(result)
    if len(results) < len(runs):
        saved = "" if job.folder is None else f" Go on with --resume --checkpoint-dir {job.folder}"
        console.print(f"Stopped after {len(results)} of {len(runs)} runs.{saved}", soft_wrap=True)
        return {"stopped": True, "runs": results}

    settings = {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()}
    title = f"{args.dataset}, {args.model}, {args.structure}, {args.allocation}, {args.steps} steps"
    made = report.make_report(results, title, settings | {"source": job.task.source})
    made.print(console)
    content: dict[str, Any] = {
        "stopped": False,
        "settings": settings,
        "source": job.task.source,
        "environment": dict(made.environment),
        "seconds_measured": time.perf_counter() - began,
        "rows": made.rows(),
        "runs": results,
    }
    write_json(args.output_dir / "runs.json", content)
    page = made.save(args.output_dir)
    console.print(
        f"{content['seconds_measured']:.0f} s (measured). Wrote {page}, and runs.json beside it", soft_wrap=True
    )
    return content


if __name__ == "__main__":
    sys.exit(130 if main()["stopped"] else 0)
