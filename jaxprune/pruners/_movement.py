"""Movement pruning: what moves away from zero is kept, however small it is."""

from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxprune import schedules, trees
from jaxprune._counts import is_traced
from jaxprune.allocation import uniform
from jaxprune.compute import Rule
from jaxprune.pruners._pruner import Context, MaskSettings, Pruner, check_strength, dense_masks
from jaxprune.structures import Structure, Unstructured
from jaxprune.trees import PyTree, Where


def movement(
    sparsity: float | None,
    *,
    begin: int,
    end: int,
    every: int = 1,
    structure: Structure = Unstructured(),
    allocation: Any = uniform,
    where: Where = None,
    rules: Sequence[Rule] = (),
) -> Pruner:
    r"""Hard movement pruning: keeps the top scores `S`, with `S <- S - g w` at every step.

    Take the gradient at `jp.sparse_params(params, opt_state)`: pruned weights keep their values, their scores go on
    learning, and they can come back. The scores cost four bytes a weight.

    Args:
      sparsity: target fraction of zeros.
      begin: step of the first mask update.
      end: step of the last one, which meets the target exactly.
      every: steps between updates.
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
      >>> tx = jp.sparsify(optax.sgd(0.1), jp.pruners.movement(0.5, begin=0, end=0))
      >>> params = {"w": jnp.array([[3.0, 1.0]])}
      >>> updates, state = tx.update({"w": jnp.array([[1.0, -1.0]])}, tx.init(params), params)
      >>> jp.get_masks(state)["w"].tolist()
      [[False, True]]

    References:
      Sanh et al. 2020, arXiv 2005.07683.
    """
    plan = schedules.cubic(begin, end, every)

    def masks_of(scores: PyTree, context: Context) -> PyTree:
        settings = MaskSettings(sparsity, lambda params, **_: scores, structure, allocation, where, rules)
        return settings.from_context(context, plan(context.step))

    def init(params: PyTree, key: jax.Array | None) -> tuple[PyTree, Any]:
        del key
        MaskSettings(sparsity, structure=structure, allocation=allocation, where=where, rules=rules).check(params)
        return dense_masks(params, where), _zero_scores(params)

    def update(masks: PyTree, state: Any, context: Context) -> tuple[PyTree, Any]:
        del masks
        return masks_of(state, context), state

    return Pruner(
        init,
        plan.is_update,
        update,
        accumulate=lambda state, context: _follow_movement(state, context, lambda scores, slope: scores - slope),
        moves=False,
        dense_parameters=True,
    )


def soft_movement(
    threshold: float = 0.5,
    *,
    begin: int = 0,
    end: int | None = None,
    every: int = 1,
    learning_rate: float = 1.0,
    penalty: float = 1e-3,
    where: Where = None,
) -> Pruner:
    r"""Soft movement pruning: keeps the weights with `sigmoid(S) >= threshold`; the sparsity emerges.

    A penalty on the sum of `sigmoid(S)` pushes scores down: `S <- S - learning_rate (g w + penalty sigmoid'(S))`.
    No sparsity is promised; read it with `jp.sparsity(jp.get_masks(opt_state), params)`.

    Args:
      threshold: on `sigmoid(S)`, which starts at 0.5.
      begin: step of the first mask update.
      end: step of the last one; None goes on for ever.
      every: steps between updates.
      learning_rate: of the scores.
      penalty: strength of the push towards sparsity.
      where: which parameters may be pruned.

    Returns:
      A pruner with dense storage.

    Raises:
      ValueError: the threshold is not in (0, 1), a strength is negative, or the steps are out of range.

    Example:
      >>> import jax.numpy as jnp, optax, jaxprune as jp
      >>> tx = jp.sparsify(optax.sgd(0.1), jp.pruners.soft_movement())
      >>> params = {"w": jnp.array([[3.0, 1.0]])}
      >>> updates, state = tx.update({"w": jnp.array([[1.0, -1.0]])}, tx.init(params), params)
      >>> jp.get_masks(state)["w"].tolist()
      [[False, True]]

    References:
      Sanh et al. 2020, arXiv 2005.07683.
    """
    if not is_traced(threshold) and not 0 < threshold < 1:
        raise ValueError(f"threshold={threshold}: it bounds sigmoid(S), so it lies in (0, 1).")
    check_strength(penalty, "penalty")
    check_strength(learning_rate, "learning_rate")
    plan = schedules.constant(begin, 2**31 - 1 if end is None else end, every)

    def step(scores: jax.Array, slope: jax.Array) -> jax.Array:
        sigmoid = jax.nn.sigmoid(scores)
        return scores - learning_rate * (slope + penalty * sigmoid * (1 - sigmoid))

    def init(params: PyTree, key: jax.Array | None) -> tuple[PyTree, Any]:
        del key
        return dense_masks(params, where), _zero_scores(params)

    def update(masks: PyTree, state: Any, context: Context) -> tuple[PyTree, Any]:
        chosen = trees.resolve_where(where, context.params)
        kept = jax.tree.map(lambda m, s, c: jax.nn.sigmoid(s) >= threshold if c else m, masks, state, chosen)
        return kept, state

    return Pruner(
        init,
        plan.is_update,
        update,
        accumulate=lambda state, context: _follow_movement(state, context, step),
        moves=False,
        dense_parameters=True,
    )


def _zero_scores(params: PyTree) -> PyTree:
    return jax.tree.map(lambda p: jnp.zeros_like(p, dtype=jnp.float32), params)


def _follow_movement(scores: PyTree, context: Context, step: Callable[[jax.Array, jax.Array], jax.Array]) -> PyTree:
    """`step(S, g w)` for every score `S`: `g w` is negative where a weight moves away from zero."""

    def leaf(s: jax.Array, w: jax.Array, g: jax.Array) -> jax.Array:
        return step(s, g.astype(jnp.float32) * w.astype(jnp.float32)) if trees.is_floating(w) else s

    return jax.tree.map(leaf, scores, context.params, context.grads)
