"""`prune`: takes away in rounds, trains after each, and rolls back a round that loses too much."""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import optax

from jaxprune import masks as masks_
from jaxprune import storage
from jaxprune.pipeline.batches import Batches, Evaluate
from jaxprune.pipeline.budget import prunable
from jaxprune.pipeline.criteria import Scoring
from jaxprune.pipeline.optimise import make_step, read, start_state, train
from jaxprune.pipeline.predict import pruned
from jaxprune.pipeline.records import Records
from jaxprune.shrinking import Plan
from jaxprune.structures import NM
from jaxprune.transforms import keep_masks
from jaxprune.trees import PyTree

# How often more is asked for than is to go, where the quotas of rows or blocks round down to less.
_RETRIES = 4


@dataclasses.dataclass(frozen=True)
class Round:
    """One attempt to take away more.

    Attributes:
      removed: the fraction that was gone, of the weights that may be pruned or of multiply-adds: what the masks or the
        plan remove, not what was asked for. What was asked for, where it was not tried.
      quality: after its training.
      drop: what it lost against the dense model.
      accepted: whether it was kept; otherwise the model was put back to what it was before.
      reason: why it was not tried at all, if it was not.
    """

    removed: float
    quality: float
    drop: float
    accepted: bool
    reason: str = ""


@dataclasses.dataclass(frozen=True)
class Rounds:
    """What the rounds came to.

    Attributes:
      params: the parameters, zero where pruned.
      masks: their masks, in full shape; the scalar True everywhere where no round was accepted.
      plan: the indices that stay, where whole indices are cut; else None.
      removed: the fraction that is gone, counted in the masks or the plan.
      complete: whether that is all that was to go, to half a weight.
      history: every attempt.
    """

    params: PyTree
    masks: PyTree
    plan: Plan | None
    removed: float
    complete: bool
    history: tuple[Round, ...]


def levels(removed: float, rounds: int) -> list[float]:
    r"""The fractions of a number of rounds: $r_k = r\,(1 - (1 - k/K)^3)$, large steps first, as in GMP.

    Example:
      >>> [round(level, 3) for level in levels(0.8, 3)]
      [0.563, 0.77, 0.8]

    References:
      Zhu & Gupta, To prune, or not to prune (arXiv:1710.01878).
    """
    return [removed * (1 - (1 - k / rounds) ** 3) for k in range(1, rounds)] + [removed]


def prune(
    scoring: Scoring,
    params: PyTree,
    train_batches: Batches,
    eval_fn: Evaluate,
    *,
    criterion: str,
    removed: float,
    cuts: bool,
    tx: optax.GradientTransformation,
    steps: int,
    rounds: int = 4,
    dense_quality: float,
    max_drop: float,
    bisections: int = 3,
    start: int = 0,
    records: Records | None = None,
    progress: Callable[[], None] = lambda: None,
) -> Rounds:
    """Prunes in rounds; each trains under its masks, and is rolled back if it loses more than `max_drop`.

    After a failure the next attempt is half-way between the last model that was good enough and the level that failed;
    not under N:M, where there is nothing between. Where the quotas of rows or blocks round down to less than `removed`,
    the last level asks for more.

    Args:
      scoring: what the criterion may look at.
      params: the trained dense parameters.
      train_batches: a sequence of `(inputs, targets)`, or a callable of the step.
      eval_fn: `(apply_fn, params) -> quality`, higher is better.
      criterion: a name of `jp.pipeline.WEIGHTS`, or of `jp.pipeline.CUTS` with `cuts`.
      removed: the fraction to reach.
      cuts: whether whole indices are cut; they are masked here, and cut by `integrate`.
      tx: any Optax optimiser.
      steps: of training, in each round.
      rounds: how many steps to the goal, see `levels`.
      dense_quality: what the quality is compared with.
      max_drop: what it may lose.
      bisections: how many trainings to make after the first failure.
      start: the step of the data to begin with.
      records: where attempts are kept; those that are there are not made again.
      progress: called after every training step.

    Returns:
      The last model that was good enough, and every attempt. Without a good one, the dense model.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxprune as jp
      >>> apply_fn, loss_fn = lambda p, x: x @ p["w"], lambda y, t: jnp.mean((y - t) ** 2)
      >>> params, batch = {"w": jnp.diag(jnp.arange(1.0, 5.0))}, (jnp.eye(4), jnp.diag(jnp.arange(1.0, 5.0)))
      >>> scoring = jp.pipeline.Scoring(apply_fn, loss_fn, jp.trace(apply_fn, params, batch[0]), [batch])
      >>> evaluate = lambda apply_fn, params: -float(loss_fn(apply_fn(params, batch[0]), batch[1]))
      >>> made = prune(scoring, params, [batch], evaluate, criterion="magnitude", removed=0.75, cuts=False,
      ...              tx=optax.sgd(0.1), steps=1, rounds=2, dense_quality=0.0, max_drop=0.01)
      >>> made.removed, [each.accepted for each in made.history]
      (0.75, [True, True])
    """
    records = Records(None, {}) if records is None else records
    full = masks_.full_masks(jax.tree.map(lambda _: True, params), params)
    step = make_step(scoring.apply_fn, scoring.loss_fn, optax.chain(tx, keep_masks(full)))
    evaluated = jax.jit(scoring.apply_fn)
    slack = 1e-9 if cuts else 0.5 / sum(leaf.size for leaf in prunable(params, params, scoring.where))
    best, level = _Made(params, full, None, 0.0), 0.0
    failed: float | None = None
    left = 0 if isinstance(scoring.structure, NM) and not cuts else bisections
    history: list[Round] = []
    schedule = levels(removed, rounds)
    while (attempt := _next_level(schedule, level, failed, removed)) is not None:
        if failed is not None and not left:
            break
        name, begin = f"round-{len(history)}", start + len(history) * steps
        found = _restore(records, name, best)
        if found is None:
            try:
                made = _take(scoring, criterion, best, attempt, cuts, slack if attempt == removed else None)
            except ValueError as error:  # out of reach; that costs no training
                history.append(Round(attempt, math.nan, math.nan, False, str(error)))
                failed = attempt
                continue
            first = start_state(optax.chain(tx, keep_masks(made.masks)), made.params)
            state, _ = train(step, first, train_batches, steps=steps, start=begin, progress=progress)
            made = made._replace(params=read(state, True)[0])
            quality = float(eval_fn(evaluated, made.params))
            _store(records, name, made, quality)
        else:
            made, quality = found
            for _ in range(steps):
                progress()
        left -= failed is not None
        drop = dense_quality - quality
        accepted = drop <= max_drop  # false for NaN
        history.append(Round(made.removed, quality, drop, accepted))
        if accepted:
            best, level = made, max(attempt, made.removed)
        else:
            failed = attempt
    masks = best.masks if level else jax.tree.map(lambda _: True, params)
    return Rounds(best.params, masks, best.plan, best.removed, best.removed >= removed - slack, tuple(history))


