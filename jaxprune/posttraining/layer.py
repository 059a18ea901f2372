"""One matrix pruned: from a parameter to W, through a method, and back, with what was lost on the way."""

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprune.posttraining._method import Method
from jaxprune.structures import Structure
from jaxprune.tracing.matrices import Arrangement, Matrix
from jaxprune.tracing.views import CASTS, Pointwise


@dataclasses.dataclass(frozen=True)
class LayerReport:
    """What became of one matrix.

    Attributes:
      name: the name of the matrix.
      index: which layer of a stack; `()` for a matrix by itself or a whole stack.
      shape: (*stack, *batch, out, in).
      sparsity: the fraction of zeros.
      error: `|Y - Y'| / |Y|` of the layer's outputs on the calibration inputs, from the Gram matrix; where the method
        has column norms only, the inputs are taken as uncorrelated (see `exact_error`).
      exact_error: whether `error` comes from the whole Gram matrix.
      rows: over how many rows the statistic was taken, on average over a batch of matrices.
      facts: what the method says: the damping that was used, whether it fell back, iterations; the worst of a stack.
      note: what a reader should know, or `""`.

    Example:
      >>> import jaxprune as jp
      >>> batches, method = [jnp.ones((8, 4))], jp.posttraining.magnitude()
      >>> pruned = jp.prune_one_shot(lambda p, x: x @ p["a"], {"a": jnp.eye(4)}, batches, method, sparsity=0.75)
      >>> report = pruned.layers[0]
      >>> report.name, report.shape, report.sparsity, report.error
      ('a', (4, 4), 0.75, 0.0)
    """

    name: str
    index: tuple[int, ...]
    shape: tuple[int, ...]
    sparsity: float
    error: float
    exact_error: bool
    rows: float
    facts: Mapping[str, Any]
    note: str = ""


def prune_matrix(
    matrix: Matrix,
    leaf: jax.Array,
    mask: jax.Array,
    stat: Any,
    count: Any,
    method: Method,
    sparsity: Any,
    structure: Structure,
    index: Sequence[int] = (),
    cross: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array, LayerReport]:
    """Prunes one matrix of a parameter.

    Args:
      matrix: which.
      leaf: the parameter.
      mask: its mask so far, of its shape.
      stat: the statistic of the inputs of the matrix.
      count: over how many rows.
      method: how.
      sparsity: of the matrix: a float, or an array for the layers of a stack. An array is traced, also one without
        axes, so that layers of different sparsity share what is compiled; large counts may then be off by rounding.
      structure: what is pruned together.
      index: which layer of a stack; the whole stack where it is left out.
      cross: the Gram matrix of the dense inputs with these, where the dense output is the target.

    Returns:
      The new parameter, its new mask, and the report.

    Raises:
      ValueError: the matrix saw no rows.
    """
    if not (np.asarray(count) > 0).any():
        raise ValueError(
            f"{matrix.name!r} saw no rows of data: a branch that was not taken, or weights that are all zero. Give "
            "data that reaches it, or leave it out with `where`."
        )
    steps = tuple(jnp.asarray(k, jnp.int32) for k in index)
    updated, note = repairable(matrix.arrangement)
    unseen = ~(np.asarray(count) > 0)
    if unseen.any():
        missing = f"{unseen.sum()} of {unseen.size} saw no rows, and were pruned as if all inputs were alike"
        note = f"{note}; {missing}" if note else missing
    # A float is static: host integers count exactly, float32 does not.
    fixed, each = (None, jnp.asarray(sparsity, jnp.float32)) if isinstance(sparsity, np.ndarray) else (sparsity, None)
    leaf, mask, measured = _prune(
        leaf,
        mask,
        stat,
        each,
        steps,
        cross,
        jnp.asarray(unseen) if unseen.any() else None,
        matrix.arrangement,
        method,
        structure,
        fixed,
        updated,
    )
    measured = jax.device_get(measured)
    facts = {key: np.max(value).item() for key, value in measured["facts"].items()}
    shape = jax.eval_shape(lambda leaf: matrix.arrangement.to_matrix(leaf, index), leaf).shape
    report = LayerReport(
        name=matrix.name,
        index=tuple(index),
        shape=tuple(shape),
        sparsity=1 - float(measured["kept"]),
        error=float(measured["error"]),
        exact_error=gram_of(stat, shape) is not None,
        rows=float(np.mean(count)),
        facts=facts,
        note=note,
    )
    return leaf, mask, report


def repairable(arrangement: Arrangement) -> tuple[bool, str]:
    """Whether new values of the operand are new values of the parameter."""
    steps = [step.primitive for step in arrangement.view if isinstance(step, Pointwise) and step.primitive not in CASTS]
    if all(name == "select_n" for name in steps):
        return True, ""
    return False, f"masked only: the function changes its values before use ({', '.join(steps)})"


