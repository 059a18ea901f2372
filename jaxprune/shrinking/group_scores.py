"""How important each index of a group is: any score of weights, reduced over the weights that go with the index."""

import math
from collections.abc import Callable, Collection, Mapping
from typing import Any, Literal, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import _sharding, trees
from jaxprune import scores as weight_scores
from jaxprune.scores import Score
from jaxprune.tracing import Group, Member, Model
from jaxprune.trees import PyTree

GroupScores: TypeAlias = Mapping[str, jax.Array]
Reduction: TypeAlias = Literal["sum", "mean", "max", "prod", "first", "last"]
Normalizer: TypeAlias = Literal["none", "sum", "mean", "max", "standard", "gaussian", "lamp"]

_REDUCTIONS: dict[str, Callable[[Any], Any]] = {
    "sum": lambda x: x.sum(0),
    "mean": lambda x: x.mean(0),
    "max": lambda x: x.max(0),
    "prod": lambda x: x.prod(0),
    "first": lambda x: x[0],
    "last": lambda x: x[-1],
}


def _library(x: Any) -> Any:
    """NumPy for arrays on the host, where every operation of another shape would have to be compiled; JAX otherwise."""
    return np if isinstance(x, np.ndarray) else jnp


def _lamp(x: Any) -> Any:
    """A score over the sum of those that are at least as large."""
    xp = _library(x)
    ascending = xp.sort(x)
    tail = xp.cumsum(ascending[::-1])[::-1]
    return _share(x, tail[xp.searchsorted(ascending, x, side="left")])


def _share(x: Any, total: Any) -> Any:
    return x / _library(x).where(total > 0, total, 1)


_NORMALIZERS: dict[str, Callable[[Any], Any]] = {
    "none": lambda x: x,
    "sum": lambda x: _share(x, x.sum()),
    "mean": lambda x: _share(x, x.mean()),
    "max": lambda x: _share(x, x.max()),
    "standard": lambda x: _share(x - x.min(), x.max() - x.min()),
    "gaussian": lambda x: _share(x - x.mean(), x.std()),
    "lamp": _lamp,
}


def group_scores(
    model: Model,
    params: PyTree,
    score: Score = weight_scores.magnitude,
    *,
    power: float = 1.0,
    reduction: Reduction = "mean",
    normalize: Normalizer = "mean",
    members: trees.Where = None,
    grads: PyTree | None = None,
    stats: PyTree | None = None,
    key: jax.Array | None = None,
) -> dict[str, jax.Array]:
    r"""The score of every index of every group.

    For index $i$ of a group, $s_i = R_m \sum_{w \in m(i)} |\mathrm{score}(w)|^p$, where $m(i)$ are the weights of
    member $m$ that go with the index and $R$ reduces over the members; then each group is normalised by itself. With
    `power=2` and the magnitude this is the group norm of Torch-Pruning (Fang et al. 2023); with a Taylor or Fisher
    score its Taylor or Hessian importance.

    Args:
      model: the traced model.
      params: the parameters.
      score: any score of weights: `jp.scores.magnitude`, `taylor`, `fisher`, `random`, ...
      power: the power $p$ that a weight's score is raised to before it is summed.
      reduction: over the members: `"sum"`, `"mean"`, `"max"`, `"prod"`, `"first"`, `"last"`.
      normalize: within a group: `"none"`, `"sum"`, `"mean"`, `"max"`, `"standard"` (to [0, 1]), `"gaussian"`, `"lamp"`.
      members: which parameters count, in any form of `where`; all by default. `".*/scale"` scores by the scales of
        normalisations alone (Liu et al. 2017); a group without one of them scores by all of its members.
      grads: gradients, for the scores that need them.
      stats: statistics, for the scores that need them.
      key: a typed PRNG key, for random scores.

    Returns:
      float[size] by the id of the group, in the order of the groups. Higher is kept.

    Raises:
      ValueError: an unknown reduction or normaliser, parameters of another structure, a missing input of the score.

    Example:
      >>> import jaxprune as jp
      >>> params = {"a": jnp.array([[1.0, 3.0]]), "b": jnp.array([[1.0], [1.0]])}
      >>> model = jp.trace(lambda p, x: x @ p["a"] @ p["b"], params, jnp.ones(1))
      >>> group_scores(model, params, normalize="none")["a:1"].tolist()
      [1.0, 2.0]

    References:
      Fang et al. 2023 (DepGraph), arXiv 2301.12900; Liu et al. 2017 (network slimming), arXiv 1708.06519.
    """
    if reduction not in _REDUCTIONS:
        raise ValueError(f"reduction={reduction!r}; it may be one of {list(_REDUCTIONS)}.")
    if normalize not in _NORMALIZERS:
        raise ValueError(f"normalize={normalize!r}; it may be one of {list(_NORMALIZERS)}.")
    check_params(model, params)
    host = all(map(_sharding.on_host, jax.tree.leaves(params)))
    if host and score is weight_scores.magnitude:  # spares a compilation for every shape
        leaves = [np.asarray(leaf) for leaf in jax.tree.leaves(params)]
    else:
        leaves = jax.tree.leaves(score(params, grads=grads, stats=stats, key=key))
    counted = [True] * len(leaves) if members is None else jax.tree.leaves(trees.resolve_where(members, params))

    xp: Any = np if all(map(_sharding.on_host, leaves)) else jnp  # gradients may be traced where parameters are not
    values = {k: xp.abs(xp.asarray(x, xp.float32)) ** power for k, x in enumerate(leaves) if trees.is_floating(x)}
    preferred = {leaf for leaf, flag in enumerate(counted) if flag}
    scores = reduce_to_groups(model, values, preferred, reduction, normalize)
    return {name: jax.device_put(values) for name, values in scores.items()}


