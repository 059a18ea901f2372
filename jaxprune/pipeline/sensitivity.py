"""Sensitivity of the loss: what pruning one parameter alone does to it, measured by running the model.

`posttraining.layer_sensitivity` reads the errors of layers off statistics of their inputs; here the model runs, once
for every parameter and sparsity, and what is measured is the loss itself. `ablation` does the same for indices of
groups.
"""

import dataclasses
import math
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import scores as scores_
from jaxprune import selection, trees
from jaxprune._counts import check_sparsity, kept
from jaxprune.calibration.accumulate import counter
from jaxprune.pipeline.batches import Apply, Batch, Loss
from jaxprune.posttraining.sensitivity import Sensitivity, sensitivity_allocation
from jaxprune.scores import Score
from jaxprune.structures import NM, Structure, Unstructured
from jaxprune.trees import PyTree, Where

SPARSITIES = (0.5, 0.7, 0.8, 0.9, 0.95)


@dataclasses.dataclass(frozen=True, eq=False)
class LossSensitivity:
    """The loss when each parameter alone is pruned to each of several sparsities; prints as a table.

    Attributes:
      sparsities: the sparsities, ascending.
      dense: the loss of the dense model.
      losses: float64[sparsities] by path of each pruned parameter.
      sizes: how many weights each of them has, by path.
      treedef: the structure of all parameters.

    Example:
      >>> import jax
      >>> treedef = jax.tree.structure({"a": 0, "b": 0})
      >>> print(LossSensitivity((0.5, 0.9), 0.2, {"a": np.array([0.2, 0.45])}, {"a": 16}, treedef))
      loss (measured), 0.2 dense; each parameter pruned alone
      parameter                                   weights      0.5      0.9
      a                                                16   0.2000   0.4500
    """

    sparsities: tuple[float, ...]
    dense: float
    losses: dict[str, np.ndarray]
    sizes: dict[str, int]
    treedef: Any

    def changes(self) -> dict[tuple[str, float], float]:
        """The change of the loss by path and sparsity; negative where pruning helps."""
        return {
            (path, share): float(loss) - self.dense
            for path, losses in self.losses.items()
            for share, loss in zip(self.sparsities, losses, strict=True)
        }

    def allocation(self, sparsity: float) -> PyTree:
        r"""The sparsity of each parameter that costs the least loss in total, at one sparsity of all of them together.

        `posttraining.sensitivity_allocation` on the increases of the loss: it takes them as if they added up, and as
        linear between the sparsities that were measured. A decrease counts as no change. An infinite loss counts as
        worse than any finite one.

        Args:
          sparsity: over all parameters of the table; at most the last sparsity of it.

        Returns:
          A tree like the parameters for `jp.compute_masks(params, None, allocation=...)`; 0 for a parameter that is
          not in the table.

        Raises:
          ValueError: a sparsity out of range, or above the last of the table.

        Example:
          >>> import jax
          >>> losses = {"a": np.array([1.0, 1.1]), "b": np.array([1.3, 2.0])}
          >>> table = LossSensitivity((0.4, 0.8), 1.0, losses, {"a": 50, "b": 50}, jax.tree.structure({"a": 0, "b": 0}))
          >>> {path: round(share, 2) for path, share in table.allocation(0.5).items()}
          {'a': 0.8, 'b': 0.2}
        """
        increases = {path: np.maximum(losses - self.dense, 0) for path, losses in self.losses.items()}
        finite = [value for each in increases.values() for value in each[np.isfinite(each)]]
        worse = 1e6 * max([1.0, *finite])
        errors = {path: np.sqrt(np.where(np.isfinite(values), values, worse)) for path, values in increases.items()}
        energies = {path: np.ones(()) for path in errors}
        shares = sensitivity_allocation(Sensitivity(self.sparsities, errors, energies, self.sizes), sparsity)
        every = trees.paths(jax.tree.unflatten(self.treedef, range(self.treedef.num_leaves)))
        return jax.tree.unflatten(self.treedef, [shares.get(path, 0.0) for path in every])

    def rows(self) -> list[dict[Any, Any]]:
        """One dictionary a parameter: its path, its weights, and the loss by sparsity."""
        return [
            {"path": path, "weights": self.sizes[path], **dict(zip(self.sparsities, losses.tolist(), strict=True))}
            for path, losses in self.losses.items()
        ]

    def __str__(self) -> str:
        lines = [f"loss (measured), {self.dense:.4g} dense; each parameter pruned alone"]
        lines.append(f"{'parameter':<40} {'weights':>10}" + "".join(f" {share:>8.3g}" for share in self.sparsities))
        for row in self.rows():
            losses = "".join(f" {row[share]:8.4f}" for share in self.sparsities)
            lines.append(f"{row['path']:<40} {row['weights']:>10}{losses}")
        return "\n".join(lines)


