"""`preprocess`: reads the model before anything is pruned: its trace, its cost, and how sensitive the loss is to it."""

import dataclasses
from collections.abc import Sequence

import jax

from jaxprune.pipeline.batches import Apply, Batch, Loss
from jaxprune.pipeline.sensitivity import LossSensitivity, sensitivity
from jaxprune.structures import NM, Structure, Unstructured
from jaxprune.tracing import Cost, Model, trace
from jaxprune.tracing.coverage import Coverage
from jaxprune.trees import PyTree, Where

SCAN = (0.5, 0.7, 0.8, 0.9, 0.95, 0.98)


@dataclasses.dataclass(frozen=True)
class Preprocessed:
    """What is known of a model before it is pruned; prints in a few lines.

    Attributes:
      model: the trace, with its groups of indices that go together.
      cost: parameters, multiply-adds and bytes of the dense model; modelled.
      coverage: which parameters data is multiplied with, and why the others are none.
      sensitivity: the loss when each parameter alone is pruned, measured; None where no scan was made.
    """

    model: Model
    cost: Cost
    coverage: Coverage
    sensitivity: LossSensitivity | None

    def __str__(self) -> str:
        lines = [
            f"{self.cost.parameters:,} parameters, {self.cost.macs:,} multiply-adds a call",
            f"{len(self.model.groups)} groups of indices that can be removed",
            str(self.coverage),
        ]
        return "\n".join([*lines, *([] if self.sensitivity is None else [str(self.sensitivity)])])


def preprocess(
    apply_fn: Apply,
    params: PyTree,
    loss_fn: Loss,
    batches: Sequence[Batch],
    *,
    structure: Structure = Unstructured(),
    where: Where = None,
    scan: bool = True,
    up_to: float = 0.98,
    progress: bool = False,
) -> Preprocessed:
    """Traces the model, counts what it costs, and measures the loss when each parameter alone is pruned.

    Args:
      apply_fn: `(params, inputs) -> outputs`.
      params: the parameters.
      loss_fn: `(outputs, targets) -> scalar`.
      batches: `(inputs, targets)` pairs; the first one gives the shapes of the trace, all give the loss.
      structure: what is pruned together in the scan.
      where: which parameters may be pruned.
      scan: whether to make the sensitivity scan, one pass over the batches for each parameter and sparsity; none is
        made under N:M, which fixes the sparsity.
      up_to: the highest sparsity that an allocation will be asked for.
      progress: show a progress bar.

    Returns:
      See `Preprocessed`.

    Example:
      >>> import jax.numpy as jnp
      >>> params = {"a": jnp.ones((2, 3)), "b": jnp.ones((3, 1))}
      >>> batches = [(jnp.ones((4, 2)), jnp.ones((4, 1)))]
      >>> made = preprocess(lambda p, x: x @ p["a"] @ p["b"], params, lambda y, t: jnp.mean((y - t) ** 2), batches)
      >>> made.cost.macs, list(made.model.groups), made.sensitivity.dense
      (36, ['a:1'], 25.0)
    """
    model = trace(apply_fn, params, jax.tree.map(_shape, batches[0][0]))
    points = [point for point in SCAN if point < up_to] + [up_to, (1 + up_to) / 2]
    scanned = None
    if scan and not isinstance(structure, NM):
        scanned = sensitivity(
            apply_fn, params, loss_fn, batches, sparsities=points, structure=structure, where=where, progress=progress
        )
    return Preprocessed(model, model.cost(), model.coverage(where), scanned)


def _shape(leaf: jax.Array) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype)
