"""OWL: blocks whose inputs have more outliers are pruned less."""

import functools
import itertools
import math
from collections.abc import Hashable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune._counts import check_sparsity
from jaxprune.calibration.capture import Statistics
from jaxprune.posttraining._method import check_positive
from jaxprune.posttraining._needs import check_leaves, layers_of, shape_of, squares_of
from jaxprune.posttraining._operands import as_weights
from jaxprune.posttraining.result import choose_matrices
from jaxprune.posttraining.stages import Frame
from jaxprune.posttraining.units import Blocks
from jaxprune.tracing.layers import Layers
from jaxprune.tracing.matrices import Arrangement, Matrix
from jaxprune.tracing.model import Model
from jaxprune.tracing.views import Stacked
from jaxprune.trees import PyTree, Where


def owl(
    model: Model | Layers,
    params: PyTree,
    stats: Statistics,
    sparsity: float,
    *,
    threshold: float = 5.0,
    spread: float = 0.08,
    blocks: Sequence[str] | None = None,
    where: Where = None,
) -> dict[str, Any]:
    r"""A sparsity for each matrix, lower in blocks where weights times inputs have more outliers.

    With $A_{ij} = |W_{ij}| \lVert X_j \rVert$ over all matrices of a block $l$ and their mean $\bar A_l$, the share of
    outliers is $D_l = P(A > M \bar A_l)$. With shares scaled to $D'_l = 2 \lambda \frac{D_l - \min D}{\max D - \min D}$
    the block keeps the fraction

    $$ d_l = D'_l - \bar D' + (1 - s) $$

    of its weights, where the mean $\bar D'$ counts every block by its weights, so that the model has sparsity $s$ to
    rounding, whatever the sizes of its blocks; the original takes a plain mean, and misses it. Fractions that would
    leave (0, 1] stay at its ends, and the others make up for it.

    Args:
      model: the traced model, or its layers.
      params: the parameters.
      stats: of `jp.stats.column_norms` (or `gram`, `moments`) of the matrices.
      sparsity: $s$, of all the matrices together.
      threshold: $M$: how many times the mean an outlier exceeds.
      spread: $\lambda$: sparsities differ by no more than twice as much.
      blocks: regular expressions over paths, of which a match of the same text is the same block; by default numbered
        parts of paths (`layers/3/...`). Each layer of a stack is a block by itself.
      where: which parameters, as for `prune_one_shot`.

    Returns:
      The sparsity by the name of each matrix, for `prune_one_shot` and `prune_sequential`: a float, or float64[*stack]
      for stacked layers.

    Raises:
      ValueError: an option out of range, a matrix without statistics or with those of another kind.

    Example:
      >>> import jaxprune as jp
      >>> params = {"a": jnp.eye(4), "b": jnp.ones((4, 4))}
      >>> apply_fn = lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"]
      >>> stats = jp.calibrate(apply_fn, params, [jnp.ones((8, 4))], jp.stats.column_norms)
      >>> model = jp.trace(apply_fn, params, jnp.ones((8, 4)))
      >>> {name: round(share, 3) for name, share in owl(model, params, stats, 0.5, threshold=2.0).items()}
      {'a': 0.42, 'b': 0.58}

    References:
      Yin et al. 2024, Outlier Weighed Layerwise Sparsity (OWL), arXiv 2310.05175.
    """
    check_sparsity(sparsity)
    check_positive(threshold=threshold)
    if not 0 <= spread < 1:
        raise ValueError(f"spread={spread}: half of the widest difference between sparsities, in [0, 1) (0.08).")
    layers = layers_of(model)
    choice = choose_matrices(layers, where, params)
    matrices = choice.matrices
    check_statistics(matrices, stats, "owl")
    leaves, keys = check_leaves(layers, params), _Keys(layers, blocks)
    members: dict[Hashable, list[tuple[Matrix, tuple[int, ...]]]] = {}
    shapes = {matrix.name: shape_of(matrix, layers) for matrix in matrices}
    for matrix in matrices:
        for index in keys.indices(matrix, shapes[matrix.name]):
            members.setdefault(keys.of(matrix, index), []).append((matrix, index))
    size = {name: math.prod(shape[len(keys.stack(name, shape)) :]) for name, shape in shapes.items()}
    uses = {matrix.name: choice.use(matrix, leaves) for matrix in matrices}
    operands = {m.name: None if (use := uses[m.name]) is None else use.weights(leaves[m.leaf]) for m in matrices}
    roots = {matrix.name: jnp.sqrt(squares_of(matrix, stats, shapes[matrix.name])) for matrix in matrices}

    def over(measure: Any, *more: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        """A number of each layer of each matrix."""
        return {
            m.name: np.asarray(
                measure(
                    leaves[m.leaf],
                    operands[m.name],
                    roots[m.name],
                    *(x[m.name] for x in more),
                    arrangement=m.arrangement,
                ),
                np.float64,
            )
            for m in matrices
        }

    counts = {key: sum(size[matrix.name] for matrix, _ in own) for key, own in members.items()}
    totals = over(_mean)
    limits = {name: np.zeros(total.shape, np.float32) for name, total in totals.items()}
    for key, own in members.items():
        mean = sum(totals[matrix.name][index] * size[matrix.name] for matrix, index in own) / counts[key]
        for matrix, index in own:
            limits[matrix.name][index] = threshold * mean
    outliers = over(_above, limits)
    share = {key: sum(outliers[m.name][k] * size[m.name] for m, k in own) / counts[key] for key, own in members.items()}
    low, high = min(share.values()), max(share.values())
    scaled = [2 * spread * (value - low) / (high - low) if high > low else 0.0 for value in share.values()]
    kept = dict(zip(share, _shifted(np.array(scaled), np.array(list(counts.values())), 1 - sparsity), strict=True))
    result = {name: np.zeros(total.shape) for name, total in totals.items()}
    for key, own in members.items():
        for matrix, index in own:
            result[matrix.name][index] = 1 - kept[key]
    return {name: values if values.ndim else float(values) for name, values in result.items()}


def check_statistics(matrices: Sequence[Matrix], stats: Statistics, caller: str) -> None:
    """Raises where a matrix that is to be pruned has no statistics."""
    missing = [matrix.name for matrix in matrices if matrix.name not in stats]
    if missing:
        raise ValueError(
            f"{caller}: there are no statistics of {', '.join(missing)}; calibrate with the same `where`, or leave "
            "them out with it."
        )


class _Keys:
    """Which layers of which matrices make a block."""

    def __init__(self, layers: Layers, patterns: Sequence[str] | None):
        self.blocks = Blocks(None if patterns is None else tuple(patterns))
        self.frame = Frame(layers, layers.program.graph)
        self.stacks = {matrix.name: matrix.arrangement.stacked for matrix in layers.matrices}

    def stack(self, name: str, shape: tuple[int, ...]) -> tuple[int, ...]:
        return shape[: self.stacks[name]]

    def indices(self, matrix: Matrix, shape: tuple[int, ...]) -> Iterator[tuple[int, ...]]:
        """The index of each layer of a stack; `()` of a matrix by itself."""
        return itertools.product(*map(range, self.stack(matrix.name, shape)))

    def of(self, matrix: Matrix, index: tuple[int, ...]) -> Hashable:
        if index and self.blocks.patterns is None:
            loops = [step.loop for step in matrix.sites[0].view if isinstance(step, Stacked)]
            return tuple(map(id, loops)), index
        return self.blocks.key(matrix, self.frame), index


def _products(leaf: Any, operand: Any, roots: Any, arrangement: Arrangement) -> tuple[jax.Array, tuple[int, ...]]:
    """The weights times the norms of their inputs, and the axes within a layer."""
    products = jnp.abs(as_weights(leaf, operand, arrangement)) * roots[..., None, :]
    return products, tuple(range(arrangement.stacked, products.ndim))


@functools.partial(jax.jit, static_argnames="arrangement")
def _mean(leaf: Any, operand: Any, roots: Any, arrangement: Arrangement) -> jax.Array:
    products, axes = _products(leaf, operand, roots, arrangement)
    return jnp.mean(products, axes)


@functools.partial(jax.jit, static_argnames="arrangement")
def _above(leaf: Any, operand: Any, roots: Any, limits: Any, arrangement: Arrangement) -> jax.Array:
    products, axes = _products(leaf, operand, roots, arrangement)
    return jnp.mean((products > jnp.expand_dims(limits, axes)).astype(jnp.float32), axes)


def _shifted(values: np.ndarray, sizes: np.ndarray, target: float) -> np.ndarray:
    """The values, shifted so that their mean over all weights is the target, and held within (0, 1]."""
    least = np.minimum(1 / sizes, 1)  # a block keeps one weight

    def held(shift: float) -> np.ndarray:
        return np.clip(values + shift, least, 1)

    shift = target - np.average(values, weights=sizes)
    if np.array_equal(held(shift), values + shift):
        return held(shift)
    low, high = -2.0, 2.0
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if np.average(held(middle), weights=sizes) < target else (low, middle)
    return held(high)