def reduce_to_groups(
    model: Model,
    values: Mapping[int, Any],
    preferred: Collection[int],
    reduction: Reduction = "mean",
    normalize: Normalizer = "mean",
) -> dict[str, Any]:
    """Sums a value of each weight over the weights of each index, then over members; jittable.

    Args:
      model: the traced model.
      values: arrays of the parameters' shapes, by the parameters' positions; members of others are left out.
      preferred: the parameters that count where a group has any of them.
      reduction: over the members.
      normalize: within a group.

    Returns:
      float[size] by the id of each group that has a member among the values.
    """
    sums: dict[tuple[int, int], Any] = {}

    def of_member(member: Member) -> Any:
        array, along = values[member.leaf], (member.leaf, member.axis)
        if along not in sums:
            sums[along] = array.sum(tuple(axis for axis in range(array.ndim) if axis != member.axis))
        return sums[along][member.index].sum(1)

    scores = {}
    for name, group in model.groups.items():
        known = [member for member in group.members if member.leaf in values]
        chosen = [member for member in known if member.leaf in preferred] or known
        if chosen:
            each = [of_member(member) for member in chosen]
            scores[name] = _NORMALIZERS[normalize](_REDUCTIONS[reduction](_library(each[0]).stack(each)))
    return scores


def geometric_median_scores(model: Model, params: PyTree, *, normalize: Normalizer = "mean") -> dict[str, jax.Array]:
    r"""Scores an index by how far its weights are from those of the others: $s_i = \sum_j \lVert w_i - w_j \rVert_2$.

    An index near the geometric median of its group can be replaced by the others, however large its weights are. The
    weights of an index are those of all members that make it (role `out`), or of all members where none does.

    Args:
      model: the traced model.
      params: the parameters.
      normalize: as for `group_scores`.

    Returns:
      float[size] by the id of the group.

    Raises:
      ValueError: an unknown normaliser, parameters of another structure.

    Example:
      >>> import jaxprune as jp
      >>> params = {"a": jnp.array([[0.0, 1.0, 5.0]]), "b": jnp.ones((3, 1))}
      >>> model = jp.trace(lambda p, x: x @ p["a"] @ p["b"], params, jnp.ones(1))
      >>> geometric_median_scores(model, params, normalize="none")["a:1"].tolist()
      [6.0, 5.0, 9.0]

    References:
      He et al. 2019 (FPGM), arXiv 1811.00250.
    """
    if normalize not in _NORMALIZERS:
        raise ValueError(f"normalize={normalize!r}; it may be one of {list(_NORMALIZERS)}.")
    check_params(model, params)
    leaves = jax.tree.leaves(params)

    def of_group(group: Group) -> jax.Array:
        makers = [m for m in group.members if "out" in m.roles] or list(group.members)
        rows = jnp.concatenate([_rows(leaves[m.leaf].astype(jnp.float32), m) for m in makers], 1)
        squares = (rows * rows).sum(1)
        distances = squares[:, None] + squares[None, :] - 2 * jnp.dot(rows, rows.T, precision="highest")
        distances = jnp.where(np.eye(group.size, dtype=bool), 0.0, jnp.maximum(distances, 0.0))
        return _NORMALIZERS[normalize](jnp.sqrt(distances).sum(1))

    return {name: of_group(group) for name, group in model.groups.items()}


def _rows(weights: jax.Array, member: Member) -> jax.Array:
    """The weights of each index in a row."""
    picked = jnp.moveaxis(weights, member.axis, 0)[member.index]
    return picked.reshape(member.index.shape[0], math.prod(picked.shape[1:]))


def check_params(model: Model, params: PyTree) -> None:
    """Raises a ValueError that names the first parameter that has not the shape of the trace."""
    trees.check_same_structure(params, model.params, "params")
    for path, leaf, traced in zip(model.paths, jax.tree.leaves(params), model.leaves, strict=True):
        if jnp.shape(leaf) != traced.shape:
            raise ValueError(
                f"{path} has shape {jnp.shape(leaf)}, but the model was traced with {traced.shape}. Give the full "
                "parameters, or trace the smaller function."
            )


def check_scores(model: Model, scores: Mapping[str, Any]) -> dict[str, np.ndarray]:
    """The scores as NumPy arrays, for the groups of the model and of their sizes; anything else raises.

    NaN ranks highest, as everywhere: what is broken shall stay visible.
    """
    unknown = [name for name in scores if name not in model.groups]
    missing = [name for name in model.groups if name not in scores]
    if unknown or missing:
        raise ValueError(
            f"the scores must name the groups of the model; unknown: {trees.list_paths(unknown) or 'none'}; missing: "
            f"{trees.list_paths(missing) or 'none'}. jaxprune.group_scores gives them."
        )
    arrays = {name: np.asarray(values, np.float32) for name, values in scores.items()}
    for name, values in arrays.items():
        if values.shape != (model.groups[name].size,):
            raise ValueError(
                f"the scores of group {name!r} have shape {values.shape}, not ({model.groups[name].size},)."
            )
    return {name: np.where(np.isnan(values), np.inf, values) for name, values in arrays.items()}
