"""Cutting hidden units out of trained recurrent cells: smaller arrays, not zeros in large ones.

A hidden unit of an LSTM or GRU is tied to a column of every gate, a row of every recurrent matrix, and a row of the
next layer; `jp.trace` finds this from one trace, through the scan. What is left is the same network with fewer units.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from rich.progress import Progress

import jaxprune as jp
from examples.speech.tasks import Recipe, Task
from examples.speech.vad import real_time_factor
from jaxprune.pipeline.records import Records

PyTree = Any
MakeTask = Callable[[Recipe], Task]
CRITERIA = ("random", "magnitude", "taylor")
AXIS = "MACs removed"
_SCORING_BATCHES = 8


@dataclasses.dataclass(frozen=True)
class Settings:
    """What is compared.

    Attributes:
      shares: fractions of the multiply-adds to remove.
      criteria: names of `CRITERIA`, by which hidden units are ranked.
      seeds: of initial parameters, batches and random scores.
      fine_steps: of training after the cut; the dense network gets as many more.
      fine_scale: the highest learning rate of these steps, as a fraction of the recipe's.
      repetitions: of the measurements of time.
    """

    shares: Sequence[float]
    criteria: Sequence[str]
    seeds: Sequence[int]
    fine_steps: int
    fine_scale: float = 0.3
    repetitions: int = 51


def compare(make_task: MakeTask, recipe: Recipe, settings: Settings, folder: Path, progress: Progress) -> jp.Report:
    """Trains dense networks, cuts them by each criterion, trains what is left, and measures its time.

    Args:
      make_task: a recipe, of which the widths matter, to its task.
      recipe: of the dense network.
      settings: see `Settings`.
      folder: finished seeds are kept there, and not run again.
      progress: gets a bar.
    """
    job = _Job(make_task, recipe, settings)
    records = Records(folder, {"recipe": dataclasses.asdict(recipe), **dataclasses.asdict(settings)})
    runs = len(settings.shares) * len(settings.criteria)
    each = recipe.steps + settings.fine_steps * (1 + runs)
    bar = progress.add_task("hidden units: training, cutting, training", total=each * len(settings.seeds))
    trials: list[jp.Trial] = []
    for seed in settings.seeds:
        found = records.get(f"seed{seed}")
        if found is None:
            made = job.seed(seed, functools.partial(progress.advance, bar))
            found = records[f"seed{seed}"] = [trial.to_dict() for trial in made]
        else:
            progress.advance(bar, each)
        trials += [jp.Trial.from_dict(trial) for trial in found]
    task = job.task(recipe.widths)
    return jp.Report(
        f"{task.data.name}: hidden units cut out",
        task.quality,
        trials,
        costs=_costs(job, trials, settings),
        axis=AXIS,
        notes=(
            f"Cut after {recipe.steps} steps, then trained for {settings.fine_steps} more; so was the dense network.",
            f"Times are of one utterance of {task.data.train.features.shape[1]} steps, a frame every "
            f"{1e3 * task.data.frame_shift:g} ms, on freshly drawn weights of the same shapes.",
        ),
        settings={"recipe": dataclasses.asdict(recipe), **dataclasses.asdict(settings), "source": task.data.source},
        kinds={
            "hidden units": "measured",
            "parameters": "measured",
            "MACs": "modelled",
            "before training on": "measured",
        },
    )


def widths_of(params: PyTree) -> tuple[int, ...]:
    """Hidden units of each recurrent layer, read from the recurrent matrices."""
    layers = params["stack"]
    recurrent = [layers[f"recurrent_{k}"] for k in range(len(layers))]
    return tuple(
        int(next(gate["kernel"] for name, gate in cell.items() if name[0] == "h").shape[0]) for cell in recurrent
    )


class _Job:
    """Tasks and compiled steps by their widths: what is cut to the same size runs the same program."""

    def __init__(self, make_task: MakeTask, recipe: Recipe, settings: Settings):
        self.make_task, self.recipe, self.settings = make_task, recipe, settings
        self.task = functools.cache(self._task)
        self.step = functools.cache(self._step)
        self.apply = functools.cache(lambda widths: jax.jit(self.task(widths).apply_fn))

    def _task(self, widths: tuple[int, ...]) -> Task:
        return self.make_task(dataclasses.replace(self.recipe, widths=widths))

    def _step(self, widths: tuple[int, ...], fine: bool) -> tuple[optax.GradientTransformation, Any]:
        settings, task = self.settings, self.task(widths)
        tx = self.recipe.optimizer(settings.fine_steps, settings.fine_scale) if fine else self.recipe.optimizer()
        return tx, jp.pipeline.make_step(task.apply_fn, task.loss_fn, tx, sparse=False)

    def train(self, params: PyTree, start: int, fine: bool, advance: Callable[[], None]) -> PyTree:
        """Trains from a step of the data on: the whole recipe, or the steps after the cut."""
        widths = widths_of(params)
        tx, step = self.step(widths, fine)
        state = jp.pipeline.State(jax.tree.map(jnp.array, params), tx.init(params))
        steps = self.settings.fine_steps if fine else self.recipe.steps
        for k in range(steps):
            state, _ = step(state, *self.task(widths).train_batches(start + k))
            advance()
        return state.params

    def seed(self, seed: int, advance: Callable[[], None]) -> list[jp.Trial]:
        """All trials of a seed."""
        settings, task = self.settings, self.task(self.recipe.widths)
        first = seed * (self.recipe.steps + settings.fine_steps)
        dense = self.train(task.init(jax.random.key(seed)), first, False, advance)
        model = jp.trace(task.apply_fn, dense, task.example)
        grads = self._gradients(task, dense, first)
        trials = [self._trial("dense", 0.0, seed, dense, first, advance)]
        for share in settings.shares:
            for criterion in settings.criteria:
                scores = _scores(model, dense, criterion, grads, jax.random.key(seed))
                plan = jp.select(model, scores, jp.Budget(macs=1 - share), min_keep=2)
                if criterion == settings.criteria[-1] and seed == settings.seeds[0]:
                    # The small network computes what the dense one does with these units masked.
                    jp.verify(model, plan, dense, task.example, strict=True)
                small = jp.shrink(model, plan, dense)
                trials.append(self._trial(criterion, share, seed, small, first, advance))
        return trials

    def _gradients(self, task: Task, params: PyTree, first: int) -> PyTree:
        """The mean gradient over a few batches, for the Taylor score."""

        @jax.jit
        def gradient(params: PyTree, inputs: Any, targets: Any) -> PyTree:
            return jax.grad(lambda p: task.loss_fn(task.apply_fn(p, inputs), targets))(params)

        found = [gradient(params, *task.train_batches(first + k)) for k in range(_SCORING_BATCHES)]
        return jax.tree.map(lambda *leaves: sum(leaves) / len(leaves), *found)

    def _trial(
        self, method: str, share: float, seed: int, params: PyTree, first: int, advance: Callable[[], None]
    ) -> jp.Trial:
        """Measures before and after the last steps of training."""
        widths = widths_of(params)
        task, apply = self.task(widths), self.apply(widths)
        before = task.eval_fn(apply, params)
        params = self.train(params, first + self.recipe.steps, True, advance)
        values = {
            "hidden units": float(sum(widths)),
            "parameters": float(sum(leaf.size for leaf in jax.tree.leaves(params))),
            "MACs": float(jp.trace(task.apply_fn, params, task.example).cost().macs),
            "before training on": before,
        }
        return jp.Trial(method, share, seed, task.eval_fn(apply, params), values)


def _scores(model: jp.Model, params: PyTree, criterion: str, grads: PyTree, key: jax.Array) -> dict[str, jax.Array]:
    if criterion == "random":
        return {
            name: jax.random.uniform(jax.random.fold_in(key, k), (group.size,))
            for k, (name, group) in enumerate(model.groups.items())
        }
    if criterion == "magnitude":
        return jp.group_scores(model, params, jp.scores.magnitude, power=2.0)
    return jp.group_scores(model, params, jp.scores.taylor, grads=grads)


def _costs(job: _Job, trials: Sequence[jp.Trial], settings: Settings) -> dict[str, dict[str, jp.measure.Figure]]:
    """Time, real-time factor, multiply-adds and parameters of the dense network and of one for each share."""
    full = job.task(job.recipe.widths)
    sizes = {"dense": job.recipe.widths}
    for share in settings.shares:
        trial = next(trial for trial in trials if trial.sparsity == share)
        if len(full.recipe.widths) == 1:
            sizes[f"shrunk, {share:.0%} of MACs removed"] = (int(trial.values["hidden units"]),)
    inputs = jax.tree.map(jnp.asarray, full.example)
    seconds = inputs[0].shape[1] * full.data.frame_shift
    calls: dict[str, Callable[[], Any]] = {}
    macs, counts = {}, {}
    for name, widths in sizes.items():
        params = job.task(widths).init(jax.random.key(0))
        calls[name] = functools.partial(job.apply(widths), params, inputs)
        cost = jp.trace(job.task(widths).apply_fn, params, inputs).cost()
        macs[name] = jp.measure.Figure(float(cost.macs), "MACs", "modelled", "jp.trace(...).cost(), one utterance")
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(params))
        counts[name] = jp.measure.Figure(float(size), "bytes", "measured", "bytes of the parameter arrays")
    times = jp.measure.latency(calls, repetitions=settings.repetitions)
    factors = {name: real_time_factor(figure, seconds) for name, figure in times.items()}
    return {"latency, one utterance": times, "real-time factor": factors, "MACs": macs, "parameters": counts}
