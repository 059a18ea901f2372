"""`prune_sequential`: each weight is pruned as it is reached; later ones see the inputs that pruned layers give."""

import functools
from collections.abc import Iterable, Sequence
from typing import Any, Literal

import jax
import jax.numpy as jnp
from jax import lax

from jaxprune.calibration.accumulate import as_arguments, counter
from jaxprune.calibration.capture import Weights, add
from jaxprune.posttraining._method import Method
from jaxprune.posttraining.fronts import Front
from jaxprune.posttraining.layer import LayerReport, prune_matrix
from jaxprune.posttraining.result import Apply, Pruned, Sparsity, chosen_matrices, finish, sparsity_of, start_masks
from jaxprune.posttraining.stages import Data, Frame, Stages
from jaxprune.posttraining.units import Blocks, Loop, Unit, plan_units
from jaxprune.structures import Structure, Unstructured
from jaxprune.tracing.coverage import find_coverage
from jaxprune.tracing.graph import Graph
from jaxprune.tracing.layers import Layers, read_layers
from jaxprune.tracing.matrices import Matrix
from jaxprune.trees import PyTree, Where, resolve_where


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
        activations along, and costs as much again. A weight that is used several times keeps `"self"`.
      offload: hold activations in the memory of the host between stages.
      strict: raise where a parameter that `where` chooses is not covered.
      progress: show a progress bar.

    Returns:
      Parameters, masks, and a report of each matrix in the order of pruning.

    Raises:
      ValueError: no batches or batches of several shapes, a sparsity out of range or that N:M cannot have, nothing to
        prune, a matrix that no data reached, an unknown `order` or `target`.

    Example:
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
    batches = list(map(as_arguments, batches))
    if not batches:
        raise ValueError("prune_sequential: there are no batches, so there is nothing to learn from.")
    shapes = {str(jax.tree.map(jnp.shape, batch)) for batch in batches}
    if len(shapes) > 1:
        raise ValueError(f"the batches have several shapes, {sorted(shapes)[:3]}; give batches of one shape.")
    layers = read_layers(apply_fn, params, *batches[0])
    if strict:
        find_coverage(layers, jax.tree.leaves(resolve_where(where, params)), strict=True)
    matrices = chosen_matrices(layers, where, params)
    shares = sparsity_of(matrices, sparsity, structure)
    grouping = None if order == "op" else Blocks(None if blocks is None else tuple(blocks))
    rows = [None if weights is None else weights(*batch) for batch in batches]
    driver = _Driver(layers, jax.tree.leaves(params), matrices, method, shares, structure, grouping, rows)
    driver.dense = list(driver.leaves) if target == "dense" else None
    driver.offload = offload
    inputs = layers.program.graph.inputs[len(layers.paths) :]
    values = [dict(zip(inputs, jax.tree.leaves(batch), strict=True)) for batch in batches]
    with counter(progress, len(matrices), "prune") as driver.advance:
        driver.process(Frame(layers, layers.program.graph), matrices, (), values, list(values), outputs=False)
    return finish(params, driver.leaves, driver.masks, driver.reports)


