"""GraNet: gradual pruning with regrowth."""

from collections.abc import Sequence
from typing import Any

import jax

from jaxprune import schedules
from jaxprune.allocation import uniform
from jaxprune.compute import Rule
from jaxprune.pruners._exchange import absolute_gradient, check_drop_fraction, exchange
from jaxprune.pruners._pruner import Context, MaskSettings, Pruner, dense_masks
from jaxprune.structures import Structure, Unstructured
from jaxprune.trees import PyTree, Where


def granet(
    sparsity: float | None,
    *,
    begin: int,
    end: int,
    every: int = 1,
    drop_fraction: float = 0.3,
    structure: Structure = Unstructured(),
    allocation: Any = uniform,
    where: Where = None,
    rules: Sequence[Rule] = (),
) -> Pruner:
    r"""Density falls along the cubic schedule by magnitude, while a fraction of the rest regrows by gradient.

    Args:
      sparsity: target fraction of zeros.
      begin: step of the first mask update.
      end: step of the last one, which meets the target exactly.
      every: steps between updates.
      drop_fraction: fraction exchanged at first; it decays along a half cosine.
      structure: which weights go together.
      allocation: how the sparsity is shared.
      where: which parameters may be pruned.
      rules: exceptions by path.

    Returns:
      A pruner.

    Raises:
      ValueError: the steps, the sparsity or the drop fraction are out of range.

    Example:
      >>> import jax.numpy as jnp, optax, jaxprune as jp
      >>> tx = jp.sparsify(optax.sgd(0.1), jp.pruners.granet(0.5, begin=0, end=100, every=10))
      >>> bool(jp.get_masks(tx.init({"w": jnp.ones((2, 4))}))["w"].all())
      True

    References:
      Liu et al. 2021, Sparse Training via Boosting Pruning Plasticity, arXiv 2106.10404.
    """
    check_drop_fraction(drop_fraction)
    settings = MaskSettings(sparsity, structure=structure, allocation=allocation, where=where, rules=rules)
    plan = schedules.cubic(begin, end, every)

    def init(params: PyTree, key: jax.Array | None) -> tuple[PyTree, Any]:
        del key
        settings.check(params)
        return dense_masks(params, where), ()

    def update(masks: PyTree, state: Any, context: Context) -> tuple[PyTree, Any]:
        del masks
        pruned = settings.from_context(context, plan(context.step))
        fraction = schedules.cosine_decay(context.step, end, drop_fraction)
        return exchange(pruned, context, settings, fraction, absolute_gradient), state

    return Pruner(init, plan.is_update, update)
