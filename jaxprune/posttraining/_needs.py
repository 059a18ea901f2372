"""What a function finds in statistics, whatever they were taken for; and an error that says what it did not find."""

from typing import Any

import jax
import jax.numpy as jnp

from jaxprune.calibration.capture import Statistics
from jaxprune.calibration.statistics import Moments
from jaxprune.tracing.layers import Layers
from jaxprune.tracing.matrices import Matrix
from jaxprune.tracing.model import Model


def layers_of(model: Model | Layers) -> Layers:
    """The layers of a traced model, or the layers themselves."""
    return model.layers if isinstance(model, Model) else model


def check_leaves(layers: Layers, params: Any) -> list[Any]:
    """The parameters in the order of the trace.

    Raises:
      ValueError: they have not the shapes of the trace.
    """
    leaves = jax.tree.leaves(params)
    if len(leaves) != len(layers.leaves):
        raise ValueError(f"params has {len(leaves)} arrays, but the model was traced with {len(layers.leaves)}.")
    for path, leaf, traced in zip(layers.paths, leaves, layers.leaves, strict=True):
        if jnp.shape(leaf) != traced.shape:
            raise ValueError(f"{path} has shape {jnp.shape(leaf)}, but the model was traced with {traced.shape}.")
    return leaves


def shape_of(matrix: Matrix, layers: Layers) -> tuple[int, ...]:
    """(*stack, *batch, out, in) of a matrix."""
    return tuple(jax.eval_shape(matrix.arrangement.to_matrix, layers.leaves[matrix.leaf]).shape)


def stack_of(matrix: Matrix, layers: Layers) -> tuple[int, ...]:
    """How many layers a matrix has along each loop over them; `()` for a matrix by itself."""
    return shape_of(matrix, layers)[: matrix.arrangement.stacked]


def squares_of(matrix: Matrix, stats: Statistics, shape: tuple[int, ...]) -> jax.Array:
    """The squared norm of every input of a matrix, float32[*stack, *batch, in]: what `column_norms` sums.

    Args:
      matrix: the matrix.
      stats: of `column_norms`, `gram` or `moments`, or a dictionary with one of them.
      shape: of the matrix.

    Raises:
      ValueError: the statistics are of another kind.
    """
    for value in _parts(stats[matrix.name]):
        if isinstance(value, Moments):
            return value.squares
        if value.shape == (*shape[:-2], shape[-1]):
            return value
        if value.shape == (*shape[:-2], shape[-1], shape[-1]):
            return jnp.diagonal(value, axis1=-2, axis2=-1)
    raise _wrong(matrix, "column norms", "jp.stats.column_norms (or gram)")


def gram_matrix(matrix: Matrix, stats: Statistics, shape: tuple[int, ...]) -> jax.Array:
    """The Gram matrix of the inputs of a matrix, float32[*stack, *batch, in, in].

    Raises:
      ValueError: the statistics are of another kind.
    """
    for value in _parts(stats[matrix.name]):
        if not isinstance(value, Moments) and value.shape == (*shape[:-2], shape[-1], shape[-1]):
            return value
    raise _wrong(matrix, "Gram matrices", "jp.stats.gram")


def moments_of(matrix: Matrix, stats: Statistics) -> Moments:
    """The moments of the inputs of a matrix.

    Raises:
      ValueError: the statistics are of another kind.
    """
    for value in _parts(stats[matrix.name]):
        if isinstance(value, Moments):
            return value
    raise _wrong(matrix, "means and variances", "jp.stats.moments")


def _parts(value: Any) -> list[Any]:
    found = list(value.values()) if isinstance(value, dict) else [value]
    return [part for part in found if isinstance(part, Moments) or hasattr(part, "shape")]


def _wrong(matrix: Matrix, needed: str, remedy: str) -> ValueError:
    return ValueError(
        f"the statistics of {matrix.name!r} hold no {needed} of its inputs; take them with "
        f"jp.calibrate(apply_fn, params, batches, {remedy})."
    )
