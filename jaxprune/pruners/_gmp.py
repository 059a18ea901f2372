"""Gradual magnitude pruning."""

from collections.abc import Callable, Sequence
from typing import Any

import jax

from jaxprune import schedules, scores
from jaxprune.allocation import uniform
from jaxprune.compute import Rule
from jaxprune.pruners._pruner import Context, MaskSettings, Pruner, dense_masks
from jaxprune.schedules import Schedule
from jaxprune.scores import Score
from jaxprune.structures import Structure, Unstructured
from jaxprune.trees import PyTree, Where


def gmp(
    sparsity: float | None,
    *,
    begin: int,
    end: int,
    every: int = 1,
    schedule: Callable[[int, int, int], Schedule] = schedules.cubic,
    score: Score = scores.magnitude,
    structure: Structure = Unstructured(),
    allocation: Any = uniform,
    where: Where = None,
    rules: Sequence[Rule] = (),
) -> Pruner:
    r"""Prunes gradually by magnitude, or by any score, until the target is met at `end`.

    At each mask update the lowest-scored weights are set to zero. A pruned weight ranks below all others, whatever
    the score, and so stays pruned, unless the schedule lets the number of weights grow. `begin == end` is one-shot
    pruning. N:M has its full pattern from the first update on.

    Args:
      sparsity: target fraction of zeros.
      begin: step of the first mask update.
      end: step of the last one, which meets the target exactly.
      every: steps between updates.
      schedule: how progress grows from `begin` to `end`.
      score: what is pruned first (lowest).
      structure: which weights go together.
      allocation: how the sparsity is shared.
      where: which parameters may be pruned.
      rules: exceptions by path.

    Returns:
      A pruner.

    Raises:
      ValueError: the steps or the sparsity are out of range.

    Example:
      >>> import jax.numpy as jnp, optax, jaxprune as jp
      >>> tx = jp.sparsify(optax.sgd(0.1), jp.pruners.gmp(0.5, begin=0, end=0))
      >>> params = {"w": jnp.array([[3.0, 1.0]])}
      >>> updates, state = tx.update({"w": jnp.zeros((1, 2))}, tx.init(params), params)
      >>> optax.apply_updates(params, updates)["w"].tolist()
      [[3.0, 0.0]]

    References:
      Zhu and Gupta 2017, arXiv 1710.01878.
    """
    settings = MaskSettings(sparsity, score, structure, allocation, where, rules)
    plan = schedule(begin, end, every)

    def init(params: PyTree, key: jax.Array | None) -> tuple[PyTree, Any]:
        settings.check(params)
        return dense_masks(params, where), ()

    def update(masks: PyTree, state: Any, context: Context) -> tuple[PyTree, Any]:
        # Scores alone would not keep pruned weights out: a random one draws them anew, and a signed one has zero,
        # the score of a pruned weight, above that of weights in use.
        return settings.from_context(context, plan(context.step), among=masks), state

    return Pruner(init, plan.is_update, update)
