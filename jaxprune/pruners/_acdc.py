"""AC/DC: alternating compressed and dense phases."""

from collections.abc import Sequence
from typing import Any

import jax

from jaxprune import schedules, scores
from jaxprune.allocation import uniform
from jaxprune.compute import Rule
from jaxprune.pruners._pruner import Context, MaskSettings, Pruner, dense_masks
from jaxprune.scores import Score
from jaxprune.structures import Structure, Unstructured
from jaxprune.trees import PyTree, Where


def acdc(
    sparsity: float | None,
    *,
    begin: int,
    end: int,
    every: int,
    score: Score = scores.magnitude,
    structure: Structure = Unstructured(),
    allocation: Any = uniform,
    where: Where = None,
    rules: Sequence[Rule] = (),
) -> Pruner:
    r"""Alternates compressed and dense phases of `every` steps and ends compressed.

    Dense until `begin`, compressed from there for `every` steps, dense for `every` steps, and so on; from `end` on
    compressed for good. Moments of pruned weights are reset at each change.

    Args:
      sparsity: fraction of zeros of the compressed phases.
      begin: step of the first compression.
      end: step of the last compression.
      every: steps of a phase.
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
      >>> tx = jp.sparsify(optax.sgd(0.1), jp.pruners.acdc(0.5, begin=0, end=40, every=10))
      >>> bool(jp.get_masks(tx.init({"w": jnp.ones((2, 4))}))["w"].all())
      True

    References:
      Peste et al. 2021, arXiv 2106.12379.
    """
    settings = MaskSettings(sparsity, score, structure, allocation, where, rules)
    plan = schedules.constant(begin, end, every)

    def init(params: PyTree, key: jax.Array | None) -> tuple[PyTree, Any]:
        del key
        settings.check(params)
        return dense_masks(params, where), ()

    def update(masks: PyTree, state: Any, context: Context) -> tuple[PyTree, Any]:
        del masks
        compress = (((context.step - begin) // every) % 2 == 0) | (context.step == end)
        compressed = settings.from_context(context)
        return jax.tree.map(lambda m: m | ~compress, compressed), state

    return Pruner(init, plan.is_update, update)
