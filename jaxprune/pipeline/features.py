"""Features of what pruning would remove: from the structure of the model, and from data. No ablation is run for them.

A row is one removal: a parameter at a sparsity, or some indices of one group. A column is one number about it, mostly
the logarithm of a sum over the removed weights, so that a linear model of the columns is a product of powers.
"""

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import scores as scores_
from jaxprune import trees
from jaxprune._counts import kept
from jaxprune.calibration.capture import Statistics
from jaxprune.pipeline.moments import GradientMoments, index_sums
from jaxprune.pipeline.sensitivity import SPARSITIES, check_points, check_structure, pooled_scores, select
from jaxprune.scores import Score
from jaxprune.shrinking.group_scores import check_params, group_scores
from jaxprune.shrinking.plan import Plan
from jaxprune.structures import Structure, Unstructured
from jaxprune.tracing import Model
from jaxprune.tracing.sites import CONVOLUTION, GATHER
from jaxprune.trees import PyTree, Where

DATA = ("energy", "first_order", "absolute_first_order", "fisher", "index_fisher", "activation")
"""The columns of values: weights, gradients, activations; the others come from shapes and the order of operations."""

# Logarithms of nothing: below any share or loss that matters.
_TINY = 1e-12


@dataclasses.dataclass(frozen=True, eq=False)
class Features:
    """A table of features; prints as one.

    Attributes:
      names: the columns.
      rows: what is removed: (path, sparsity), or (group, index) or (group, share of the indices).
      values: float64[rows, columns].
      plans: for groups, what each row keeps; `ablation` takes them.

    Example:
      >>> table = Features(("energy",), (("a", 0.5), ("b", 0.5)), np.array([[-1.0], [-2.0]]))
      >>> table.layers, table.column("energy").tolist()
      (('a', 'b'), [-1.0, -2.0])
    """

    names: tuple[str, ...]
    rows: tuple[tuple[str, float], ...]
    values: np.ndarray
    plans: tuple[Plan, ...] = ()

    @property
    def layers(self) -> tuple[str, ...]:
        """The parameter or group of each row."""
        return tuple(name for name, _ in self.rows)

    def column(self, name: str) -> np.ndarray:
        """float64[rows], one column."""
        return self.values[:, self.names.index(name)]

    def only(self, names: Sequence[str]) -> "Features":
        """Some columns, in the order of the table."""
        chosen = [k for k, name in enumerate(self.names) if name in names]
        return dataclasses.replace(
            self, names=tuple(self.names[k] for k in chosen), values=self.values[:, np.array(chosen, int)]
        )

    def take(self, chosen: Any) -> "Features":
        """Some rows, by a bool or an index for each."""
        index = np.arange(len(self.rows))[np.asarray(chosen)]
        return Features(
            self.names,
            tuple(self.rows[k] for k in index),
            self.values[index],
            tuple(self.plans[k] for k in index) if self.plans else (),
        )

    def __str__(self) -> str:
        lines = [f"{'removed':<40}" + "".join(f" {name:>21}" for name in self.names)]
        for (name, point), values in zip(self.rows, self.values, strict=True):
            lines.append(f"{f'{name} {point:g}':<40}" + "".join(f" {value:21.4g}" for value in values))
        return "\n".join(lines)


