"""Coverage: which parameters a calibration reaches, why it does not reach the others, and what it will hold."""

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import jax

from jaxprune import trees
from jaxprune.tracing.graph import Operand
from jaxprune.tracing.inputs import Input, find_inputs, row_shape
from jaxprune.tracing.layers import Layers
from jaxprune.tracing.matrices import Matrix


@dataclasses.dataclass(frozen=True)
class Coverage:
    """What a calibration sees of some parameters.

    Attributes:
      covered: the names of the matrices of each covered parameter, by path.
      missing: why there are none, by path.
      other_uses: the operations whose inputs are not in the statistics of a matrix that they read, by its name: they
        see it transposed, or under a mask.
      statistics: the abstract value of a statistic for each input, by its name as in `Statistics.values`, where a
        statistic was given. Matrices that share an input share its value, which has the name of the first of them.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxprune as jp
      >>> params = {"table": jnp.ones((9, 2)), "head": jnp.ones((2, 3))}
      >>> model = jp.trace(lambda p, k: p["table"][k] @ p["head"], params, jnp.ones(4, jnp.int32))
      >>> print(model.coverage())
      1 of 2 parameters are covered
        table: rows are looked up in it (an embedding); no data is multiplied with it
    """

    covered: Mapping[str, tuple[str, ...]]
    missing: Mapping[str, str]
    other_uses: Mapping[str, tuple[str, ...]] = dataclasses.field(default_factory=dict)
    statistics: Mapping[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """How many bytes of memory the statistics hold together."""
        return sum(map(_bytes, self.statistics.values()))

    def __str__(self) -> str:
        total = len(self.covered) + len(self.missing)
        lines = [f"{len(self.covered)} of {total} parameters are covered"]
        lines.extend(f"  {path}: {reason}" for path, reason in self.missing.items())
        lines.extend(
            f"  {name}: without the inputs of {', '.join(places)}, which sees it in another way (transposed, masked)"
            for name, places in self.other_uses.items()
        )
        if self.statistics:
            lines.append(f"the statistics of {len(self.statistics)} inputs hold {self.nbytes:,} bytes")
        for name, value in self.statistics.items():
            shapes = ", ".join(f"{leaf.dtype}{list(leaf.shape)}" for leaf in jax.tree.leaves(value))
            lines.append(f"  {name}: {shapes}, {_bytes(value):,} bytes")
        return "\n".join(lines)


def find_coverage(
    layers: Layers, flags: Sequence[bool], strict: bool = False, stat: Callable[[Any, Any], Any] | None = None
) -> Coverage:
    """The coverage of the parameters that are flagged, with what `stat` holds; `strict` raises where one is missing."""
    matrices = [matrix for matrix in layers.matrices if flags[matrix.leaf]]
    covered: dict[str, tuple[str, ...]] = {}
    for matrix in matrices:
        covered[matrix.path] = (*covered.get(matrix.path, ()), matrix.name)
    chosen = [path for path, flag in zip(layers.paths, flags, strict=True) if flag]
    missing = {path: _reason(layers, layers.paths.index(path)) for path in chosen if path not in covered}
    if strict and missing:
        listed = "\n".join(f"  {path}: {reason}" for path, reason in missing.items())
        raise ValueError(f"no statistics can be had of these parameters; leave them out with `where`:\n{listed}")
    others = {
        matrix.name: tuple(site.node.place for site in matrix.other_uses) for matrix in matrices if matrix.other_uses
    }
    held = {} if stat is None else _held(layers, matrices, stat)
    return Coverage({path: covered[path] for path in chosen if path in covered}, missing, others, held)


def _held(layers: Layers, matrices: Sequence[Matrix], stat: Callable[[Any, Any], Any]) -> dict[str, Any]:
    """The abstract value of a statistic for each input of some matrices."""
    sources, inputs_of = find_inputs(matrices, layers.program)
    readers = {name: matrix for matrix in reversed(matrices) for name in inputs_of[matrix.name]}
    return {source.name: _value(layers, source, readers[source.name], stat) for source in sources}


def _value(layers: Layers, source: Input, matrix: Matrix, stat: Callable[[Any, Any], Any]) -> Any:
    shape = jax.eval_shape(matrix.arrangement.to_matrix, layers.leaves[matrix.leaf]).shape
    stack, batch = shape[: matrix.arrangement.stacked], shape[matrix.arrangement.stacked : -2]
    dtype = source.node.equation.invars[1 - source.site.operand].aval.dtype
    x = jax.ShapeDtypeStruct((*batch, math.prod(row_shape(source.site)), shape[-1]), dtype)
    value = jax.eval_shape(lambda x: stat(x, None), x)
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((*stack, *leaf.shape), leaf.dtype), value)


def _bytes(value: Any) -> int:
    return sum(math.prod(leaf.shape) * leaf.dtype.itemsize for leaf in jax.tree.leaves(value))


def _reason(layers: Layers, leaf: int) -> str:
    if not trees.is_floating(layers.leaves[leaf]):
        return "it is no floating array"
    if leaf in layers.embeddings:
        return "rows are looked up in it (an embedding); no data is multiplied with it"
    own = [site for site in layers.products if site.leaf == leaf]
    if own:
        return f"the operation is no product with a matrix: {own[0].node.place}"
    origins = layers.origins
    for node in layers.program.graph.everything():
        if not any(_shows(layers, operand, leaf) for operand in node.inputs):
            continue
        if any(map(origins.is_data, node.outputs)):
            return f"it meets the data in an operation that is no product with a matrix: {node.place}"
        if not any(_shows(layers, value, leaf) for value in node.outputs):
            return f"it cannot be followed through {node.place}"
    return "the function does not use it"


def _shows(layers: Layers, operand: Operand, leaf: int) -> bool:
    """Whether a parameter can be read off a value."""
    origin = layers.origins.of(operand)
    return origin is not None and any(part.leaf == leaf for part in origin.parts)
