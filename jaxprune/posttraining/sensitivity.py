"""Sensitivity: what each layer loses at several sparsities, and the shares of a budget that lose the least."""

import dataclasses
import functools
import itertools
import math
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprune._counts import check_sparsity
from jaxprune.calibration.capture import Statistics
from jaxprune.posttraining import layer as layer_
from jaxprune.posttraining._method import Method
from jaxprune.posttraining._needs import check_leaves, layers_of, shape_of
from jaxprune.posttraining._operands import Use, as_weights
from jaxprune.posttraining.owl import check_statistics
from jaxprune.posttraining.result import choose_matrices
from jaxprune.structures import NM, Structure, Unstructured
from jaxprune.tracing.layers import Layers
from jaxprune.tracing.matrices import Arrangement
from jaxprune.tracing.model import Model
from jaxprune.trees import PyTree, Where

SPARSITIES = (0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9)


@dataclasses.dataclass(frozen=True)
class Sensitivity:
    """What every matrix loses at several sparsities; prints as a table.

    Attributes:
      sparsities: the sparsities, ascending.
      errors: float64[*stack, sparsities] by the name of each matrix: `|Y - Y'| / |Y|` of its outputs on the calibration
        inputs; where the statistics are column norms, as if the inputs were uncorrelated.
      energies: float64[*stack] by name: `|Y|^2`, so that `errors**2 * energies` is absolute.
      sizes: how many weights each layer of a stack has, by name.

    Example:
      >>> table = Sensitivity((0.5,), {"a": np.array([0.1])}, {"a": np.array(4.0)}, {"a": 16})
      >>> table.rows()
      [{'name': 'a', 'weights': 16, 'energy': 4.0, 0.5: 0.1}]
    """

    sparsities: tuple[float, ...]
    errors: Mapping[str, np.ndarray]
    energies: Mapping[str, np.ndarray]
    sizes: Mapping[str, int]

    def layers(self) -> list[tuple[str, tuple[int, ...]]]:
        """The name of each matrix and the index of each of its layers; `()` without a stack."""
        return [
            (name, index)
            for name, errors in self.errors.items()
            for index in itertools.product(*map(range, errors.shape[:-1]))
        ]

    def rows(self) -> list[dict[Any, Any]]:
        """One dictionary a layer: its name, its weights, the energy of its outputs, and its error by sparsity."""
        return [
            {
                "name": name + "".join(f"[{k}]" for k in index),
                "weights": self.sizes[name],
                "energy": float(self.energies[name][index]),
                **dict(zip(self.sparsities, self.errors[name][index].tolist(), strict=True)),
            }
            for name, index in self.layers()
        ]

    def __str__(self) -> str:
        lines = [f"{'matrix':<40} {'weights':>10}" + "".join(f" {share:>8.3g}" for share in self.sparsities)]
        for row in self.rows():
            errors = "".join(f" {row[share]:8.4f}" for share in self.sparsities)
            lines.append(f"{row['name']:<40} {row['weights']:>10}{errors}")
        return "\n".join(lines)


