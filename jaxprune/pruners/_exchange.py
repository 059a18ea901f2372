"""SET and RigL: a constant number of weights, some of which change places."""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from jaxprune import schedules, scores, selection
from jaxprune._counts import is_traced
from jaxprune.allocation import uniform
from jaxprune.compute import Rule
from jaxprune.pruners._pruner import Context, MaskSettings, Pruner
from jaxprune.schedules import Schedule
from jaxprune.scores import Score
from jaxprune.structures import NM, Structure, Unstructured
from jaxprune.trees import PyTree, Where


def set_(
    sparsity: float | None,
    *,
    every: int,
    end: int,
    begin: int = 0,
    drop_fraction: float = 0.3,
    structure: Structure = Unstructured(),
    allocation: Any = uniform,
    where: Where = None,
    rules: Sequence[Rule] = (),
) -> Pruner:
    r"""Sparse evolutionary training: drops the smallest weights and grows as many at random.

    The dropped fraction decays as `drop_fraction / 2 (1 + cos(pi t / end))`. Needs `sparsify(..., key=)`.

    Args:
      sparsity: fraction of zeros, constant throughout.
      every: steps between exchanges.
      end: step of the last exchange.
      begin: step of the first exchange.
      drop_fraction: fraction of the kept weights exchanged at first.
      structure: which weights go together; under N:M survivors rank before the grown in each group.
      allocation: how the sparsity is shared at the start; each parameter then keeps its count.
      where: which parameters may be pruned.
      rules: exceptions by path.

    Returns:
      A pruner.

    Raises:
      ValueError: the steps, the sparsity or the drop fraction are out of range, or no key is given.

    Example:
      >>> import jax, jax.numpy as jnp, optax, jaxprune as jp
      >>> pruner = jp.pruners.set_(0.5, every=10, end=100)
      >>> tx = jp.sparsify(optax.sgd(0.1), pruner, key=jax.random.key(0))
      >>> int(jp.get_masks(tx.init({"w": jnp.ones((2, 4))}))["w"].sum())
      4

    References:
      Mocanu et al. 2018, arXiv 1707.04780.
    """
    settings = MaskSettings(sparsity, scores.random, structure, allocation, where, rules)
    return exchange_pruner(settings, schedules.constant(begin, end, every), drop_fraction, grow=scores.random)


def rigl(
    sparsity: float | None,
    *,
    every: int,
    end: int,
    begin: int | None = None,
    drop_fraction: float = 0.3,
    structure: Structure = Unstructured(),
    allocation: Any = uniform,
    where: Where = None,
    rules: Sequence[Rule] = (),
) -> Pruner:
    r"""Rigging the lottery: drops the smallest weights and grows where the dense gradient is largest.

    Grown weights start at zero with fresh moments. A weight dropped in an exchange competes for growth like any
    other inactive one, as in the paper. Needs `sparsify(..., key=)` for the random start.

    Args:
      sparsity: fraction of zeros, constant throughout.
      every: steps between exchanges.
      end: step of the last exchange.
      begin: step of the first exchange; `every` by default, once the weights have learnt something.
      drop_fraction: fraction of the kept weights exchanged at first; it decays along a half cosine.
      structure: which weights go together; under N:M survivors rank before the grown in each group.
      allocation: how the sparsity is shared at the start; each parameter then keeps its count.
      where: which parameters may be pruned.
      rules: exceptions by path.

    Returns:
      A pruner.

    Raises:
      ValueError: the steps, the sparsity or the drop fraction are out of range, or no key is given.

    Example:
      >>> import jax, jax.numpy as jnp, optax, jaxprune as jp
      >>> pruner = jp.pruners.rigl(0.5, every=10, end=100)
      >>> tx = jp.sparsify(optax.sgd(0.1), pruner, key=jax.random.key(0))
      >>> int(jp.get_masks(tx.init({"w": jnp.ones((2, 4))}))["w"].sum())
      4

    References:
      Evci et al. 2020, arXiv 1911.11134.
    """
    settings = MaskSettings(sparsity, scores.random, structure, allocation, where, rules)
    plan = schedules.constant(min(every, end) if begin is None else begin, end, every)
    return exchange_pruner(settings, plan, drop_fraction, grow=absolute_gradient)


def absolute_gradient(
    params: PyTree, *, grads: PyTree | None = None, key: jax.Array | None = None, stats: PyTree | None = None
) -> PyTree:
    """The growth score of RigL, `|g|`."""
    del params, key, stats
    return scores.magnitude(grads)


def exchange_pruner(settings: MaskSettings, plan: Schedule, drop_fraction: float, grow: Score) -> Pruner:
    """A pruner with a random start that exchanges weights under a decaying fraction."""
    check_drop_fraction(drop_fraction)

    def init(params: PyTree, key: jax.Array | None) -> tuple[PyTree, Any]:
        return settings.masks(params, key=key), ()

    def update(masks: PyTree, state: Any, context: Context) -> tuple[PyTree, Any]:
        fraction = schedules.cosine_decay(context.step, plan.end, drop_fraction)
        return exchange(masks, context, settings, fraction, grow), state

    return Pruner(init, plan.is_update, update)


def exchange(masks: PyTree, context: Context, settings: MaskSettings, fraction: jax.Array, grow: Score) -> PyTree:
    """Drops a fraction of each parameter's kept units by magnitude and grows as many by another score."""
    grown = jax.tree.leaves(grow(context.params, grads=context.grads, key=context.key, stats=context.stats))
    leaves, treedef = jax.tree.flatten(masks)
    forms = settings.structures(context.params)
    params = jax.tree.leaves(context.params)
    moved = [
        mask if form is None else _exchange_leaf(mask, param, score, form, fraction)
        for mask, param, score, form in zip(leaves, params, grown, forms, strict=True)
    ]
    return jax.tree.unflatten(treedef, moved)


def _exchange_leaf(
    mask: jax.Array, param: jax.Array, score: jax.Array, form: Structure, fraction: jax.Array
) -> jax.Array:
    active = form.pool(mask.astype(jnp.float32)) > 0
    weights, gains = form.pool(jnp.abs(param)), form.pool(score)
    count = jnp.sum(active, dtype=jnp.int32)
    dropped = jnp.round(fraction * count.astype(jnp.float32)).astype(jnp.int32)
    survivors = selection.top_k_mask(weights, count - dropped, among=active)
    if isinstance(form, NM):
        return form.select(gains, first=survivors)
    return form.expand(selection.top_k_mask(gains, count, first=survivors), mask.shape)


def check_drop_fraction(value: float) -> None:
    """Raises where a drop fraction lies outside [0, 1]."""
    if not is_traced(value) and not 0 <= value <= 1:
        raise ValueError(f"drop_fraction={value}: the fraction of kept weights that change places lies in [0, 1].")