def weight_features(
    model: Model,
    params: PyTree,
    *,
    sparsities: Sequence[float] = SPARSITIES,
    score: Score = scores_.magnitude,
    structure: Structure = Unstructured(),
    where: Where = None,
    moments: GradientMoments | None = None,
    stats: Statistics | None = None,
    key: jax.Array | None = None,
) -> Features:
    r"""Describes what pruning each parameter alone to each sparsity would remove.

    With $R$ the weights that the score removes, from the structure: the logarithms of the number of weights, of fan-in,
    fan-out, of the share of the model's multiply-adds, and of the share that is kept; the share removed, the depth (the
    order of the first operation that reads the parameter, from 0 to 1), whether that is a convolution or a look-up.
    From the weights and data, logarithms of

    - `energy`: $\sum_R w^2 / \sum w^2$
    - `first_order`: $|\sum_R g w|$, and `absolute_first_order`: $\sum_R |g w|$ (Molchanov et al. 2016)
    - `fisher`: $\frac12 \sum_R \mathbb{E}[g^2] w^2$, the empirical Fisher matrix for the Hessian of LeCun et al. 1989
    - `activation`: $\sum_R w^2 \lVert x \rVert^2 / \sum w^2 \lVert x \rVert^2$, $x$ the inputs (Sun et al. 2023)

    Args:
      model: the traced model.
      params: the parameters.
      sparsities: one row each.
      score: how important each weight is; `moments.mean` and `moments.squares` are its gradients and statistics.
      structure: what is pruned together; not N:M.
      where: which parameters; by default floating ones with two dimensions or more.
      moments: from `gradient_moments`; without them there are no columns of gradients.
      stats: of `jp.stats.column_norms`, for `activation`; there is no such column unless they cover every parameter.
      key: a typed PRNG key, for random scores.

    Returns:
      The table; its rows are those of `sensitivity(...).changes()` for the same arguments.

    Raises:
      ValueError: a sparsity out of range or none, N:M, parameters of another shape, an unmatched `where`, a missing
        input of the score.

    Example:
      >>> import jaxprune as jp
      >>> params = {"a": jnp.array([[1.0, 3.0]]), "b": jnp.array([[1.0], [1.0]])}
      >>> model = jp.trace(lambda p, x: x @ p["a"] @ p["b"], params, jnp.ones((2, 1)))
      >>> table = weight_features(model, params, sparsities=(0.5,))
      >>> table.rows, np.exp(table.column("energy")).round(2).tolist()
      ((('a', 0.5), ('b', 0.5)), [0.1, 0.5])

    References:
      Molchanov et al. 2016, arXiv 1611.06440; LeCun et al. 1989, Optimal Brain Damage; Sun et al. 2023, arXiv
      2306.11695.
    """
    points = check_points(sparsities)
    check_structure(structure)
    check_params(model, params)
    picked = [k for k, flag in enumerate(jax.tree.leaves(trees.resolve_where(where, params))) if flag]
    grads, squares = (None, None) if moments is None else (moments.mean, moments.squares)
    pooled = pooled_scores(params, picked, score, structure, grads=grads, stats=squares, key=key)
    every = _quantities(model, params, moments, stats)
    values = {name: {k: each[k] for k in picked} for name, each in every.items() if all(k in each for k in picked)}

    @jax.jit
    def removed(scores: list[Any], counts: Any, values: Any) -> dict[str, jax.Array]:
        sums: dict[str, list[jax.Array]] = {name: [] for name in values}
        for k, mine, count in zip(picked, scores, counts, strict=True):
            keep = select(mine, count, structure, model.leaves[k].shape)
            for name, each in values.items():
                sums[name].append(jnp.sum(jnp.where(keep, 0.0, each[k])))
        return {name: jnp.stack(each) for name, each in sums.items()}

    units = [math.prod(each.shape) for each in pooled]
    totals = {name: np.array([float(jnp.sum(each[k])) for k in picked]) for name, each in values.items()}
    places = _Places(model)
    columns: list[dict[str, np.ndarray]] = []
    for share in points:
        counts = jnp.asarray([kept(share, n) for n in units], jnp.int32)
        found = jax.device_get(removed(pooled, counts, values))
        columns.append(_data_columns({name: np.asarray(x, np.float64) for name, x in found.items()}, totals))
    rows, table = [], []
    for at, k in enumerate(picked):
        for share, own in zip(points, columns, strict=True):
            rows.append((model.paths[k], share))
            table.append({**places.of_weights(k, share), **{name: float(x[at]) for name, x in own.items()}})
    return _table(rows, table)


