"""Penalties that push whole indices to zero in training: pure functions of the model and its parameters.

Add one to the loss, train, then cut what has become small (`group_scores`, `select`).
"""

from collections.abc import Mapping

import jax
import jax.numpy as jnp

from jaxprune import trees
from jaxprune.shrinking.group_scores import reduce_to_groups
from jaxprune.shrinking.matching import positions_in
from jaxprune.shrinking.plan import Plan
from jaxprune.tracing import Model
from jaxprune.trees import PyTree, Where


def group_lasso(
    model: Model, params: PyTree, *, members: Where = None, strengths: Mapping[str, jax.typing.ArrayLike] | None = None
) -> jax.Array:
    r"""The norms of the weights of every index, $\sum_g \sum_i \lambda_{gi} \lVert w_{gi} \rVert_2$.

    Its gradient has the same size for a small index as for a large one, so small ones reach zero.

    Args:
      model: the traced model.
      params: its parameters, or the entry of them that is optimised.
      members: which parameters count, in any form of `where`; `".*/scale"` with one scale an index is network slimming.
      strengths: $\lambda$ by the id of the group, a scalar or float[size]; 1 where it is not given.

    Returns:
      A float32 scalar.

    Raises:
      ValueError: parameters that are not those of the model, or a strength for an unknown group.

    Example:
      >>> import jaxprune as jp
      >>> params = {"a": jnp.array([[3.0, 0.0]]), "b": jnp.array([[4.0], [2.0]])}
      >>> model = jp.trace(lambda p, x: x @ p["a"] @ p["b"], params, jnp.ones(1))
      >>> float(group_lasso(model, params))
      7.0

    References:
      Wen et al. 2016, arXiv 1608.03665; Liu et al. 2017 (network slimming), arXiv 1708.06519.
    """
    strengths = strengths or {}
    unknown = [name for name in strengths if name not in model.groups]
    if unknown:
        raise ValueError(f"strengths for {unknown}, which are no groups; they are {trees.list_paths([*model.groups])}.")
    for name, strength in strengths.items():
        if jnp.shape(strength) not in ((), (model.groups[name].size,)):
            raise ValueError(
                f"the strength for group {name!r} has shape {jnp.shape(strength)}; it may be a scalar or have shape "
                f"({model.groups[name].size},)."
            )
    squares = _squares(model, params, members)
    total = jnp.zeros((), jnp.float32)
    for name, values in squares.items():
        # The norm has no gradient at zero; an index that is gone stays there.
        positive = values > 0
        norms = jnp.where(positive, jnp.sqrt(jnp.where(positive, values, 1.0)), 0.0)
        total = total + jnp.sum(norms * jnp.asarray(strengths.get(name, 1), jnp.float32))
    return total


def removal_penalty(model: Model, params: PyTree, plan: Plan, strength: jax.Array | float) -> jax.Array:
    r"""Half the squared weights that will go, $\frac{\lambda}{2} \sum_{\text{removed}} \lVert w_{gi} \rVert_2^2$.

    With a strength that grows with the steps, the network moves what it needs out of the removed indices before they
    are cut (growing regularisation).

    Args:
      model: the traced model.
      params: its parameters, or the entry of them that is optimised.
      plan: what will be removed.
      strength: $\lambda$; may be traced, such as `jnp.minimum(1e-4 * (step // 10), 1.0)`.

    Returns:
      A float32 scalar.

    Raises:
      ValueError: parameters or a plan of another model.

    Example:
      >>> import jaxprune as jp
      >>> params = {"a": jnp.array([[3.0, 1.0]]), "b": jnp.array([[4.0], [1.0]])}
      >>> model = jp.trace(lambda p, x: x @ p["a"] @ p["b"], params, jnp.ones(1))
      >>> float(removal_penalty(model, params, jp.Plan({"a:1": [True, False]}), 0.5))
      0.5

    References:
      Wang et al. 2021 (neural pruning via growing regularization), arXiv 2012.09243.
    """
    plan.check(model)
    squares = _squares(model, params, None)
    removed = [jnp.sum(jnp.where(plan.keep[name], 0.0, squares[name])) for name in plan.keep if name in squares]
    return jnp.asarray(strength, jnp.float32) / 2 * sum(removed, jnp.zeros((), jnp.float32))


def _squares(model: Model, params: PyTree, members: Where) -> dict[str, jax.Array]:
    """The sum of the squared weights of every index."""
    positions = positions_in(model, params)
    leaves = jax.tree.leaves(params)
    chosen = [True] * len(leaves) if members is None else jax.tree.leaves(trees.resolve_where(members, params))
    values = {
        position: jnp.square(leaf.astype(jnp.float32))
        for position, leaf, flag in zip(positions, leaves, chosen, strict=True)
        if flag and trees.is_floating(leaf)
    }
    return reduce_to_groups(model, values, values.keys(), "sum", "none")