def layer_sensitivity(
    model: Model | Layers,
    params: PyTree,
    stats: Statistics,
    method: Method,
    *,
    sparsities: Sequence[float] = SPARSITIES,
    structure: Structure = Unstructured(),
    where: Where = None,
) -> Sensitivity:
    """Prunes each layer by itself at several sparsities, and measures what its outputs lose.

    The error comes from the statistics: no data is run. One compilation serves all sparsities of layers that are alike.

    Args:
      model: the traced model, or its layers.
      params: the parameters.
      stats: of `method.stat`; with a Gram matrix among them errors are exact.
      method: one of `jp.posttraining`.
      sparsities: where to measure; the last bounds what `sensitivity_allocation` may give.
      structure: what is pruned together; not N:M, which fixes the sparsity.
      where: which parameters, as for `prune_one_shot`.

    Returns:
      The table.

    Raises:
      ValueError: a sparsity out of range or none, N:M, a matrix without statistics.

    Example:
      >>> import jaxprune as jp
      >>> params = {"a": jnp.array([[1.0, 1.0], [3.0, 3.0]])}
      >>> apply_fn = lambda p, x: x @ p["a"]
      >>> stats = jp.calibrate(apply_fn, params, [jnp.eye(2)], jp.stats.gram)
      >>> model = jp.trace(apply_fn, params, jnp.eye(2))
      >>> table = layer_sensitivity(model, params, stats, jp.posttraining.wanda(), sparsities=(0.5,))
      >>> round(float(table.errors["a"][0]) ** 2, 3)
      0.1
    """
    if isinstance(structure, NM):
        raise ValueError(
            f"structure={structure}: its pattern fixes the sparsity of every matrix, so there is nothing to compare. "
            "Use Unstructured() or Block(...)."
        )
    points = tuple(sorted({float(share) for share in sparsities}))
    if not points:
        raise ValueError("sparsities is empty; give where to measure, such as (0.3, 0.5, 0.7).")
    for share in points:
        check_sparsity(share, "sparsities")
    layers = layers_of(model)
    choice = choose_matrices(layers, where, params)
    check_statistics(choice.matrices, stats, "layer_sensitivity")
    leaves = check_leaves(layers, params)
    errors, energies, sizes = {}, {}, {}
    for matrix in choice.matrices:
        leaf, use = leaves[matrix.leaf], choice.use(matrix, leaves)
        lost, energy = jax.device_get(
            _measure(leaf, stats[matrix.name], points, use, matrix.arrangement, method, structure)
        )
        energies[matrix.name] = np.asarray(energy, np.float64)
        lost = np.maximum(np.moveaxis(np.asarray(lost, np.float64), 0, -1), 0)
        errors[matrix.name] = np.sqrt(lost / np.maximum(energies[matrix.name], 1e-30)[..., None])
        sizes[matrix.name] = math.prod(shape_of(matrix, layers)[matrix.arrangement.stacked :])
    return Sensitivity(points, errors, energies, sizes)


def _measure(
    leaf: Any,
    stat: Any,
    points: Sequence[float],
    use: Use | None,
    arrangement: Arrangement,
    method: Method,
    structure: Structure,
) -> tuple[jax.Array, jax.Array]:
    """The energy of the error at each sparsity, float32[sparsities, *stack], and that of the output."""
    sparsities = jnp.asarray(points, jnp.float32)
    if use is None:
        return _lost(leaf, stat, sparsities, None, None, arrangement, method, structure)
    operand = use.weights(leaf)
    if use.linear:
        return _lost(leaf, stat, sparsities, operand, use.scale(leaf), arrangement, method, structure)
    # What else the function makes of new values has to be seen.
    pruned = _parameters(leaf, stat, sparsities, operand, arrangement, method, structure)
    lost = [_energies(operand - use.weights(new), stat, arrangement.stacked) for new in pruned]
    return jnp.stack(lost), _energies(operand, stat, arrangement.stacked)


@functools.partial(jax.jit, static_argnames=("arrangement", "method", "structure"))
def _lost(
    leaf: Any,
    stat: Any,
    sparsities: jax.Array,
    operand: jax.Array | None,
    scale: jax.Array | None,
    arrangement: Arrangement,
    method: Method,
    structure: Structure,
) -> tuple[jax.Array, jax.Array]:
    dense = as_weights(leaf, operand, arrangement)

    def lost(sparsity: jax.Array) -> jax.Array:
        # As `prune_matrix` puts it back: rounded to the dtype of the parameter.
        new = _pruned(leaf, stat, sparsity, operand, scale, arrangement, method, structure).astype(jnp.float32)
        return _energies(dense - (new if scale is None else new * scale), stat, arrangement.stacked)

    return lax.map(lost, sparsities), _energies(dense, stat, arrangement.stacked)


@functools.partial(jax.jit, static_argnames=("arrangement", "method", "structure"))
def _parameters(
    leaf: Any,
    stat: Any,
    sparsities: jax.Array,
    operand: jax.Array,
    arrangement: Arrangement,
    method: Method,
    structure: Structure,
) -> jax.Array:
    """The parameter at each sparsity."""

    def at(sparsity: jax.Array) -> jax.Array:
        return arrangement.from_matrix(
            _pruned(leaf, stat, sparsity, operand, None, arrangement, method, structure), leaf
        )

    return lax.map(at, sparsities)


def _pruned(
    leaf: Any,
    stat: Any,
    sparsity: jax.Array,
    operand: jax.Array | None,
    scale: jax.Array | None,
    arrangement: Arrangement,
    method: Method,
    structure: Structure,
) -> jax.Array:
    """The values of the parameter, [*stack, *batch, out, in], at one sparsity."""
    dense = as_weights(leaf, operand, arrangement)
    solve = layer_.over_axes(lambda weights, stat: method(weights, stat, sparsity, structure)[:2], dense.ndim - 2)
    new, keep = solve(dense, stat)
    return layer_.settle(new, keep, dense, arrangement.to_matrix(leaf), operand, scale)[0]


