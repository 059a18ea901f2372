"""`prune`: takes away in rounds, trains after each, and rolls back a round that loses too much."""

import dataclasses
import math
from collections.abc import Callable, Sequence

import jax
import optax

from jaxprune import masks as masks_
from jaxprune import storage
from jaxprune.pipeline.batches import Batches, Evaluate
from jaxprune.pipeline.criteria import Scoring
from jaxprune.pipeline.optimise import make_step, read, start_state, train
from jaxprune.pipeline.predict import pruned
from jaxprune.pipeline.records import Records
from jaxprune.shrinking import Plan
from jaxprune.transforms import keep_masks
from jaxprune.trees import PyTree


@dataclasses.dataclass(frozen=True)
class Round:
    """One attempt to take away more.

    Attributes:
      removed: the fraction that was gone, of weights or of multiply-adds; where whole indices are cut, that is what the
        plan removes, and at least what was tried.
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
      removed: the fraction that is gone.
      history: every attempt.
    """

    params: PyTree
    masks: PyTree
    plan: Plan | None
    removed: float
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

    After a failure the next attempt is half-way between the last model that was good enough and the level that failed.

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
      bisections: how many attempts to make after the first that failed.
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
    whole_cost = scoring.model.cost().macs
    best, masks, plan, reached = params, None, None, 0.0
    failed: float | None = None
    left = bisections
    history: list[Round] = []
    schedule = levels(removed, rounds)
    while (attempt := _next_level(schedule, reached, failed, removed)) is not None:
        if failed is not None:
            if not left:
                break
            left -= 1
        name = f"round-{len(history)}"
        try:
            made, keep, cut = pruned(scoring, criterion, best, attempt, cuts, plan)
        except ValueError as error:  # the first level was tried by `predict`; this one is out of reach
            history.append(Round(attempt, math.nan, math.nan, False, str(error)))
            failed = attempt
            continue
        keep = masks_.full_masks(keep, params)
        gone = attempt if cut is None else max(attempt, 1 - scoring.model.cost(plan=cut).macs / whole_cost)
        record, folder = records.get(name), records.within(f"{name}-params")
        if record is None:
            whole = optax.chain(tx, keep_masks(keep))
            state, _ = train(
                step,
                start_state(whole, made),
                train_batches,
                steps=steps,
                start=start + len(history) * steps,
                progress=progress,
            )
            made = read(state, True)[0]
            quality = float(eval_fn(evaluated, made))
            if folder is not None:
                storage.save(folder, made, overwrite=True)
            records[name] = record = {"removed": gone, "quality": quality if math.isfinite(quality) else None}
        elif folder is not None:
            made = storage.restore(folder, made)
            for _ in range(steps):
                progress()
        quality = math.nan if record["quality"] is None else record["quality"]
        drop = dense_quality - quality
        accepted = drop <= max_drop  # false for NaN
        history.append(Round(gone, quality, drop, accepted))
        if accepted:
            best, masks, plan, reached = made, keep, cut, gone
        else:
            failed = attempt
    if masks is None:
        masks = jax.tree.map(lambda _: True, params)
    return Rounds(best, masks, plan, reached, tuple(history))


def _next_level(schedule: Sequence[float], reached: float, failed: float | None, goal: float) -> float | None:
    """What to try next; None where the goal is reached, or what is left to try makes no difference."""
    if failed is None:
        return next((level for level in schedule if level > reached), None)
    middle = (reached + failed) / 2
    return middle if failed - reached > 0.01 * goal else None
