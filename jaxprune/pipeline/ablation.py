"""Ablation: how the loss changes when indices of groups (channels, heads, features) are taken out, measured."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune.calibration.accumulate import counter
from jaxprune.pipeline.batches import Apply, Batch, Loss
from jaxprune.pipeline.sensitivity import MeanLoss, check_batches
from jaxprune.shrinking.group_scores import check_params
from jaxprune.shrinking.plan import Plan
from jaxprune.tracing import Group, Member, Model
from jaxprune.trees import PyTree


def ablation(
    apply_fn: Apply,
    params: PyTree,
    loss_fn: Loss,
    batches: Iterable[Batch],
    model: Model,
    plans: Sequence[Plan],
    *,
    progress: bool = False,
) -> np.ndarray:
    r"""Measures how the loss changes under each of several plans, without training: $L(\theta \odot m) - L(\theta)$.

    The masks are those of `plan.masks(model, consumers_only=True)`. Which indices stay is an argument of the compiled
    program, so one compilation serves all plans.

    Args:
      apply_fn: `apply_fn(params, inputs) -> outputs`.
      params: the parameters.
      loss_fn: `loss_fn(outputs, targets) -> scalar`.
      batches: pairs `(inputs, targets)`; every batch counts the same.
      model: the traced model.
      plans: what to keep in each run; `group_features(...).plans`, for one.
      progress: show a progress bar.

    Returns:
      float64[plans], the change of the loss; negative where the loss falls.

    Raises:
      ValueError: a plan that does not fit the model, parameters of another shape, no batches, a loss that is no scalar.

    Example:
      >>> import jaxprune as jp
      >>> params = {"a": jnp.array([[1.0, 3.0]]), "b": jnp.array([[1.0], [1.0]])}
      >>> batches = [(jnp.ones((2, 1)), jnp.full((2, 1), 4.0))]
      >>> apply_fn = lambda p, x: x @ p["a"] @ p["b"]
      >>> loss_fn = lambda out, targets: jnp.mean((out - targets) ** 2)
      >>> model = jp.trace(apply_fn, params, jnp.ones((2, 1)))
      >>> plans = [jp.Plan({"a:1": [False, True]}), jp.Plan({"a:1": [True, False]})]
      >>> ablation(apply_fn, params, loss_fn, batches, model, plans).tolist()
      [1.0, 9.0]
    """
    check_params(model, params)
    for plan in plans:
        plan.check(model)
    groups = {name: model.groups[name] for name in model.groups if any(name in plan.keep for plan in plans)}
    loss = MeanLoss(apply_fn, loss_fn, check_batches(batches))
    masked = jax.jit(lambda params, keep: masked_groups(params, groups, keep))

    def measure(keep: Mapping[str, Any]) -> float:
        every = {name: np.asarray(keep.get(name, np.ones(group.size, bool))) for name, group in groups.items()}
        return loss(masked(params, every))

    dense, changes = measure({}), np.zeros(len(plans))
    with counter(progress, len(plans), "ablation") as advance:
        for k, plan in enumerate(plans):
            changes[k] = measure(plan.keep) - dense
            advance()
    return changes


def masked_groups(params: PyTree, groups: Mapping[str, Group], keep: Mapping[str, Any]) -> PyTree:
    """The parameters with the indices that are not kept set to zero; `keep` may be traced.

    Args:
      params: the parameters.
      groups: groups of the model, by id.
      keep: bool[size] for each of them.

    Returns:
      The parameters under `Plan(keep).masks(model, consumers_only=True)`.
    """
    leaves = list(jax.tree.leaves(params))
    for name, group in groups.items():
        for member in ablated_members(group):
            size = leaves[member.leaf].shape[member.axis]
            along = jnp.repeat(jnp.asarray(keep[name]), member.index.shape[1])
            own = jnp.ones(size, bool).at[member.index.reshape(-1)].min(along)
            own = jnp.expand_dims(own, [axis for axis in range(leaves[member.leaf].ndim) if axis != member.axis])
            leaves[member.leaf] = jnp.where(own, leaves[member.leaf], 0)
    return jax.tree.unflatten(jax.tree.structure(params), leaves)


def ablated_members(group: Group) -> list[Member]:
    """The members whose weights are zeroed to take an index out: those that read it, where that is enough."""
    return [member for member in group.members if "in" in member.roles or not group.consumers_suffice]
