"""What pruning after training gives back, and the arguments that its drivers share."""

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import jax
import jax.numpy as jnp
import numpy as np

from jaxprune import trees
from jaxprune._counts import check_sparsity
from jaxprune.posttraining._operands import Operand, Use, find_operands
from jaxprune.posttraining.layer import LayerReport as LayerReport
from jaxprune.structures import NM, Structure
from jaxprune.tracing.coverage import find_coverage
from jaxprune.tracing.layers import Layers
from jaxprune.tracing.matrices import Matrix
from jaxprune.trees import PyTree, Where

Sparsity: TypeAlias = float | Mapping[str, Any] | None


@dataclasses.dataclass(frozen=True)
class Pruned:
    """A pruned model.

    Attributes:
      params: the new parameters.
      masks: a mask tree, ready for `jp.keep_masks`.
      layers: what became of each matrix, in the order in which they were pruned.
      skipped: what `where` chose and was not pruned, by path, and why.

    Example:
      >>> import jaxprune as jp
      >>> params = {"a": jnp.eye(4)}
      >>> pruned = jp.prune_one_shot(lambda p, x: x @ p["a"], params, [jnp.ones((8, 4))], jp.posttraining.wanda(),
      ...                            sparsity=0.5)
      >>> pruned.layers[0].name, pruned.layers[0].sparsity
      ('a', 0.5)
    """

    params: PyTree
    masks: PyTree
    layers: tuple[LayerReport, ...]
    skipped: Mapping[str, str] = dataclasses.field(default_factory=dict)

    def rows(self) -> list[dict[str, Any]]:
        """One dictionary a matrix: for a table, a plot or a log."""
        return [
            {key: value for key, value in vars(layer).items() if key != "facts"} | dict(layer.facts)
            for layer in self.layers
        ]

    def __str__(self) -> str:
        lines = [f"{'matrix':<40} {'out x in':>13} {'zeros':>6} {'error':>7} {'rows':>9}  remarks"]
        for layer in self.layers:
            name = layer.name + "".join(f"[{k}]" for k in layer.index)
            shape = " x ".join(map(str, layer.shape[-2:]))
            stack = "".join(f"{size} of " for size in layer.shape[:-2])
            remarks = [layer.note] if layer.note else []
            if layer.facts.get("fallback"):
                remarks.append(f"more damping than asked for was needed: {layer.facts['damping']:.2g}")
            error = f"{layer.error:.4f}" + ("" if layer.exact_error else "~")
            lines.append(
                f"{name:<40} {stack + shape:>13} {layer.sparsity:6.3f} {error:>7} {layer.rows:9.0f}  "
                f"{'; '.join(remarks)}".rstrip()
            )
        if not all(layer.exact_error for layer in self.layers):
            lines.append("~: from column norms, as if the inputs were uncorrelated")
        for reason in dict.fromkeys(self.skipped.values()):
            same = [path for path, own in self.skipped.items() if own == reason]
            lines.append(f"not pruned: {trees.list_paths(same)}: {reason}")
        return "\n".join(lines)

    def plot(self, axes: Any = None) -> Any:
        """Draws error and sparsity of each matrix; needs matplotlib.

        Args:
          axes: a matplotlib axes to draw on; a new one by default.

        Returns:
          The axes.
        """
        import matplotlib.pyplot as plt

        axes = plt.subplots(figsize=(8, 0.6 + 0.22 * len(self.layers)))[1] if axes is None else axes
        names = [layer.name + "".join(f"[{k}]" for k in layer.index) for layer in self.layers]
        axes.barh(names, [layer.error for layer in self.layers], label="relative output error")
        axes.plot([layer.sparsity for layer in self.layers], names, "k|", markersize=10, label="sparsity")
        axes.invert_yaxis()
        axes.set_xlabel("relative output error, sparsity")
        axes.legend()
        return axes


@dataclasses.dataclass(frozen=True)
class Choice:
    """What is to be pruned.

    Attributes:
      matrices: the matrices.
      operands: by name, of those that are more than a view of a parameter: what data is multiplied with.
      skipped: what was asked for and is not pruned, by path, and why.
    """

    matrices: tuple[Matrix, ...]
    operands: Mapping[str, Operand]
    skipped: Mapping[str, str]

    def use(self, matrix: Matrix, leaves: Sequence[Any], index: Sequence[int] = ()) -> Use | None:
        """What the function makes of the parameter of a matrix; None where that is a view of it."""
        operand = self.operands.get(matrix.name)
        return None if operand is None else operand.use(leaves, index)