def group_features(
    model: Model,
    params: PyTree,
    *,
    shares: Sequence[float] | None = None,
    per_group: int | None = None,
    score: Score = scores_.magnitude,
    moments: GradientMoments | None = None,
    stats: Statistics | None = None,
    key: jax.Array | None = None,
) -> Features:
    r"""Describes what taking indices (channels, heads, features) out of each group alone would remove.

    As `weight_features`; sums run over the weights that `ablation` zeroes. `weights` and fans are those of the removed
    indices and of one index. `index_fisher` is $\frac12 \sum_i \mathbb{E}[(\sum_w g_w w)^2]$ over removed indices $i$:
    unlike `fisher` it knows that the weights of an index go together (Molchanov et al. 2019).

    Args:
      model: the traced model.
      params: the parameters.
      shares: one row a group and share, of which the indices of the lowest scores are removed; None: one row an index.
      per_group: without shares, at most so many indices of a group, evenly spaced by their score; None for all.
      score: how important each weight is, for `jp.group_scores`.
      moments: from `gradient_moments(..., model=model)`.
      stats: of `jp.stats.column_norms`.
      key: a typed PRNG key, for random scores.

    Returns:
      The table, with plans for `ablation`. Groups of a single index have no row.

    Raises:
      ValueError: a share out of range or none, parameters of another shape, a missing input of the score, no group with
        more than one index.

    Example:
      >>> import jaxprune as jp
      >>> params = {"a": jnp.array([[1.0, 3.0]]), "b": jnp.array([[1.0], [2.0]])}
      >>> model = jp.trace(lambda p, x: x @ p["a"] @ p["b"], params, jnp.ones((2, 1)))
      >>> table = group_features(model, params)
      >>> table.rows, np.exp(table.column("energy")).round(2).tolist()
      ((('a:1', 0), ('a:1', 1)), [0.2, 0.8])

    References:
      Molchanov et al. 2019, arXiv 1906.10771; and those of `weight_features`.
    """
    check_params(model, params)
    points = None if shares is None else check_points(shares)
    grads, squares = (None, None) if moments is None else (moments.mean, moments.squares)
    ranked = group_scores(model, params, score, grads=grads, stats=squares, key=key)
    every = _quantities(model, params, moments, stats)
    sums = {name: jax.device_get(index_sums(model.groups, each)) for name, each in every.items()}
    if moments is not None and moments.groups:
        sums["index_fisher"] = jax.device_get({name: 0.5 * x for name, x in moments.groups.items()})
    groups = {name: group for name, group in model.groups.items() if group.size > 1}
    if not groups:
        raise ValueError(f"the model has no group with more than one index: {model}. Its `explain` says why axes stay.")
    sums = {quantity: own for quantity, own in sums.items() if all(name in own for name in groups)}
    places = _Places(model)
    rows, table, plans = [], [], []
    for name, group in groups.items():
        ascending = np.argsort(np.asarray(ranked[name]), kind="stable")
        if points is None:
            wanted = group.size if per_group is None else min(per_group, group.size)
            chosen = sorted({int(ascending[k]) for k in np.linspace(0, group.size - 1, wanted).round().astype(int)})
            cuts: list[tuple[float, Any]] = [(index, [index]) for index in chosen]
        else:
            cuts = [(share, ascending[: group.size - kept(share, group.size)]) for share in points]
        own = {quantity: np.asarray(each[name], np.float64) for quantity, each in sums.items()}
        totals = {quantity: each.sum() for quantity, each in own.items()}
        for point, indices in cuts:
            keep = np.ones(group.size, bool)
            keep[np.asarray(indices, int)] = False
            found = _data_columns({quantity: each[~keep].sum() for quantity, each in own.items()}, totals)
            rows.append((name, point))
            plans.append(Plan({name: keep}, model.fingerprint))
            table.append({**places.of_group(name, int((~keep).sum())), **found})
    return dataclasses.replace(_table(rows, table), plans=tuple(plans))


def _table(rows: Sequence[tuple[str, float]], table: Sequence[Mapping[str, Any]]) -> Features:
    names = tuple(table[0])
    return Features(names, tuple(rows), np.array([[float(row[name]) for name in names] for row in table], np.float64))


def _log(value: Any) -> Any:
    return np.log(np.maximum(value, _TINY))


def _data_columns(removed: Mapping[str, Any], totals: Mapping[str, Any]) -> dict[str, Any]:
    """The columns from sums over the removed weights: shares for what has no unit of loss."""
    columns = {}
    for name, value in removed.items():
        if name in ("energy", "activation"):
            value = value / np.maximum(totals[name], _TINY)
        columns[name] = _log(np.abs(value))
    return columns


