"""`prune_sequential`: each weight is pruned as it is reached; later ones see the inputs that pruned layers give."""

import functools
import math
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import jax
import numpy as np

from jaxprune.calibration.accumulate import counter
from jaxprune.calibration.capture import Weights, add
from jaxprune.calibration.inputs import rows_of
from jaxprune.calibration.statistics import cross_gram
from jaxprune.posttraining._method import Method
from jaxprune.posttraining._needs import stack_of
from jaxprune.posttraining.layer import LayerReport, prune_matrix
from jaxprune.posttraining.result import (
    Apply,
    Choice,
    Pruned,
    Sparsity,
    choose_matrices,
    finish,
    sparsity_of,
    start_masks,
)
from jaxprune.posttraining.stages import Frame
from jaxprune.posttraining.units import Blocks, Loop, Unit, plan_units
from jaxprune.posttraining.walk import Versions, Walk, read_batches
from jaxprune.structures import Structure, Unstructured
from jaxprune.tracing.graph import Graph
from jaxprune.tracing.layers import Layers, read_layers
from jaxprune.tracing.matrices import Matrix
from jaxprune.tracing.sites import RAGGED_DOT
from jaxprune.trees import PyTree, Where


def prune_sequential(
    apply_fn: Apply,
    params: PyTree,
    batches: Iterable[Any],
    method: Method,
    *,
    sparsity: Sparsity = None,
    structure: Structure = Unstructured(),
    where: Where = None,
    weights: Weights | None = None,
    order: Literal["op", "block"] = "op",
    blocks: Sequence[str] | None = None,
    target: Literal["self", "dense"] = "self",
    offload: bool = False,
    strict: bool = False,
    progress: bool = False,
) -> Pruned:
    """Prunes a model without training, layer after layer in the order of the data flow.

    The traced program is run over all batches from one weight to the next: there, the statistic of its input is taken,
    the weight is pruned, and the run goes on with the pruned one. One forward pass in total, and one statistic in
    memory at a time; no list of layers is needed. Layers that a scan runs over are pruned one by one; a weight that a
    loop carries unchanged (a recurrent cell) is pruned once, from the inputs of all steps. Nothing after the last
    pruned weight runs, and stages of repeated layers compile once.

    Args:
      apply_fn: a pure function of parameters and arguments.
      params: its parameters.
      batches: the arguments of each call: a tuple of them, or the only one; all of the same shapes.
      method: one of `jp.posttraining`.
      sparsity: as for `prune_one_shot`.
      structure: as for `prune_one_shot`.
      where: as for `prune_one_shot`.
      weights: what each row of the data counts for, as for `calibrate`.
      order: `"op"` prunes each weight as it is reached. `"block"` takes the statistics of a block from its dense
        weights, prunes all of it, and runs it again with the pruned ones, as the original Wanda and SparseGPT do; it
        costs a second forward pass.
      blocks: regular expressions over paths, of which a match of the same text is the same block, such as
        `["layers_[0-9]+"]`; by default numbered parts of paths, and each step of a scan.
      target: `"self"` keeps the output of the dense weights on the inputs that pruned layers give. `"dense"` keeps
        the output of the dense model, by correcting the weights for the change of their inputs first; it carries both
        activations along, and costs as much again. A weight that is used several times keeps `"self"`, and so do the
        experts of a `lax.ragged_dot`, whose tokens the pruned model may send elsewhere.
      offload: hold activations in the memory of the host between stages.
      strict: raise where a parameter that `where` chooses cannot be pruned; else the result says which, and why.
      progress: show a progress bar.

    Returns:
      Parameters, masks, and a report of each matrix in the order of pruning.

    Raises:
      ValueError: no batches or batches of several shapes, a sparsity out of range or that N:M cannot have, nothing to
        prune, a matrix that no data reached, an unknown `order` or `target`.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxprune as jp
      >>> params = {"a": jnp.eye(4) + 0.1, "b": jnp.ones((4, 2))}
      >>> batches = [jax.random.normal(jax.random.key(0), (32, 4))]
      >>> pruned = jp.prune_sequential(lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"], params, batches,
      ...                              jp.posttraining.sparsegpt(), structure=jp.NM(2, 4))
      >>> [(layer.name, layer.sparsity) for layer in pruned.layers]
      [('a', 0.5), ('b', 0.5)]

    References:
      Frantar and Alistarh 2023 (SparseGPT), arXiv 2301.00774; Sun et al. 2024 (Wanda), arXiv 2306.11695.
    """
    for name, value, allowed in (("order", order, ("op", "block")), ("target", target, ("self", "dense"))):
        if value not in allowed:
            raise ValueError(f"{name}={value!r}; it may be one of {list(allowed)}.")
    if blocks is not None and order != "block":
        raise ValueError('blocks= says what order="block" takes together; it has no meaning under order="op".')
    batches = read_batches(batches, "prune_sequential")
    layers = read_layers(apply_fn, params, *batches[0])
    choice = choose_matrices(layers, where, params, strict)
    shares = sparsity_of(choice.matrices, sparsity, structure)
    grouping = None if order == "op" else Blocks(None if blocks is None else tuple(blocks))
    rows = [None if weights is None else weights(*batch) for batch in batches]
    leaves = jax.tree.leaves(params)
    versions = [leaves, list(leaves)] if target == "dense" else [leaves]
    walk = _Pruning(layers, versions, choice, method, shares, structure, grouping, rows, offload)
    total = sum(math.prod(stack_of(matrix, layers)) for matrix in choice.matrices)
    with counter(progress, total, "prune") as walk.advance:
        walk.start(choice.matrices, batches)
    return finish(params, walk.leaves, walk.masks, walk.reports, choice.skipped)


