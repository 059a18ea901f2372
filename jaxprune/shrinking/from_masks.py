"""Plans from zeros: from masks that happen to empty whole indices, and from units that have died in training."""

from collections.abc import Callable
from typing import Any

import jax
import numpy as np

from jaxprune import trees
from jaxprune.masks import apply_masks
from jaxprune.shrinking.folding import fold_constants
from jaxprune.shrinking.group_scores import check_params
from jaxprune.shrinking.plan import Plan
from jaxprune.tracing import Group, Member, Model
from jaxprune.tracing.exactness import APPROXIMATE
from jaxprune.trees import PyTree


def plan_from_masks(model: Model, masks: PyTree) -> Plan:
    """Removes the indices that a mask tree empties.

    An index goes when all weights that read it are masked, where that is the same as to remove it, or else when all
    weights of all its members are. Masks of single weights empty an index by chance only; `dead_units` sees more.

    Indices of approximate groups are removed as well. Where those of a norm are not zero under the masks, the result is
    not quite what the masked model computes; `jp.verify` measures how far it is off.

    Args:
      model: the traced model.
      masks: a mask tree like the parameters, True where a weight is kept; leaves may be broadcastable or scalar.

    Returns:
      The plan.

    Raises:
      ValueError: the masks have another structure or shape, or they empty no index, so that nothing could be removed.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxprune as jp
      >>> params = {"a": jnp.ones((2, 3)), "b": jnp.ones((3, 2))}
      >>> model = jp.trace(lambda p, x: x @ p["a"] @ p["b"], params, jnp.ones(2))
      >>> masks = {"a": True, "b": jnp.array([[True], [False], [True]])}
      >>> plan_from_masks(model, masks).keep["a:1"].tolist()
      [True, False, True]
    """
    trees.check_same_structure(masks, model.params, "masks")
    kept = [_full(model, leaf, mask) for leaf, mask in enumerate(jax.tree.leaves(masks))]
    keep = {name: ~_empty(group, kept.__getitem__) for name, group in model.groups.items()}
    keep = {name: _at_least_one(mask) for name, mask in keep.items() if not mask.all()}
    if not keep:
        raise ValueError(
            "the masks empty no index of any group, so nothing can be removed: all weights that read an index must be "
            "masked. Mask whole groups (Plan.masks), or train with jp.Channel and look with dead_units."
        )
    return Plan(keep, model.fingerprint)


