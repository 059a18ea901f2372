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
from jaxprune.posttraining._operands import Use, as_weights, unscaled
from jaxprune.structures import Structure
from jaxprune.tracing.matrices import Arrangement, Matrix


@dataclasses.dataclass(frozen=True)
class LayerReport:
    """What became of one matrix.

    Attributes:
      name: the name of the matrix.
      index: which layer of a stack; `()` for a matrix by itself or a whole stack.
      shape: (*stack, *batch, out, in).
      sparsity: the fraction of zeros.
      error: `|Y - Y'| / |Y|` of the layer's outputs on the calibration inputs, from the Gram matrix; where the method
        has column norms only, the inputs are taken as uncorrelated (see `exact_error`). Under `target="dense"` of
        `prune_sequential`, Y is what the weights give that were corrected for the change of their inputs.
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
    use: Use | None = None,
    note: str = "",
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
      use: what the function makes of the parameter, where it changes values before it multiplies with them.
      note: what the caller wants a reader to know.

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
    operand, scale = (None, None) if use is None else (use.weights(leaf), use.scale(leaf))
    unseen = _unseen(stat, count)
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
        operand,
        scale,
        matrix.arrangement,
        method,
        structure,
        fixed,
    )
    if use is not None:
        # What the function makes of the new values is known after all of them are there.
        measured["error"] = _error(operand, use.weights(leaf), stat, cross)
    measured = jax.device_get(measured)
    facts = {key: np.max(value).item() for key, value in measured["facts"].items()}
    shape = jax.eval_shape(lambda leaf: matrix.arrangement.to_matrix(leaf, index), leaf).shape
    exact = gram_of(stat, shape) is not None
    least = np.min(np.asarray(count), where=~unseen, initial=np.inf)
    remarks = (
        note,
        "" if use is None else use.note,
        f"{unseen.sum()} of {unseen.size} saw no rows but zeros, and were pruned as if all inputs were alike"
        if unseen.any()
        else "",
        f"{least:.0f} rows for {shape[-1]} inputs: the Gram matrix is singular but for the damping; give more data"
        if exact and least < shape[-1]
        else "",
    )
    report = LayerReport(
        name=matrix.name,
        index=tuple(index),
        shape=tuple(shape),
        sparsity=1 - float(measured["kept"]),
        error=float(measured["error"]),
        exact_error=exact,
        rows=float(np.mean(count)),
        facts=facts,
        note="; ".join(filter(None, remarks)),
    )
    return leaf, mask, report


def _unseen(stat: Any, count: Any) -> np.ndarray:
    """Which matrices of a batch no data reached: there were no rows, or zeros only, as where experts get none."""
    count = np.asarray(count)
    return ~(count > 0) | np.asarray(_is_zero(stat, count.ndim))


@functools.partial(jax.jit, static_argnums=1)
def _is_zero(stat: Any, rank: int) -> Any:
    found = [leaf for leaf in jax.tree.leaves(stat) if leaf.ndim > rank]
    zero = [jnp.all(leaf == 0, tuple(range(rank, leaf.ndim))) for leaf in found]
    return functools.reduce(jnp.logical_and, zero) if zero else False


@functools.partial(jax.jit, static_argnames=("arrangement", "method", "structure", "sparsity"))
def _prune(
    leaf: jax.Array,
    mask: jax.Array,
    stat: Any,
    sparsities: jax.Array | None,
    index: tuple[jax.Array, ...],
    cross: jax.Array | None,
    unseen: jax.Array | None,
    operand: jax.Array | None,
    scale: jax.Array | None,
    arrangement: Arrangement,
    method: Method,
    structure: Structure,
    sparsity: float | None,
) -> tuple[jax.Array, jax.Array, dict[str, Any]]:
    own, dense = arrangement.to_matrix(leaf, index), as_weights(leaf, operand, arrangement, index)
    start = _target(dense, stat, cross)
    each = None if sparsities is None else jnp.broadcast_to(_behind(sparsities, dense.ndim - 2), dense.shape[:-2])

    def solve(weights: jax.Array, stat: Any, own: jax.Array | None) -> Any:
        return method(weights, stat, sparsity if own is None else own, structure)

    seen = stat if unseen is None else _filled(stat, unseen, method, dense.shape[-1])
    new, keep, facts = over_axes(solve, dense.ndim - 2)(start, seen, each)
    new, keep = settle(new, keep, dense, own, operand, scale)
    measured = {"kept": jnp.mean(keep.astype(jnp.float32)), "facts": facts}
    if operand is None:
        measured["error"] = relative_error(start, new.astype(jnp.float32), stat)
    return arrangement.from_matrix(new, leaf, index), arrangement.from_matrix(keep, mask, index), measured


@jax.jit
def _error(weights: jax.Array, new: jax.Array, stat: Any, cross: jax.Array | None) -> jax.Array:
    return relative_error(_target(weights, stat, cross), new, stat)


def settle(
    new: jax.Array,
    keep: jax.Array,
    dense: jax.Array,
    own: jax.Array,
    operand: jax.Array | None = None,
    scale: jax.Array | None = None,
) -> tuple[jax.Array, jax.Array]:
    """The values of a parameter for what a method makes of weights, and which are kept.

    Args:
      new: float32[..., out, in], the new weights.
      keep: bool[..., out, in], those that the method keeps.
      dense: float32[..., out, in], the weights before.
      own: [..., out, in], the parameter before.
      operand: `dense` where the function changes the values of the parameter before use.
      scale: float32[..., out, in], what it multiplies them with; None where it does something else, which leaves only
        zeros as they are.

    Returns:
      [..., out, in], of the dtype of the parameter; and bool[..., out, in].
    """
    if operand is not None:  # what the function makes zero of all values is pruned already
        keep &= (operand if scale is None else scale) != 0
    # What the method leaves alone keeps all its bits: float32 has fewer than float64.
    changed = (new != dense) & (operand is None or scale is not None)
    values = jnp.where(changed, unscaled(new, scale).astype(own.dtype), own)
    # The mask comes after the cast, so that zeros are zeros in every dtype.
    return jnp.where(keep, values, jnp.zeros((), own.dtype)), keep


def _target(weights: jax.Array, stat: Any, cross: jax.Array | None) -> jax.Array:
    """The weights whose outputs are to be kept."""
    if cross is None:
        return weights
    return over_axes(correct, weights.ndim - 2)(weights, _need_gram(stat, weights), cross)


def _behind(value: Any, rank: int) -> jax.Array:
    """A number for each layer of a stack, shaped to broadcast over the batch axes that follow."""
    value = jnp.asarray(value, jnp.float32)
    return value.reshape(*value.shape, *[1] * (rank - value.ndim))


def over_axes(function: Any, times: int) -> Any:
    """The function of one matrix as one of a stack with so many axes in front."""
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