@functools.partial(jax.jit, static_argnames=("arrangement", "method", "structure", "sparsity", "updated"))
def _prune(
    leaf: jax.Array,
    mask: jax.Array,
    stat: Any,
    sparsities: jax.Array | None,
    index: tuple[jax.Array, ...],
    cross: jax.Array | None,
    unseen: jax.Array | None,
    arrangement: Arrangement,
    method: Method,
    structure: Structure,
    sparsity: float | None,
    updated: bool,
) -> tuple[jax.Array, jax.Array, dict[str, Any]]:
    dense = arrangement.to_matrix(leaf, index).astype(jnp.float32)
    start = dense if cross is None else _map(correct, dense.ndim - 2)(dense, _need_gram(stat, dense), cross)
    each = None if sparsities is None else jnp.broadcast_to(_behind(sparsities, dense.ndim - 2), dense.shape[:-2])

    def solve(weights: jax.Array, stat: Any, own: jax.Array | None) -> Any:
        return method(weights, stat, sparsity if own is None else own, structure)

    seen = stat if unseen is None else _filled(stat, unseen, method, dense.shape[-1])
    new, keep, facts = _map(solve, dense.ndim - 2)(start, seen, each)
    # The mask comes after the cast, so that zeros are zeros in every dtype.
    new = jnp.where(keep, (new if updated else dense).astype(leaf.dtype), jnp.zeros((), leaf.dtype))
    error = relative_error(start, new.astype(jnp.float32), stat)
    measured = {"kept": jnp.mean(keep.astype(jnp.float32)), "error": error, "facts": facts}
    return arrangement.from_matrix(new, leaf, index), arrangement.from_matrix(keep, mask, index), measured


def _behind(value: Any, rank: int) -> jax.Array:
    """A number for each layer of a stack, shaped to broadcast over the batch axes that follow."""
    value = jnp.asarray(value, jnp.float32)
    return value.reshape(*value.shape, *[1] * (rank - value.ndim))


def _map(function: Any, times: int) -> Any:
    for _ in range(times):
        function = jax.vmap(function)
    return function


def _filled(stat: Any, unseen: jax.Array, method: Method, features: int) -> Any:
    """The statistic, with that of uncorrelated inputs of norm 1 for the matrices of a batch that saw no rows."""
    alike = method.stat(jnp.eye(features, dtype=jnp.float32), None)

    def fill(found: jax.Array, other: jax.Array) -> jax.Array:
        where = jnp.expand_dims(unseen, tuple(range(unseen.ndim, found.ndim)))
        return jnp.where(where, jnp.broadcast_to(other, found.shape), found)

    return jax.tree.map(fill, stat, alike)


def gram_of(stat: Any, shape: Sequence[int]) -> Any:
    """The Gram matrix in a statistic of the inputs of weights (*stack, *batch, out, in), or None."""
    values = list(stat.values()) if isinstance(stat, dict) else [stat]
    square = (value for value in values if getattr(value, "shape", None) == (*shape[:-2], shape[-1], shape[-1]))
    return next(square, None)


def _need_gram(stat: Any, weights: jax.Array) -> jax.Array:
    gram = gram_of(stat, weights.shape)
    if gram is None:
        raise ValueError(
            "target='dense' corrects the weights for the change of their inputs, which takes Gram matrices; this "
            "method has none. Take one that does, such as jp.posttraining.sparsegpt()."
        )
    return gram


def relative_error(weights: jax.Array, new: jax.Array, stat: Any) -> jax.Array:
    """`|Y - Y'| / |Y|` of the outputs on the calibration inputs, over all matrices of a stack."""
    gram = gram_of(stat, weights.shape)
    if gram is None:
        squares = [leaf for leaf in jax.tree.leaves(stat) if leaf.shape[-1:] == weights.shape[-1:]][-1:]
        norms = squares[0] if squares else jnp.ones(weights.shape[-1], jnp.float32)

        def energy(matrix: jax.Array) -> jax.Array:
            return jnp.sum(jnp.square(matrix) * norms[..., None, :])
    else:

        def energy(matrix: jax.Array) -> jax.Array:
            return jnp.sum(jnp.matmul(matrix, gram, precision=lax.Precision.HIGHEST) * matrix)

    return jnp.sqrt(jnp.maximum(energy(weights - new), 0.0) / jnp.maximum(energy(weights), 1e-30))


def correct(weights: jax.Array, gram: jax.Array, cross: jax.Array, damping: float = 0.01) -> jax.Array:
    r"""The dense weights that give the dense outputs from changed inputs.

    With inputs $X$ of the dense model and $\hat X$ of the pruned one, $\arg\min_V |X W^\top - \hat X V^\top|^2 =
    W X^\top \hat X (\hat X^\top \hat X)^{-1}$; the inverse is damped towards no change.

    Args:
      weights: float32[out, K].
      gram: float32[K, K], $\hat X^\top \hat X$.
      cross: float32[K, K], $X^\top \hat X$.
      damping: over the mean of the diagonal.

    Returns:
      float32[out, K].

    References:
      Arai and Ichikawa 2025 (quantization error propagation), arXiv 2504.09629.
    """
    damped = gram + damping * jnp.mean(jnp.diagonal(gram)) * jnp.eye(gram.shape[0], dtype=gram.dtype)
    change = jnp.matmul(weights, cross - gram, precision=lax.Precision.HIGHEST)
    factor = jax.scipy.linalg.cho_factor(damped, lower=True)
    moved = weights + jax.scipy.linalg.cho_solve(factor, change.T).T
    return jnp.where(jnp.isfinite(moved).all(), moved, weights)