def dead_units(model: Model, params: PyTree, *args: Any, masks: PyTree | None = None) -> tuple[Plan, PyTree]:
    """Finds every index that can no longer influence the output, as unstructured training leaves them behind.

    An index is dead when all weights that read it are zero. One that nothing but zeros feeds is a constant: with
    `args`, what its readers make of the constant is folded into their biases (or moving averages), and it is dead too.
    What dies with it is found as well, until nothing more does.

    Args:
      model: the traced model.
      params: the parameters, with their zeros.
      args: arguments of the traced shapes to run the model on; without them no constant is folded.
      masks: a mask tree to apply to the parameters first.

    Returns:
      The plan, and the parameters with the constants folded, at full size: `jp.shrink(model, *dead_units(...))`.

    Raises:
      ValueError: parameters, masks or arguments of another structure or shape.

    Example:
      The second unit of `a` feeds nothing, the third is the constant relu(1), which goes into the bias `c`:

      >>> import jax, jax.numpy as jnp
      >>> import jaxprune as jp
      >>> def mlp(p, x):
      ...     return jax.nn.relu(x @ p["a"] + p["b"]) @ p["w"] + p["c"]
      >>> params = {
      ...     "a": jnp.array([[1.0, 1.0, 0.0]]),
      ...     "b": jnp.array([1.0, 0.0, 1.0]),
      ...     "w": jnp.array([[1.0], [0.0], [2.0]]),
      ...     "c": jnp.array([0.5]),
      ... }
      >>> model = jp.trace(mlp, params, jnp.ones(1))
      >>> plan, folded = dead_units(model, params, jnp.ones(1))
      >>> plan, folded["c"].tolist()
      (Plan(a:1: 1 of 3), [2.5])

    References:
      Evci et al. 2020 (RigL), arXiv 1911.11134, appendix B removes dead neurons of LeNet-300-100.
    """
    check_params(model, params)
    if args:
        _check_args(model, args)
    params = params if masks is None else apply_masks(params, masks)
    # Pruned tensors are inspected on the host, once, after training.
    leaves: list[Any] = [np.asarray(leaf) if trees.is_floating(leaf) else leaf for leaf in jax.tree.leaves(params)]
    removed = {name: np.zeros(group.size, bool) for name, group in model.groups.items()}
    while True:
        before = sum(int(mask.sum()) for mask in removed.values())
        for name, group in model.groups.items():
            if group.exactness == APPROXIMATE and not group.consumers_suffice:
                continue
            removed[name] |= _empty(group, lambda leaf: leaves[leaf] != 0)
            for member in group.zeroed() if removed[name].any() else ():
                leaves[member.leaf] = _without(leaves[member.leaf], member, removed[name])
        if sum(int(mask.sum()) for mask in removed.values()) > before:
            continue
        constant = {name: _unfed(group, leaves) & ~removed[name] for name, group in model.groups.items()}
        constant = {
            name: mask for name, mask in constant.items() if mask.any() and model.groups[name].consumers_suffice
        }
        if not args or not constant or not fold_constants(model, leaves, constant, args):
            break
    keep = {name: _at_least_one(~mask) for name, mask in removed.items() if mask.any()}
    structure = jax.tree.structure(model.params)
    return Plan(keep, model.fingerprint), jax.tree.unflatten(structure, [jax.numpy.asarray(leaf) for leaf in leaves])


def _check_args(model: Model, args: tuple[Any, ...]) -> None:
    given, traced = ([np.shape(leaf) for leaf in jax.tree.leaves(tree)] for tree in (args, model.args))
    if given != traced:
        raise ValueError(f"the arguments have the shapes {given}, but the model was traced with {traced}; give those.")


def _full(model: Model, leaf: int, mask: Any) -> np.ndarray:
    shape = model.leaves[leaf].shape
    try:
        return np.broadcast_to(np.asarray(mask, bool), shape)
    except ValueError as error:
        raise ValueError(
            f"the mask of {model.paths[leaf]} has shape {np.shape(mask)}, which does not broadcast to {shape}."
        ) from error


def _empty(group: Group, kept: Callable[[int], np.ndarray]) -> np.ndarray:
    """bool[size]: the indices of which every weight that has to be zero is."""
    members = group.zeroed(consumers_only=True) or group.members
    return np.asarray(np.logical_and.reduce([~_any(kept(member.leaf), member) for member in members]))


def _unfed(group: Group, leaves: list[Any]) -> np.ndarray:
    """bool[size]: the indices that no weight other than zero feeds from data."""
    makers = [member for member in group.members if "out" in member.roles]
    if not makers:
        return np.zeros(group.size, bool)
    return np.asarray(np.logical_and.reduce([~_any(leaves[member.leaf] != 0, member) for member in makers]))


def _any(weights: np.ndarray, member: Member) -> np.ndarray:
    others = tuple(axis for axis in range(weights.ndim) if axis != member.axis)
    along = np.asarray(weights.any(axis=others))
    return np.asarray(along[member.index].any(axis=1))


def _without(weights: np.ndarray, member: Member, removed: np.ndarray) -> np.ndarray:
    weights = weights.copy()
    weights[(slice(None),) * member.axis + (member.index[removed].reshape(-1),)] = 0
    return weights


def _at_least_one(mask: np.ndarray) -> np.ndarray:
    """Arrays without elements are no model: of a group that is dead altogether, its first index stays."""
    return mask if mask.any() else np.arange(mask.size) == 0