def sensitivity(
    apply_fn: Apply,
    params: PyTree,
    loss_fn: Loss,
    batches: Iterable[Batch],
    *,
    sparsities: Sequence[float] = SPARSITIES,
    score: Score = scores_.magnitude,
    structure: Structure = Unstructured(),
    where: Where = None,
    grads: PyTree | None = None,
    stats: PyTree | None = None,
    key: jax.Array | None = None,
    progress: bool = False,
) -> LossSensitivity:
    r"""Measures the loss when each parameter alone is pruned to each sparsity.

    $L_{l,s} = \frac{1}{B} \sum_b \mathrm{loss}(f(\theta \odot m_{l,s}, x_b), y_b)$, where $m_{l,s}$ prunes parameter
    $l$ to sparsity $s$ by its score and keeps all others whole. How many weights each parameter keeps is an argument of
    the compiled program, so one compilation serves all parameters and sparsities (one more for every other shape of
    batch). Layers that are stacked for a scan are one parameter.

    Args:
      apply_fn: `apply_fn(params, inputs) -> outputs`.
      params: the parameters.
      loss_fn: `loss_fn(outputs, targets) -> scalar`.
      batches: pairs `(inputs, targets)`, each any pytree; every batch counts the same. Hold them out from training.
      sparsities: where to measure.
      score: how important each weight is.
      structure: what is pruned together; not N:M, which fixes the sparsity.
      where: which parameters; by default floating ones with two dimensions or more.
      grads: gradients, for the scores that need them.
      stats: statistics, for the scores that need them.
      key: a typed PRNG key, for random scores.
      progress: show a progress bar.

    Returns:
      The table.

    Raises:
      ValueError: a sparsity out of range or none, N:M, no batches, a loss that is no scalar, an unmatched `where`, a
        missing input of the score.
      TypeError: a batch that is no pair.

    Example:
      >>> params = {"a": jnp.array([[1.0, 3.0]]), "b": jnp.array([[1.0], [1.0]])}
      >>> batches = [(jnp.ones((2, 1)), jnp.full((2, 1), 4.0))]
      >>> apply_fn = lambda p, x: x @ p["a"] @ p["b"]
      >>> loss_fn = lambda out, targets: jnp.mean((out - targets) ** 2)
      >>> table = sensitivity(apply_fn, params, loss_fn, batches, sparsities=(0.5,))
      >>> table.dense, table.losses["a"].tolist(), table.losses["b"].tolist()
      (0.0, [1.0], [9.0])
    """
    points = check_points(sparsities)
    check_structure(structure)
    batches = check_batches(batches)
    chosen = jax.tree.leaves(trees.resolve_where(where, params))
    named = trees.leaves_with_paths(params)
    picked = tuple(k for k, flag in enumerate(chosen) if flag)
    pooled = pooled_scores(params, picked, score, structure, grads=grads, stats=stats, key=key)
    units = [math.prod(each.shape) for each in pooled]

    def masked(params: PyTree, scores: list[jax.Array], counts: jax.Array) -> PyTree:
        leaves = jax.tree.leaves(params)
        for k, mine, count in zip(picked, scores, counts, strict=True):
            leaves[k] = jnp.where(select(mine, count, structure, leaves[k].shape), leaves[k], 0)
        return jax.tree.unflatten(jax.tree.structure(params), leaves)

    prune, loss = jax.jit(masked), MeanLoss(apply_fn, loss_fn, batches)

    def measure(counts: Sequence[int]) -> float:
        return loss(prune(params, pooled, jnp.asarray(counts, jnp.int32)))

    dense = measure(units)
    losses = {named[k][0]: np.zeros(len(points)) for k in picked}
    with counter(progress, len(picked) * len(points), "sensitivity") as advance:
        for at, k in enumerate(picked):
            for column, share in enumerate(points):
                counts = [kept(share, n) if at == other else n for other, n in enumerate(units)]
                losses[named[k][0]][column] = measure(counts)
                advance()
    sizes = {named[k][0]: math.prod(named[k][1].shape) for k in picked}
    return LossSensitivity(points, dense, losses, sizes, jax.tree.structure(params))