@functools.partial(jax.jit, static_argnums=2)
def _energies(matrix: jax.Array, stat: Any, stacked: int) -> jax.Array:
    """The squared norm of the outputs of (*stack, *batch, out, in) weights, float32[*stack]."""
    return jnp.sum(layer_.over_axes(_energy, matrix.ndim - 2)(matrix, stat), tuple(range(stacked, matrix.ndim - 2)))


def _energy(matrix: jax.Array, stat: Any) -> jax.Array:
    """The squared norm of the outputs of (out, in) weights on the calibration inputs."""
    gram = layer_.gram_of(stat, matrix.shape)
    if gram is not None:
        return jnp.sum(jnp.matmul(matrix, gram, precision=lax.Precision.HIGHEST) * matrix)
    squares = [leaf for leaf in jax.tree.leaves(stat) if leaf.shape == matrix.shape[-1:]][-1:]
    return jnp.sum(jnp.square(matrix) * (squares[0] if squares else jnp.ones(matrix.shape[-1:]))[None, :])


def sensitivity_allocation(table: Sensitivity, sparsity: float, *, relative: bool = True) -> dict[str, Any]:
    r"""The sparsity of each matrix that loses the least in total, at one sparsity of all of them together.

    It minimises $\sum_l E_l(s_l)$ under $\sum_l n_l s_l = s \sum_l n_l$, where $E_l$ is the squared error that the
    table has at its sparsities, 0 at sparsity 0 and linear between: of the lower convex hull of each curve, the pieces
    of the least slope (error by weight) are taken first. The last piece is taken in part, so the budget is met.

    Args:
      table: from `layer_sensitivity`.
      sparsity: $s$; at most the last sparsity of the table.
      relative: count the error of each layer as a fraction of the energy of its output, so that layers with large
        outputs are no more important than others; else in the units of its output.

    Returns:
      The sparsity by the name of each matrix, for `prune_one_shot` and `prune_sequential`: a float, or float64[*stack]
      for stacked layers.

    Raises:
      ValueError: a sparsity out of range, or above the last of the table.

    Example:
      >>> errors = {"a": np.array([0.1, 0.2]), "b": np.array([0.4, 0.9])}
      >>> table = Sensitivity((0.4, 0.8), errors, {"a": np.array(1.0), "b": np.array(1.0)}, {"a": 50, "b": 50})
      >>> {name: round(share, 2) for name, share in sensitivity_allocation(table, 0.5).items()}
      {'a': 0.8, 'b': 0.2}
    """
    check_sparsity(sparsity)
    if sparsity > table.sparsities[-1]:
        raise ValueError(
            f"sparsity={sparsity} is above the last of the table, {table.sparsities[-1]}; beyond it nothing is known. "
            "Give layer_sensitivity higher `sparsities`."
        )
    shares = np.array([0.0, *(share for share in table.sparsities if share > 0)])
    pieces: list[tuple[float, int, float, str, tuple[int, ...]]] = []
    for name, index in table.layers():
        errors = np.square(table.errors[name][index][-(shares.size - 1) :])
        curve = np.array([0.0, *(errors if relative else errors * table.energies[name][index])])
        corners = _hull(shares, curve)
        for number, (a, b) in enumerate(itertools.pairwise(corners)):
            slope = (curve[b] - curve[a]) / ((shares[b] - shares[a]) * table.sizes[name])
            pieces.append((slope, number, shares[b] - shares[a], name, index))
    result = {name: np.zeros(errors.shape[:-1]) for name, errors in table.errors.items()}
    left = sparsity * sum(table.sizes[name] for name, _ in table.layers())
    for _, _, length, name, index in sorted(pieces, key=lambda piece: piece[:2]):
        part = min(length, left / table.sizes[name])
        result[name][index] += part
        left -= part * table.sizes[name]
        if left <= 0:
            break
    return {name: values if values.ndim else float(values) for name, values in result.items()}


def _hull(x: np.ndarray, y: np.ndarray) -> list[int]:
    """The corners of the lower convex hull, of which slopes ascend."""
    corners: list[int] = []
    for k in range(x.size):
        while len(corners) > 1:
            a, b = corners[-2:]
            if (y[b] - y[a]) * (x[k] - x[a]) < (y[k] - y[a]) * (x[b] - x[a]):
                break
            corners.pop()
        corners.append(k)
    return corners
