"""`run`: the five steps as one call: preprocess, predict, prune, optimise, integrate and test."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
import optax

from jaxprune import masks as masks_
from jaxprune import storage
from jaxprune.calibration.accumulate import counter
from jaxprune.measure import Figure
from jaxprune.pipeline.account import account
from jaxprune.pipeline.batches import Apply, Batch, Batches, Evaluate, Loss, batch_at
from jaxprune.pipeline.budget import fraction_for_latency, fraction_to_remove, share_to_cut
from jaxprune.pipeline.criteria import Scoring
from jaxprune.pipeline.examine import test
from jaxprune.pipeline.integrate import integrate
from jaxprune.pipeline.optimise import (
    Checkpoints,
    check_every,
    check_floating,
    make_step,
    read,
    start_state,
    train,
)
from jaxprune.pipeline.predict import Prediction, predict
from jaxprune.pipeline.preprocess import Preprocessed, preprocess
from jaxprune.pipeline.prune import Round, Rounds, levels, prune
from jaxprune.pipeline.records import Records, checksum, stable_name
from jaxprune.pipeline.robustness import CORRUPTIONS, Corruption
from jaxprune.pipeline.target import Target
from jaxprune.pipeline.writing import write_report
from jaxprune.report import Report
from jaxprune.shrinking import Plan
from jaxprune.structures import NM, Structure, Unstructured
from jaxprune.summary import summary
from jaxprune.transforms import keep_masks
from jaxprune.trees import PyTree, Where

_SAME_BATCH = (
    "There is a single training batch: the criteria were compared on the batch that they had seen, which flatters "
    "those that look at data."
)


@dataclasses.dataclass(frozen=True)
class Result:
    """A pruned model and how it came about; prints as its report.

    Attributes:
      params: the parameters; smaller arrays where indices were cut, else with exact zeros.
      apply_fn: the function that goes with them.
      masks: of the dense parameters, in full shape: True = keep.
      plan: the indices that stay, where indices were cut; else None.
      met: whether the target was reached within the quality that may be lost.
      quality: of the pruned model.
      dense_quality: of the dense model.
      prediction: the held-out loss of every criterion; its `best` was used.
      preprocessed: the trace, the cost and the sensitivity of the dense model.
      history: every round, those that were rolled back included.
      report: tables, page and JSON of it all.
    """

    params: PyTree
    apply_fn: Apply
    masks: PyTree
    plan: Plan | None
    met: bool
    quality: float
    dense_quality: float
    prediction: Prediction
    preprocessed: Preprocessed
    history: tuple[Round, ...]
    report: Report

    def __str__(self) -> str:
        return str(self.report)


def run(
    apply_fn: Apply,
    params: PyTree,
    loss_fn: Loss,
    train_batches: Batches,
    eval_fn: Evaluate,
    *,
    target: Target,
    tx: optax.GradientTransformation,
    steps: int,
    methods: str | Sequence[str] = "auto",
    key: jax.Array | None = None,
    warmup_steps: int = 0,
    rounds: int = 4,
    distillation: float = 0.0,
    structure: Structure = Unstructured(),
    where: Where = None,
    round_to: int | Mapping[str, int] = 1,
    calibration: int = 4,
    folder: str | Path | None = None,
    checkpoint_every: int | None = None,
    corruptions: Mapping[str, Corruption] = CORRUPTIONS,
    energy_seconds: float = 0.0,
    quality: str = "quality",
    title: str = "Pruned with jaxprune",
    progress: bool = True,
) -> Result:
    """Prunes a model to a target, as far as its quality allows.

    The criterion with the lowest held-out loss is used (`predict`). It takes away in rounds (`prune`), each of which
    trains for `steps / (rounds + 1)` steps and is rolled back if the quality fell by more than `target.max_drop`; the
    search then bisects, for which further steps are spent. What is left of the steps trains the result (`optimise`),
    and is kept if it is better. Then indices are cut (`integrate`) and everything is measured (`test`). The same call
    with the same folder goes on after a kill.

    Args:
      apply_fn: `(params, inputs) -> outputs`; inputs are any pytree. Batch statistics among the parameters stay as they
        are under an optimiser that leaves them alone (`optax.partition`).
      params: parameters; trained ones, unless `warmup_steps` trains them.
      loss_fn: `(outputs, targets) -> scalar`.
      train_batches: a sequence of `(inputs, targets)`, or a callable `step -> (inputs, targets)`.
      eval_fn: `(apply_fn, params) -> quality`, higher is better. It must call the function it is given, which is
        another one for a smaller model. Give it a validation split: it steers the search.
      target: what to reach, and what may be lost.
      tx: any Optax optimiser.
      steps: of training after pruning, over all rounds that succeed.
      methods: criteria by name, from `jp.pipeline.WEIGHTS` or (for `macs` and `latency`) `jp.pipeline.CUTS`; or
        `"auto"`.
      key: a typed PRNG key, for random scores and corruptions.
      warmup_steps: steps of dense training before anything else.
      rounds: how many steps to the target; one under N:M.
      distillation: the weight of matching the dense model's outputs in the last training, see `make_step`.
      structure: what is pruned together, for targets of `sparsity` and `bytes` alone.
      where: which parameters may be pruned, for targets of `sparsity` and `bytes` alone.
      round_to: for targets of `macs` and `latency`, the channels, heads or features that stay are a multiple of this;
        hardware is slow on odd numbers of them.
      calibration: how many batches the criteria see; as many others are held out, if there are.
      folder: where finished rounds are kept, to go on from there.
      checkpoint_every: steps between checkpoints within the warm-up and the last training.
      corruptions: of the inputs, for robustness; each takes an evaluation of both models. `{}` for none.
      energy_seconds: how long to measure energy, where there is a sensor; 0 for not at all.
      quality: what the quality is called.
      title: of the report.
      progress: show a progress bar.

    Returns:
      See `Result`. A target that cannot be met ends with the best model found: `met` is False, and the report says so.

    Raises:
      ValueError: an unknown criterion, a target that the structure or the function cannot have, `structure` or `where`
        beside a target of `macs` or `latency`, a folder of another run (other settings, or other parameters).
      TypeError: `train_batches` is no sequence and no callable; a parameter is not floating.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxprune as jp
      >>> x = jax.random.normal(jax.random.key(0), (64, 8))
      >>> batches = [(x, x[:, :2])] * 2
      >>> apply_fn, loss_fn = lambda p, x: x @ p["a"] @ p["b"], lambda y, t: jnp.mean((y - t) ** 2)
      >>> params = {"a": jnp.eye(8, 6) + 0.01, "b": jnp.eye(6, 2)}
      >>> evaluate = lambda apply_fn, params: -float(loss_fn(apply_fn(params, x), x[:, :2]))
      >>> made = jp.pipeline.run(apply_fn, params, loss_fn, batches, evaluate, target=jp.Target(macs=0.5),
      ...                        tx=optax.adam(0.01), steps=50, progress=False)
      >>> made.met, made.params["a"].shape
      (True, (8, 3))
    """
    check_floating(params)
    check_every(checkpoint_every)
    key = jax.random.key(0) if key is None else key
    rounds = 1 if isinstance(structure, NM) else rounds
    each = steps // (rounds + 1)
    settings = {"target": str(target), "steps": steps, "methods": methods, "warmup_steps": warmup_steps}
    settings |= {
        "rounds": rounds,
        "distillation": distillation,
        "structure": str(structure),
        "calibration": calibration,
        "round_to": round_to,
        "where": stable_name(where),
    }
    seen, held_out = _split(train_batches, calibration)
    inputs = seen[0][0]
    evaluated = jax.jit(apply_fn)
    wanted = fraction_to_remove(target, params, structure, where)
    started = {"key": np.asarray(jax.random.key_data(key)).tolist(), "checksum of params": checksum(params)}
    records = Records(folder, settings | started)

    with counter(progress, warmup_steps + steps, title) as advance:
        training = _Training(apply_fn, loss_fn, train_batches, tx, records, checkpoint_every, advance)
        params = training("dense", params, warmup_steps, start=0)
        dense_quality = float(eval_fn(evaluated, params))
        scan = not target.cuts and (methods == "auto" or "sensitivity" in methods)
        known = preprocess(apply_fn, params, loss_fn, seen, structure=structure, where=where, scan=scan, up_to=wanted)
        if target.cuts and not known.cost.macs:
            raise ValueError(
                f"{target}: the function has no multiply-adds, no dot and no convolution. Ask for sparsity or bytes."
            )
        allocation = None if known.sensitivity is None else known.sensitivity.allocation
        scoring = Scoring(apply_fn, loss_fn, known.model, seen, structure, where, key, allocation, round_to)
        if target.goal == "latency":
            wanted = _kept(records, "latency", lambda: fraction_for_latency(scoring, params, inputs, target.value))[0]
        first = levels(wanted, rounds)[0]
        first = share_to_cut(scoring, params, first) if target.cuts else first
        prediction = predict(scoring, params, held_out, removed=first, methods=methods, cuts=target.cuts)
        made = prune(
            scoring,
            params,
            train_batches,
            eval_fn,
            criterion=prediction.best,
            removed=wanted,
            cuts=target.cuts,
            tx=tx,
            steps=each,
            rounds=rounds,
            dense_quality=dense_quality,
            max_drop=target.max_drop,
            start=warmup_steps,
            records=records,
            progress=advance,
        )
        last = steps - rounds * each
        start = warmup_steps + len(made.history) * each
        teacher = (apply_fn, params) if distillation > 0 else None
        masks = masks_.full_masks(made.masks, params)
        final = training("final", made.params, last, start=start, masks=masks, teacher=teacher, weight=distillation)
        if made.removed and not float(eval_fn(evaluated, final)) >= float(eval_fn(evaluated, made.params)):
            final = made.params  # also where the quality, or a whole training, came to NaN
    final = final if made.removed else params  # nothing was pruned: the dense model, as it was

    done = integrate(apply_fn, known.model, final, made.plan, inputs)
    name = "pruned" if made.plan is None else "shrunk"
    models = {"dense": (apply_fn, params), name: (done.apply_fn, done.params)}
    tested = test(
        models,
        eval_fn,
        inputs,
        model=known.model,
        masks=masks,
        plan=made.plan,
        key=key,
        corruptions=corruptions,
        energy_seconds=energy_seconds,
    )
    kept_quality = dense_quality - tested.quality[name] <= target.max_drop
    met = kept_quality and _met(target, made, tested.costs, name)
    trained = last + each * sum(not attempt.reason for attempt in made.history)
    notes = [account(*tested.costs["multiply-adds a call"].values(), steps=trained, warmup=warmup_steps)]
    notes += [_SAME_BATCH] if held_out[0][0] is inputs else []
    report = write_report(
        title,
        quality,
        target,
        met,
        made,
        tested,
        done.verification,
        prediction,
        summary(params, masks, where=where),
        settings,
        notes,
    )
    return Result(
        done.params,
        done.apply_fn,
        masks,
        made.plan,
        met,
        tested.quality[name],
        dense_quality,
        prediction,
        known,
        made.history,
        report,
    )


@dataclasses.dataclass(frozen=True)
class _Training:
    """A training of the pipeline under its name: kept in its records, and gone on with after a kill."""

    apply_fn: Apply
    loss_fn: Loss
    train_batches: Batches
    tx: optax.GradientTransformation
    records: Records
    checkpoint_every: int | None
    advance: Callable[[], None]

    def __call__(
        self,
        name: str,
        params: PyTree,
        steps: int,
        *,
        start: int,
        masks: PyTree | None = None,
        teacher: Any = None,
        weight: float = 0.0,
    ) -> PyTree:
        if not steps:
            return params
        folder, states = self.records.within(f"{name}-params"), self.records.within(f"{name}-state")
        if folder is not None and folder.exists():
            for _ in range(steps):
                self.advance()
            return storage.restore(folder, params)
        tx = self.tx if masks is None else optax.chain(self.tx, keep_masks(masks))
        step = make_step(
            self.apply_fn, self.loss_fn, tx, sparse=masks is not None, teacher=teacher, distillation=weight
        )
        every = self.checkpoint_every
        checkpoints = Checkpoints(states, every) if states is not None and every is not None else None
        state, _ = train(
            step,
            start_state(tx, params),
            self.train_batches,
            steps=steps,
            start=start,
            checkpoints=checkpoints,
            progress=self.advance,
        )
        params = read(state, masks is not None)[0]
        if folder is not None:
            storage.save(folder, params)
        return params


def _split(train_batches: Batches, count: int) -> tuple[list[Batch], list[Batch]]:
    """Batches for the criteria, and as many others to compare them on; the same ones where there is a single batch."""
    if count < 1:
        raise ValueError(f"calibration={count}: at least 1 batch is needed.")
    batch = batch_at(train_batches)
    if isinstance(train_batches, Sequence):
        count = max(1, min(count, len(train_batches) // 2))
    return [batch(k) for k in range(count)], [batch(count + k) for k in range(count)]


def _kept(records: Records, name: str, make: Callable[[], Any]) -> Any:
    """A result from the records, or made and put there."""
    found = records.get(name)
    if found is None:
        records[name] = found = make()
    return found


def _met(target: Target, made: Rounds, costs: Mapping[str, Mapping[str, Figure]], name: str) -> bool:
    """Whether the goal was reached: by the measured latency, by the bytes stored, or by counts."""
    cost = {"latency": "latency", "bytes": "bytes stored"}.get(target.goal)
    if cost is None:
        return made.complete
    pruned, dense = costs[cost][name].value, costs[cost]["dense"].value
    return (math.inf if pruned is None else pruned) <= target.value * (dense or 0.0)