def _quantities(
    model: Model, params: PyTree, moments: GradientMoments | None, stats: Statistics | None
) -> dict[str, dict[int, jax.Array]]:
    """A number for each weight by name and position of the parameter: what the columns are sums of."""
    leaves = dict(enumerate(jax.tree.leaves(params)))
    wide = {k: jnp.asarray(leaf).astype(jnp.float32) for k, leaf in leaves.items() if trees.is_floating(leaf)}
    found: dict[str, dict[int, jax.Array]] = {"energy": {k: jnp.square(w) for k, w in wide.items()}}
    if moments is not None:
        grads, squares = jax.tree.leaves(moments.mean), jax.tree.leaves(moments.squares)
        found["first_order"] = {k: grads[k] * w for k, w in wide.items()}
        found["absolute_first_order"] = {k: jnp.abs(x) for k, x in found["first_order"].items()}
        found["fisher"] = {k: 0.5 * squares[k] * jnp.square(w) for k, w in wide.items()}
    if stats is not None:
        own: dict[int, jax.Array] = {}
        for matrix in model.layers.matrices:
            if matrix.name in stats and matrix.arrangement.exact:
                form, norms = matrix.arrangement, jnp.asarray(stats[matrix.name])
                weighted = jnp.square(form.to_matrix(wide[matrix.leaf])) * jnp.expand_dims(norms, -2)
                start = own.get(matrix.leaf, jnp.zeros_like(wide[matrix.leaf]))
                own[matrix.leaf] = form.from_matrix(weighted, start)
        found["activation"] = own
    return found


class _Places:
    """Where parameters and groups are in the model, and how large."""

    def __init__(self, model: Model):
        self.model = model
        self.cost = model.cost()
        last = max(len(model.sites) - 1, 1)
        self.depth: dict[int, float] = {}
        self.kinds: dict[int, str] = {}
        for order, site in enumerate(model.sites):
            self.depth.setdefault(site.leaf, order / last)
            self.kinds.setdefault(site.leaf, site.kind)

    def macs(self, leaf: int) -> float:
        """The share of the multiply-adds."""
        return self.cost.per_path[self.model.paths[leaf]].macs / max(self.cost.macs, 1)

    def of_weights(self, leaf: int, sparsity: float) -> dict[str, float]:
        """The structure of a parameter at a sparsity."""
        shape, axes = self.model.leaves[leaf].shape, self.model.matrix_axes.get(self.model.paths[leaf])
        if axes is None:
            fan_in, fan_out = math.prod(shape[:-1]), shape[-1] if shape else 1
        else:
            *window, inner, fan_out = axes.layout(shape)
            fan_in = math.prod(window) * inner
        kind = self.kinds.get(leaf, "")
        return {
            "weights": math.log(max(math.prod(shape), 1)),
            "fan_in": math.log(max(fan_in, 1)),
            "fan_out": math.log(max(fan_out, 1)),
            "macs": math.log(max(self.macs(leaf), 1e-6)),
            "depth": self.depth.get(leaf, 0.0),
            "convolution": float(kind == CONVOLUTION),
            "gather": float(kind == GATHER),
            "removed": sparsity,
            "kept": math.log(1 - sparsity),
        }

    def of_group(self, name: str, count: int) -> dict[str, float]:
        """The structure of a group of which so many indices are removed."""
        group, leaves = self.model.groups[name], self.model.leaves

        def fan(role: str) -> float:
            each = [
                math.prod(leaves[m.leaf].shape) // leaves[m.leaf].shape[m.axis] * m.index.shape[1]
                for m in group.members
                if role in m.roles
            ]
            return float(sum(each))

        used = [member.leaf for member in group.members if member.leaf in self.depth]
        share = count / group.size
        return {
            "size": math.log(group.size),
            "weights": math.log(max(count * (fan("out") + fan("in")), 1.0)),
            "fan_in": math.log(max(fan("out"), 1.0)),
            "fan_out": math.log(max(fan("in"), 1.0)),
            "macs": math.log(max(share * sum(map(self.macs, set(used))), 1e-6)),
            "depth": float(np.mean([self.depth[leaf] for leaf in used])) if used else 0.0,
            "convolution": float(any(self.kinds[leaf] == CONVOLUTION for leaf in used)),
            "removed": share,
            "kept": math.log(max(1 - share, 1e-6)),
        }
