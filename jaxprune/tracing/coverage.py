"""Coverage: which parameters a calibration reaches, and why it does not reach the others."""

import dataclasses
from collections.abc import Mapping, Sequence

from jaxprune import trees
from jaxprune.tracing.graph import Operand
from jaxprune.tracing.layers import Layers


@dataclasses.dataclass(frozen=True)
class Coverage:
    """What a calibration sees of some parameters.

    Attributes:
      covered: the names of the matrices of each covered parameter, by path.
      missing: why there are none, by path.
      other_uses: the operations whose inputs are not in the statistics of a matrix that they read, by its name: they
        see it transposed, or under a mask.

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

    def __str__(self) -> str:
        total = len(self.covered) + len(self.missing)
        lines = [f"{len(self.covered)} of {total} parameters are covered"]
        lines.extend(f"  {path}: {reason}" for path, reason in self.missing.items())
        lines.extend(
            f"  {name}: without the inputs of {', '.join(places)}, which sees it in another way (transposed, masked)"
            for name, places in self.other_uses.items()
        )
        return "\n".join(lines)


def find_coverage(layers: Layers, flags: Sequence[bool], strict: bool = False) -> Coverage:
    """The coverage of the parameters that are flagged; `strict` raises where one is missing."""
    covered: dict[str, tuple[str, ...]] = {}
    for matrix in layers.matrices:
        covered[matrix.path] = (*covered.get(matrix.path, ()), matrix.name)
    chosen = [path for path, flag in zip(layers.paths, flags, strict=True) if flag]
    missing = {path: _reason(layers, layers.paths.index(path)) for path in chosen if path not in covered}
    if strict and missing:
        listed = "\n".join(f"  {path}: {reason}" for path, reason in missing.items())
        raise ValueError(f"no statistics can be had of these parameters; leave them out with `where`:\n{listed}")
    others = {
        matrix.name: tuple(site.node.place for site in matrix.other_uses)
        for matrix in layers.matrices
        if matrix.other_uses and matrix.path in chosen
    }
    return Coverage({path: covered[path] for path in chosen if path in covered}, missing, others)


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
