"""A table of what masks do to each parameter, and in total."""

import dataclasses
import math
from typing import Any

import jax
import numpy as np

from jaxprune import masks as masks_
from jaxprune import trees
from jaxprune.structures import NM, oriented
from jaxprune.trees import PyTree, Where


@dataclasses.dataclass(frozen=True)
class Row:
    """One parameter, or a total.

    Attributes:
      path: the parameter's path.
      shape: its shape; empty for totals.
      structure: the structure asked for, with a note where N:M leaves a remainder dense.
      asked: sparsity asked for, or None.
      sparsity: exact fraction of zeros that the mask makes.
      kept: number of kept weights.
      weights: number of weights.
      dense_bytes: bytes of the dense array.
      packed_bytes: bytes of the kept values plus one bit a weight (theoretical); dense bytes if nothing is pruned.
    """

    path: str
    shape: tuple[int, ...]
    structure: str
    asked: float | None
    sparsity: float
    kept: int
    weights: int
    dense_bytes: int
    packed_bytes: int


@dataclasses.dataclass(frozen=True)
class Summary:
    """Rows of all parameters and two totals; prints as a table.

    Attributes:
      rows: one a parameter.
      pruned: total over the parameters that may be pruned.
      total: total over the whole tree.

    Example:
      >>> import jax.numpy as jnp
      >>> print(summary({"w": jnp.ones((2, 2))}, {"w": jnp.eye(2, dtype=bool)}).pruned.kept)
      2
    """

    rows: tuple[Row, ...]
    pruned: Row
    total: Row

    def __str__(self) -> str:
        header = ("path", "shape", "structure", "asked", "sparsity", "kept", "of", "bytes", "packed (theoretical)")
        lines = [header] + [_cells(row) for row in (*self.rows, self.pruned, self.total)]
        widths = [max(len(line[i]) for line in lines) for i in range(len(header))]
        return "\n".join("  ".join(c.ljust(w) for c, w in zip(line, widths, strict=True)).rstrip() for line in lines)


def summary(params: PyTree, masks: PyTree, *, where: Where = None, asked: Any = None, structure: Any = None) -> Summary:
    """Counts what masks keep: only masks count, so an untrained bias of zeros is not sparse.

    Args:
      params: parameters, concrete or abstract.
      masks: a concrete mask tree.
      where: which parameters may be pruned, for the first total; by default those of which a mask prunes something.
      asked: the sparsity that was asked for: a number for the pruned parameters, or a tree.
      structure: the structure that was asked for.

    Returns:
      A `Summary`.

    Raises:
      ValueError: the masks do not fit.
      TypeError: a leaf of the parameters is no array.

    Example:
      >>> import jax.numpy as jnp
      >>> made = summary({"w": jnp.ones((2, 2)), "b": jnp.zeros(2)}, {"w": jnp.eye(2, dtype=bool), "b": True})
      >>> made.pruned.sparsity, made.total.kept
      (0.5, 4)
    """
    trees.check_arrays(params)
    masks_.check_masks_fit(masks, params)
    named = trees.leaves_with_paths(params)
    leaves = jax.tree.leaves(masks)
    kept = [masks_.kept_count(m, np.shape(p)) for m, (_, p) in zip(leaves, named, strict=True)]
    sizes = [math.prod(np.shape(p)) for _, p in named]
    if where is None:
        prunable = [k < n for k, n in zip(kept, sizes, strict=True)]
    else:
        prunable = jax.tree.leaves(trees.resolve_where(where, params))
    wanted = _asked(asked, params, prunable)
    rows = []
    for (path, p), k, n, c, a in zip(named, kept, sizes, prunable, wanted, strict=True):
        size = n * p.dtype.itemsize
        packed = size if k == n else k * p.dtype.itemsize + -(-n // 8)
        form = oriented(structure, trees.matrix_axes(where, path)) if structure is not None else None
        name = _structure_name(form, np.shape(p)) if c else "dense"
        rows.append(Row(path, np.shape(p), name, a, 1 - k / n if n else 0.0, k, n, size, packed))
    chosen = [row for row, c in zip(rows, prunable, strict=True) if c]
    return Summary(tuple(rows), _total("pruned parameters", chosen), _total("whole model", rows))


def _asked(asked: Any, params: PyTree, prunable: list[bool]) -> list[float | None]:
    if asked is None:
        return [None] * len(prunable)
    values = jax.tree.leaves(trees.broadcast_prefix(asked, params, "asked"))
    return [float(v) if c else None for v, c in zip(values, prunable, strict=True)]


def _structure_name(structure: Any, shape: tuple[int, ...]) -> str:
    if structure is None:
        return ""
    if isinstance(structure, NM):
        axis = -2 if structure.axis is None else structure.axis
        if not -len(shape) <= axis < len(shape):
            return ""  # a rule gave it another structure
        rest = shape[axis] % structure.m
        return f"{structure.n}:{structure.m}" + (f", last {rest} of axis {axis} dense" if rest else "")
    return type(structure).__name__.lower()


def _total(name: str, rows: list[Row]) -> Row:
    kept, weights = sum(r.kept for r in rows), sum(r.weights for r in rows)
    sparsity = 1 - kept / weights if weights else 0.0
    dense, packed = sum(r.dense_bytes for r in rows), sum(r.packed_bytes for r in rows)
    return Row(name, (), "", None, sparsity, kept, weights, dense, packed)


def _cells(row: Row) -> tuple[str, ...]:
    return (
        row.path,
        "x".join(map(str, row.shape)),
        row.structure,
        "" if row.asked is None else f"{row.asked:.4f}",
        f"{row.sparsity:.4f}",
        f"{row.kept:,}",
        f"{row.weights:,}",
        f"{row.dense_bytes:,}",
        f"{row.packed_bytes:,}",
    )
