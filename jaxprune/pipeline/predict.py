"""`predict`: which criterion hurts the least, on batches that it has not seen; random is the control."""

import dataclasses
import math
from collections.abc import Mapping, Sequence

import jax

from jaxprune import masks as masks_
from jaxprune.pipeline.batches import Batch
from jaxprune.pipeline.criteria import WEIGHTS, Scoring, criteria_for, cut
from jaxprune.shrinking import Plan
from jaxprune.trees import PyTree


@dataclasses.dataclass(frozen=True)
class Prediction:
    """The held-out loss of every criterion at one level, without any further training; prints as a table.

    Attributes:
      removed: the fraction that was taken away, of weights or of multiply-adds.
      dense: the loss of the model before.
      losses: the loss after, by criterion; NaN counts as the worst.
      skipped: why other criteria could not be used.
      asked: the criteria that may be used; random is measured as the control, asked for or not.

    Example:
      >>> made = Prediction(0.5, 0.1, {"random": 2.0, "magnitude": 0.3}, {}, ("magnitude",))
      >>> made.best, made.ranking
      ('magnitude', ['magnitude', 'random'])
    """

    removed: float
    dense: float
    losses: Mapping[str, float]
    skipped: Mapping[str, str]
    asked: Sequence[str]

    @property
    def ranking(self) -> list[str]:
        """The criteria, the one that loses the least first."""
        return sorted(self.losses, key=self._rank)

    @property
    def best(self) -> str:
        """The criterion that loses the least, of those that were asked for."""
        return next(name for name in self.ranking if name in self.asked)

    @property
    def beats_random(self) -> bool:
        """Whether the best criterion loses less than random does."""
        return self._rank(self.best) < self._rank("random")

    def _rank(self, name: str) -> tuple[bool, float]:
        return math.isnan(self.losses[name]), self.losses[name]

    def __str__(self) -> str:
        lines = [f"held-out loss (measured) with {self.removed:.0%} removed, {self.dense:.4g} before"]
        lines += [f"  {name:<20} {self.losses[name]:.4g}" for name in self.ranking]
        return "\n".join([*lines, *(f"  {name:<20} skipped: {reason}" for name, reason in self.skipped.items())])


def predict(
    scoring: Scoring,
    params: PyTree,
    held_out: Sequence[Batch],
    *,
    removed: float,
    methods: str | Sequence[str],
    cuts: bool,
) -> Prediction:
    """Prunes once with each criterion and measures the loss on held-out batches.

    Args:
      scoring: what the criteria may look at.
      params: the parameters.
      held_out: batches that the criteria have not seen.
      removed: the fraction to take away, of weights or (with `cuts`) of multiply-adds.
      methods: names of criteria, or `"auto"` for all that can be used here; random is always there.
      cuts: whether whole indices are cut.

    Returns:
      See `Prediction`.

    Raises:
      ValueError: an unknown criterion, or none that can be used; no held-out batches.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxprune as jp
      >>> apply_fn, loss_fn = lambda p, x: x @ p["w"], lambda y, t: jnp.mean((y - t) ** 2)
      >>> params, batch = {"w": jnp.diag(jnp.arange(1.0, 5.0))}, (jnp.eye(4), jnp.diag(jnp.arange(1.0, 5.0)))
      >>> model = jp.trace(apply_fn, params, batch[0])
      >>> scoring = jp.pipeline.Scoring(apply_fn, loss_fn, model, [batch], key=jax.random.key(0))
      >>> predict(scoring, params, [batch], removed=0.75, methods=("magnitude",), cuts=False).best
      'magnitude'
    """
    if not held_out:
        raise ValueError("predict: held_out is empty; give at least one (inputs, targets).")
    asked = criteria_for(scoring, methods, cuts)
    reasons = {**asked, "random": ""}
    loss_of = jax.jit(lambda p, inputs, targets: scoring.loss_fn(scoring.apply_fn(p, inputs), targets))

    def loss(params: PyTree) -> float:
        return sum(float(loss_of(params, inputs, targets)) for inputs, targets in held_out) / len(held_out)

    losses = {}
    for name, reason in reasons.items():
        if not reason:
            losses[name] = loss(pruned(scoring, name, params, removed, cuts)[0])
    skipped = {name: reason for name, reason in reasons.items() if reason}
    return Prediction(removed, loss(params), losses, skipped, tuple(asked))


def pruned(
    scoring: Scoring, name: str, params: PyTree, removed: float, cuts: bool, before: Plan | None = None
) -> tuple[PyTree, PyTree, Plan | None]:
    """Parameters, masks and plan (None for weights) after one criterion; `before` is the plan of an earlier round."""
    if not cuts:
        return *WEIGHTS[name](scoring, params, removed), None
    plan = cut(scoring, name, params, 1 - removed, before)
    masks = masks_.full_masks(plan.masks(scoring.model), params)
    return masks_.apply_masks(params, masks), masks, plan