class _Made(NamedTuple):
    """A pruned model, and the fraction that is gone; the masks in full shape."""

    params: PyTree
    masks: PyTree
    plan: Plan | None
    removed: float


def _take(
    scoring: Scoring, criterion: str, before: _Made, level: float, cuts: bool, slack: float | None = None
) -> _Made:
    """Takes away; with `slack`, more is asked for as long as less than the level is gone, and it can be asked for."""

    def take(asked: float) -> _Made:
        params, masks, plan = pruned(scoring, criterion, before.params, asked, cuts, before.plan)
        masks = masks_.full_masks(masks, params)
        return _Made(params, masks, plan, _removed(scoring, params, masks, plan))

    made, more = take(level), 0.0
    if slack is None or isinstance(scoring.structure, NM):
        return made
    for _ in range(_RETRIES):
        if made.removed >= level - slack:
            break
        more = 2 * more + level - made.removed  # doubled, for a quota may take a while to move
        if level + more >= 1:
            break
        try:
            made = take(level + more)
        except ValueError:  # more cannot be had; what is gone is what the record says
            break
    return made


def _removed(scoring: Scoring, params: PyTree, masks: PyTree, plan: Plan | None) -> float:
    """The fraction that is gone: of multiply-adds by a plan, else of the weights that may be pruned."""
    if plan is not None:
        return 1 - scoring.model.cost(plan=plan).macs / scoring.model.cost().macs
    return masks_.sparsity(prunable(masks, params, scoring.where), prunable(params, params, scoring.where))


def _store(records: Records, name: str, made: _Made, quality: float) -> None:
    """Keeps a round: the arrays first, for the record says that they are complete."""
    folder = records.within(f"{name}-arrays")
    if folder is None:
        return
    storage.save(folder, {"params": made.params, "masks": made.masks}, overwrite=True)
    records[name] = {
        "removed": made.removed,
        "quality": quality if math.isfinite(quality) else None,
        "plan": None if made.plan is None else made.plan.to_json(),
    }


def _restore(records: Records, name: str, like: _Made) -> tuple[_Made, float] | None:
    """A round that was kept and its quality, or None."""
    folder, record = records.within(f"{name}-arrays"), records.get(name)
    if folder is None or record is None:
        return None
    arrays = storage.restore(folder, {"params": like.params, "masks": like.masks})
    plan = None if record["plan"] is None else Plan.from_json(record["plan"])
    quality = math.nan if record["quality"] is None else record["quality"]
    return _Made(arrays["params"], arrays["masks"], plan, record["removed"]), quality


def _next_level(schedule: Sequence[float], reached: float, failed: float | None, goal: float) -> float | None:
    """What to try next; None where the goal is reached, or what is left to try makes no difference."""
    if failed is None:
        return next((level for level in schedule if level > reached), None)
    middle = (reached + failed) / 2
    return middle if failed - reached > 0.01 * goal else None