class _Pruning(Walk):
    """Prunes on the way; the second version, if there is one, is the dense model."""

    def __init__(
        self,
        layers: Layers,
        versions: list[list[Any]],
        choice: Choice,
        method: Method,
        shares: dict[str, Any],
        structure: Structure,
        blocks: Blocks | None,
        weights: list[Any],
        offload: bool,
    ):
        super().__init__(layers, method.stat, versions, offload)
        self.masks = start_masks(versions[0], choice.matrices)
        self.choice = choice
        self.method = method
        self.shares = shares
        self.structure = structure
        self.blocks = blocks
        self.weights = weights
        self.reports: list[LayerReport] = []
        self.units: dict[Graph, list[Unit | Loop]] = {}

    def process(
        self, frame: Frame, matrices: Sequence[Matrix], index: tuple[int, ...], values: Versions, outputs: bool
    ) -> Versions:
        """Prunes the matrices of a frame: see `Walk`."""
        if frame.graph not in self.units:
            self.units[frame.graph] = plan_units(frame, matrices, self.blocks)
        units = self.units[frame.graph]
        end = len(frame.nodes) if outputs else max((unit.stop for unit in units), default=0)
        position = 0
        for unit in units:
            values = self.forward(frame, position, unit.start, frame.needed(unit.start, end, outputs), index, values)
            position = unit.start
            if isinstance(unit, Loop):
                position = unit.stop
                values = self.loop(frame, unit, index, values, frame.needed(position, end, outputs))
            else:
                self.prune(frame, unit, index, values)
        return self.forward(frame, position, end, frame.needed(end, end, True), index, values) if outputs else values

    def prune(self, frame: Frame, unit: Unit, index: tuple[int, ...], values: Versions) -> None:
        """Takes the statistics of a unit over all batches, and prunes its matrices."""
        found = None
        for batch, weights in zip(values[0], self.weights, strict=True):
            part = self.stages.measure(frame, unit.start, unit.stop, unit.sources, self.leaves, index, batch, weights)
            found = part if found is None else add(found, part)
        by_name = dict(zip((source.name for source in unit.sources), found or [], strict=True))
        crosses = self.crosses(frame, unit, index, values)
        for matrix in unit.matrices:
            own = [by_name[name] for name in unit.inputs_of[matrix.name]]
            count, stat = functools.reduce(add, own)
            share, k = self.shares[matrix.name], matrix.leaf
            if isinstance(share, np.ndarray):
                share = np.asarray(share[index[: share.ndim]])
            cross = crosses.get(unit.inputs_of[matrix.name])
            alone = len(values) > 1 and cross is None
            self.leaves[k], self.masks[k], report = prune_matrix(
                matrix,
                self.leaves[k],
                self.masks[k],
                stat,
                count,
                self.method,
                share,
                self.structure,
                index,
                cross,
                self.choice.use(matrix, self.leaves, index),
                'keeps its own output as under target="self": its inputs have no dense partner' if alone else "",
            )
            self.reports.append(report)
            self.advance(math.prod(report.shape[: matrix.arrangement.stacked - len(index)]))

    def crosses(
        self, frame: Frame, unit: Unit, index: tuple[int, ...], values: Versions
    ) -> dict[tuple[str, ...], jax.Array]:
        """The Gram matrices of dense with pruned inputs, of the inputs that are read once.

        Not of those whose rows a ragged product sorts: a token may be elsewhere in the pruned model.
        """
        once = [s for s in unit.sources if len(s.loops) == len(index) and s.site.kind != RAGGED_DOT]
        if len(values) == 1 or not once:
            return {}
        total: Any = None
        for *both, weights in zip(*values, self.weights, strict=True):
            mine, theirs = (
                self.stages.measure(frame, unit.start, unit.stop, once, leaves, index, batch, weights, rows_of)
                for leaves, batch in zip(self.versions, both, strict=True)
            )
            part = [_cross_gram(b, a) for (_, a), (_, b) in zip(mine, theirs, strict=True)]
            total = part if total is None else add(total, part)
        return {(source.name,): cross for source, cross in zip(once, total, strict=True)}


_cross_gram = jax.jit(cross_gram)
