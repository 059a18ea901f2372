"""Straight-through pruners: dense weights learn, the forward pass sees the largest."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxprune import schedules, scores
from jaxprune.allocation import uniform
from jaxprune.compute import Rule
from jaxprune.pruners._pruner import Context, MaskSettings, Pruner, check_strength, dense_masks, is_off
from jaxprune.scores import Score
from jaxprune.structures import Structure, Unstructured
from jaxprune.trees import PyTree, Where


def ste(
    sparsity: float | None,
    *,
    begin: int = 0,
    end: int | None = None,
    every: int = 1,
    score: Score = scores.magnitude,
    structure: Structure = Unstructured(),
    allocation: Any = uniform,
    where: Where = None,
    rules: Sequence[Rule] = (),
) -> Pruner:
    r"""Straight-through estimation: the gradient at the masked weights is applied to all dense weights.

    Take the gradient at `jp.sparse_params(params, opt_state)`; the stored parameters stay dense, and
    `jp.sparse_params` gives the final model. Masks follow the weights after every `every`-th step.

    Args:
      sparsity: target fraction of zeros.
      begin: step of the first mask update; masks keep everything before.
      end: step at which a cubic ramp meets the target; `begin` by default (no ramp).
      every: steps between mask updates.
      score: what is masked first (lowest); one that needs gradients leaves all dense until the first update.
      structure: which weights go together.
      allocation: how the sparsity is shared.
      where: which parameters may be pruned.
      rules: exceptions by path.

    Returns:
      A pruner with dense storage.

    Raises:
      ValueError: the steps or the sparsity are out of range.

    Example:
      >>> import jax.numpy as jnp, optax, jaxprune as jp
      >>> tx = jp.sparsify(optax.sgd(0.1), jp.pruners.ste(0.5))
      >>> params = {"w": jnp.array([[3.0, 1.0]])}
      >>> jp.sparse_params(params, tx.init(params))["w"].tolist()
      [[3.0, 0.0]]

    References:
      Bengio et al. 2013, arXiv 1308.3432.
    """
    return _straight_through(sparsity, 0.0, begin, end, every, score, structure, allocation, where, rules)


def sr_ste(
    sparsity: float | None,
    *,
    decay: float = 2e-4,
    begin: int = 0,
    end: int | None = None,
    every: int = 1,
    score: Score = scores.magnitude,
    structure: Structure = Unstructured(),
    allocation: Any = uniform,
    where: Where = None,
    rules: Sequence[Rule] = (),
) -> Pruner:
    r"""Sparse-refined straight-through estimation, the recipe for N:M: adds `decay (1 - mask) w` to the gradient.

    Args:
      sparsity: target fraction of zeros.
      decay: strength of the pull of masked weights to zero.
      begin: step of the first mask update.
      end: step at which a cubic ramp meets the target; `begin` by default.
      every: steps between mask updates.
      score: what is masked first (lowest); one that needs gradients leaves all dense until the first update.
      structure: which weights go together.
      allocation: how the sparsity is shared.
      where: which parameters may be pruned.
      rules: exceptions by path.

    Returns:
      A pruner with dense storage.

    Raises:
      ValueError: the steps or the sparsity are out of range, or `decay < 0`.

    Example:
      >>> import jax.numpy as jnp, optax, jaxprune as jp
      >>> tx = jp.sparsify(optax.sgd(0.1), jp.pruners.sr_ste(None, structure=jp.NM(2, 4)))
      >>> int(jp.get_masks(tx.init({"w": jnp.ones((8, 1))}))["w"].sum())
      4

    References:
      Zhou et al. 2021, arXiv 2102.04010.
    """
    check_strength(decay, "decay")
    return _straight_through(sparsity, decay, begin, end, every, score, structure, allocation, where, rules)


def _straight_through(
    sparsity: float | None,
    decay: float,
    begin: int,
    end: int | None,
    every: int,
    score: Score,
    structure: Structure,
    allocation: Any,
    where: Where,
    rules: Sequence[Rule],
) -> Pruner:
    settings = MaskSettings(sparsity, score, structure, allocation, where, rules)
    plan = schedules.cubic(begin, begin if end is None else end, every)

    def init(params: PyTree, key: jax.Array | None) -> tuple[PyTree, Any]:
        if begin > 0:
            settings.check(params)
            return dense_masks(params, where), ()
        return settings.at_start(params, plan(0), key), ()

    def update(masks: PyTree, state: Any, context: Context) -> tuple[PyTree, Any]:
        del masks
        return settings.from_context(context, plan(context.step)), state

    def is_update(step: jax.Array) -> jax.Array:
        # Weights go on learning after the ramp, so masks go on following them.
        return (step >= begin) & (((step - begin) % every == 0) | (step == plan.end))

    def regularize(grads: PyTree, params: PyTree, masks: PyTree, state: Any) -> PyTree:
        del state
        return jax.tree.map(
            lambda g, p, m: g + jnp.where(m, jnp.zeros((), p.dtype), jnp.asarray(decay, p.dtype) * p).astype(g.dtype),
            grads,
            params,
            masks,
        )

    return Pruner(
        init,
        is_update,
        update,
        regularize=None if is_off(decay) else regularize,
        moves=False,
        dense_gradients=True,
        dense_parameters=True,
        after_step=True,
    )