def choose_matrices(layers: Layers, where: Where, params: PyTree, strict: bool = False) -> Choice:
    """The matrices to prune: all but tied embeddings, unless `where` asks for them, and those that cannot be.

    Args:
      layers: the model.
      where: which parameters.
      params: the parameters.
      strict: raise where one of them cannot be pruned.

    Raises:
      ValueError: there are none, or not all that were asked for under `strict`.
    """
    found, leaves = layers.chosen(where, params), jax.tree.leaves(params)
    flags = jax.tree.leaves(trees.resolve_where(where, params))
    skipped = dict(find_coverage(layers, flags, strict).missing)
    if where is None:
        tied = {matrix.path for matrix in found if matrix.leaf in layers.embeddings}
        skipped |= dict.fromkeys(sorted(tied), "rows are looked up in it as well (an embedding); name it in `where`")
        found = [matrix for matrix in found if matrix.path not in tied and len(layers.leaves[matrix.leaf].shape) > 1]
        if not found:
            raise ValueError(
                "the only parameters that data is multiplied with are embeddings as well; name them in `where` to "
                "prune them all the same."
            )
    examined = {name: operand.examined(leaves) for name, operand in find_operands(layers, found).items()}
    dense = {name: reason for name, (_, reason) in examined.items() if reason}
    matrices = tuple(matrix for matrix in found if matrix.name not in dense)
    if dense and (strict or not matrices):
        listed = "\n".join(f"  {name}: {reason}" for name, reason in dense.items())
        raise ValueError(f"these parameters cannot be pruned; leave them out with `where`:\n{listed}")
    operands = {name: operand for name, (operand, reason) in examined.items() if not reason}
    return Choice(matrices, operands, skipped | dense)


def sparsity_of(matrices: Sequence[Matrix], sparsity: Sparsity, structure: Structure) -> dict[str, Any]:
    """The sparsity of each matrix by its name: a float, an array where each has its own, None under N:M.

    Raises:
      ValueError: out of range, missing for a matrix, of no matrix, or none that N:M can have.
    """
    if isinstance(structure, NM):
        wanted = None if isinstance(sparsity, Mapping) else sparsity
        if isinstance(sparsity, Mapping) or (wanted is not None and abs(float(wanted) - structure.sparsity) > 1e-6):
            raise ValueError(
                f"sparsity={sparsity} under NM({structure.n}, {structure.m}), whose pattern fixes it at "
                f"{structure.sparsity}. Pass None or that."
            )
        return {matrix.name: None for matrix in matrices}
    if sparsity is None:
        raise ValueError("give a sparsity: a number in [0, 1), or one by the name of each matrix. Only N:M needs none.")
    if not isinstance(sparsity, Mapping):
        check_sparsity(sparsity)
        return {matrix.name: float(sparsity) for matrix in matrices}
    names = [matrix.name for matrix in matrices]
    known = {*names, *(matrix.path for matrix in matrices)}
    if extra := [name for name in sparsity if name not in known]:
        raise ValueError(f"sparsity is given for {trees.list_paths(extra)}; to prune are {trees.list_paths(names)}.")
    result = {}
    for matrix in matrices:
        value = sparsity.get(matrix.name, sparsity.get(matrix.path))
        if value is None:
            raise ValueError(f"no sparsity for {matrix.name!r}; give one, or leave it out with `where`.")
        values = np.asarray(value, np.float64)
        for each in values.reshape(-1):
            check_sparsity(float(each), f"sparsity of {matrix.name}")
        result[matrix.name] = values
    return result


def start_masks(leaves: Sequence[Any], matrices: Sequence[Matrix]) -> dict[int, Any]:
    """A full mask for each parameter that is pruned, on the devices where that was put."""

    def full(leaf: Any) -> jax.Array:
        # A committed mask of an uncommitted parameter would compile what takes both twice.
        own = leaf.sharding if isinstance(leaf, jax.Array) and leaf.committed else None
        return jnp.ones(jnp.shape(leaf), bool, device=own)

    return {matrix.leaf: full(leaves[matrix.leaf]) for matrix in matrices}


def finish(
    params: PyTree,
    leaves: Sequence[Any],
    masks: Mapping[int, Any],
    reports: Sequence[LayerReport],
    skipped: Mapping[str, str],
) -> Pruned:
    """Puts parameters and masks back into the tree."""
    treedef = jax.tree.structure(params)
    flat = [masks.get(k, jnp.asarray(True)) for k in range(len(leaves))]
    new, kept = jax.tree.unflatten(treedef, leaves), jax.tree.unflatten(treedef, flat)
    return Pruned(new, kept, tuple(reports), skipped)


Apply: TypeAlias = Callable[..., Any]