class _Driver:
    """The state of a run: parameters and masks so far, and reports."""

    def __init__(
        self,
        layers: Layers,
        leaves: list[Any],
        matrices: Sequence[Matrix],
        method: Method,
        shares: dict[str, Any],
        structure: Structure,
        blocks: Blocks | None,
        weights: list[Any],
    ):
        self.leaves = leaves
        self.dense: list[Any] | None = None
        self.masks = start_masks(layers, matrices)
        self.method = method
        self.shares = shares
        self.structure = structure
        self.blocks = blocks
        self.weights = weights
        self.stages = Stages(layers, method.stat)
        self.reports: list[LayerReport] = []
        self.units: dict[Graph, list[Unit | Loop]] = {}
        self.offload = False
        self.advance: Any = lambda: None

    def process(
        self,
        frame: Frame,
        matrices: Sequence[Matrix],
        index: tuple[int, ...],
        values: list[Data],
        dense: list[Data],
        outputs: bool,
    ) -> tuple[list[Data], list[Data]]:
        """Prunes the matrices of a frame; gives the values of its outputs where they are asked for.

        Args:
          frame: the graph.
          matrices: those to prune.
          index: the step of each loop around it.
          values: for each batch, the values of the data as the pruned model has them.
          dense: as the dense model has them; read under `target="dense"` only.
          outputs: whether the outputs of the graph are needed.
        """
        if frame.graph not in self.units:
            self.units[frame.graph] = plan_units(frame, matrices, self.blocks)
        units = self.units[frame.graph]
        end = len(frame.nodes) if outputs else max((unit.stop for unit in units), default=0)
        position = 0
        for unit in units:
            values, dense = self.forward(frame, position, unit.start, end, outputs, index, values, dense)
            position = unit.start
            if isinstance(unit, Unit):
                self.prune(frame, unit, index, values, dense)
                continue
            later = frame.needed(unit.start + 1, end, outputs)
            values, dense = self.loop(frame, unit, index, values, dense, later)
            position += 1
        return self.forward(frame, position, end, end, True, index, values, dense) if outputs else (values, dense)

    def forward(
        self,
        frame: Frame,
        start: int,
        stop: int,
        end: int,
        outputs: bool,
        index: tuple[int, ...],
        values: list[Data],
        dense: list[Data],
    ) -> tuple[list[Data], list[Data]]:
        """Runs all batches from one position to another."""
        if start == stop:
            return values, dense
        keep = frame.needed(stop, end, outputs)

        def run(leaves: Sequence[Any], data: list[Data]) -> list[Data]:
            return [self.put(self.stages.run(frame, start, stop, keep, leaves, index, batch)) for batch in data]

        return run(self.leaves, values), dense if self.dense is None else run(self.dense, dense)

    def put(self, values: Data) -> Data:
        """Where values wait for the next stage."""
        return jax.device_get(values) if self.offload else values

    def prune(self, frame: Frame, unit: Unit, index: tuple[int, ...], values: list[Data], dense: list[Data]) -> None:
        """Takes the statistics of a unit over all batches, and prunes its matrices."""
        found = None
        for batch, weights in zip(values, self.weights, strict=True):
            part = self.stages.measure(frame, unit.start, unit.stop, unit.sources, self.leaves, index, batch, weights)
            found = part if found is None else add(found, part)
        by_name = dict(zip((source.name for source in unit.sources), found or [], strict=True))
        crosses = self.crosses(frame, unit, index, values, dense)
        for matrix in unit.matrices:
            own = [by_name[name] for name in unit.inputs_of[matrix.name]]
            count, stat = functools.reduce(add, own)
            share = self.shares[matrix.name]
            for k in index if getattr(share, "ndim", 0) else ():
                share = share[k]
            k = matrix.leaf
            self.leaves[k], self.masks[k], report = prune_matrix(
                matrix,
                self.leaves[k],
                self.masks[k],
                stat,
                count,
                self.method,
                float(share) if getattr(share, "ndim", None) == 0 else share,
                self.structure,
                index,
                crosses.get(unit.inputs_of[matrix.name]),
            )
            self.reports.append(report)
            self.advance()

    def crosses(
        self, frame: Frame, unit: Unit, index: tuple[int, ...], values: list[Data], dense: list[Data]
    ) -> dict[tuple[str, ...], jax.Array]:
        """The Gram matrices of dense with pruned inputs, of the inputs that are read once."""
        once = [source for source in unit.sources if len(source.loops) == len(index)]
        if self.dense is None or not once:
            return {}
        total: Any = None
        for pruned, whole, weights in zip(values, dense, self.weights, strict=True):
            mine, theirs = (
                self.stages.measure(frame, unit.start, unit.stop, once, leaves, index, batch, weights, _rows)
                for leaves, batch in ((self.leaves, pruned), (self.dense, whole))
            )
            part = [_cross_gram(b, a) for (_, a), (_, b) in zip(mine, theirs, strict=True)]
            total = part if total is None else add(total, part)
        return {(source.name,): cross for source, cross in zip(once, total, strict=True)}

    def loop(
        self,
        frame: Frame,
        loop: Loop,
        index: tuple[int, ...],
        values: list[Data],
        dense: list[Data],
        later: set[int],
    ) -> tuple[list[Data], list[Data]]:
        """Runs a scan step by step, and prunes the slices of its stacked parameters."""
        (body,), params = loop.node.subgraphs, loop.node.params
        inner = Frame(frame.layers, body, frame, loop.node)
        steps = range(params["length"])
        order = list(reversed(steps)) if params["reverse"] else list(steps)

        def start(leaves: Sequence[Any], batches: list[Data]) -> list[Front]:
            fixed = functools.partial(self.stages.fixed, leaves=leaves)
            return [Front(inner, batch, fixed, index) for batch in batches]

        fronts = start(self.leaves, values)
        behind = fronts if self.dense is None else start(self.dense, dense)
        for k in order:
            given = [front.inputs(k) for front in fronts]
            whole = given if self.dense is None else [front.inputs(k) for front in behind]
            last = k == order[-1] and not later & set(loop.node.outputs)
            results = self.process(inner, loop.matrices, (*index, k), given, whole, outputs=not last)
            if last:
                break
            for front, batch in zip(fronts, results[0], strict=True):
                front.step(k, batch)
            if self.dense is not None:
                for front, batch in zip(behind, results[1], strict=True):
                    front.step(k, batch)
        pruned = [front.outputs(batch, later) for front, batch in zip(fronts, values, strict=True)]
        if self.dense is None:
            return pruned, pruned
        return pruned, [front.outputs(batch, later) for front, batch in zip(behind, dense, strict=True)]


def _rows(x: jax.Array, weights: jax.Array | None) -> jax.Array:
    x = x.astype(jnp.float32)
    return x if weights is None else x * jnp.sqrt(weights.astype(jnp.float32))[..., None]


@jax.jit
def _cross_gram(left: jax.Array, right: jax.Array) -> jax.Array:
    return jnp.einsum("...rk,...rl->...kl", left, right, precision=lax.Precision.HIGHEST)