class MeanLoss:
    """The mean loss of parameters over batches; compiled once for each shape of batch.

    Args:
      apply_fn: the model.
      loss_fn: the loss.
      batches: pairs of inputs and targets.
    """

    def __init__(self, apply_fn: Apply, loss_fn: Loss, batches: Sequence[Batch]):
        self.batches = batches
        self.step = jax.jit(lambda params, inputs, targets: loss_fn(apply_fn(params, inputs), targets))

    def __call__(self, params: PyTree) -> float:
        """The mean, in float64 on the host."""
        losses = jax.device_get([self.step(params, *batch) for batch in self.batches])
        for value in losses:
            check_scalar(value)
        return float(np.mean(np.asarray(losses, np.float64)))


def pooled_scores(
    params: PyTree,
    picked: Sequence[int],
    score: Score,
    structure: Structure,
    *,
    grads: PyTree | None = None,
    stats: PyTree | None = None,
    key: jax.Array | None = None,
) -> list[jax.Array]:
    """The scores of the units of some parameters, by their positions."""

    @jax.jit
    def pool(params: PyTree, grads: Any, stats: Any, key: Any) -> list[jax.Array]:
        tree = score(params, grads=grads, key=key, stats=stats)
        trees.check_same_structure(tree, params, "the tree of scores")
        leaves = jax.tree.leaves(tree)
        return [structure.pool(leaves[k]) for k in picked]

    return pool(params, grads, stats, key)


def select(scores: jax.Array, count: jax.Array, structure: Structure, shape: tuple[int, ...]) -> jax.Array:
    """The mask that keeps `count` (traced) units; a parameter that keeps them all costs no search."""
    whole = count >= math.prod(scores.shape)
    units = jax.lax.cond(whole, lambda: jnp.ones_like(scores, dtype=bool), lambda: selection.top_k_mask(scores, count))
    return structure.expand(units, shape)


def check_points(sparsities: Sequence[float]) -> tuple[float, ...]:
    """The sparsities, ascending; raises where there are none or one is out of range."""
    points = tuple(sorted({float(share) for share in sparsities}))
    if not points:
        raise ValueError("sparsities is empty; give where to measure, such as (0.5, 0.8, 0.9).")
    for share in points:
        check_sparsity(share, "sparsities")
    return points


def check_structure(structure: Structure) -> None:
    """Raises for N:M."""
    if isinstance(structure, NM):
        raise ValueError(
            f"structure={structure}: its pattern fixes the sparsity of every parameter, so there is nothing to "
            "compare. Use Unstructured(), Block(...) or Channel(...)."
        )


def check_batches(batches: Iterable[Batch]) -> list[Batch]:
    """The batches as a list; raises where there are none or one is no pair."""
    found = list(batches)
    if not found:
        raise ValueError("batches is empty: there is nothing to measure the loss on. Give pairs (inputs, targets).")
    for k, batch in enumerate(found):
        if not isinstance(batch, (tuple, list)) or len(batch) != 2:
            raise TypeError(f"batches[{k}] is of type {type(batch).__name__}; each batch is a pair (inputs, targets).")
    return [(inputs, targets) for inputs, targets in found]


def check_scalar(value: Any) -> None:
    """Raises where a loss is no scalar."""
    if np.ndim(value):
        raise ValueError(
            f"loss_fn gives shape {np.shape(value)}; it must give a scalar, such as the mean of the batch."
        )
