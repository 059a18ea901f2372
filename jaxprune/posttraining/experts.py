"""REAP: how much each expert of a mixture adds to the tokens that are routed to it."""

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from jaxprune import trees
from jaxprune.calibration.accumulate import as_arguments
from jaxprune.calibration.capture import Tap, add
from jaxprune.posttraining._needs import check_leaves
from jaxprune.tracing import Model, dims
from jaxprune.tracing.dims import Dim
from jaxprune.tracing.evaluate import Evaluator
from jaxprune.tracing.graph import Node, Program
from jaxprune.tracing.layers import read_layers
from jaxprune.tracing.rules.contractions import free_axes
from jaxprune.trees import PyTree


def reap_scores(gates: jax.Array, norms: jax.Array) -> jax.Array:
    r"""The router-weighted activation of each expert, over the tokens that are routed to it.

    $$ s_e = \frac{1}{|T_e|} \sum_{t \in T_e} g_{te} \lVert f_e(x_t) \rVert, \quad T_e = \{t : g_{te} \neq 0\} $$

    Args:
      gates: $g$, float[..., tokens, experts], zero where a token is not routed to an expert.
      norms: the norms of the outputs of the experts, of the same shape.

    Returns:
      float32[experts], summed over all leading axes; zero for an expert without tokens. The lowest can go first.

    Raises:
      ValueError: the shapes differ.

    Example:
      >>> reap_scores(jnp.array([[0.5, 0.0], [1.0, 0.0], [0.0, 0.2]]), jnp.ones((3, 2))).tolist()
      [0.75, 0.20000000298023224]

    References:
      Lasby et al. 2025, REAP the Experts, arXiv 2510.13999.
    """
    if gates.shape != norms.shape or gates.ndim < 2:
        raise ValueError(f"gates have shape {gates.shape} and norms {norms.shape}; give (..., tokens, experts) both.")
    routed = gates != 0
    total = jnp.where(routed, gates.astype(jnp.float32) * norms.astype(jnp.float32), 0)
    over = tuple(range(gates.ndim - 1))
    return _mean(jnp.sum(total, over), jnp.sum(routed.astype(jnp.float32), over))


def expert_scores(
    model: Model, params: PyTree, batches: Iterable[Any], groups: Sequence[str] | None = None
) -> dict[str, jax.Array]:
    r"""The REAP score of every expert of a traced model, measured where its mixture sums over the experts.

    That sum is found in the trace: a product that contracts the axis of the experts (gates with outputs, or gated
    activations with the last weights), or a plain sum over it. Taken apart there, what expert $e$ adds to token $t$ is
    $g_{te} f_e(x_t)$, whose norm over the features is averaged over the tokens to which it adds anything: those with a
    gate other than zero. The layers of a scan, whose experts can only go together, are averaged.

    `jp.select` with `ratios` takes some away from each mixture, `jp.shrink` cuts their weights. A router that chooses
    by `lax.top_k` keeps its outputs: a token that would go to an expert that is gone gets nothing from it.

    Args:
      model: the traced model.
      params: the parameters.
      batches: the arguments of each call: a tuple of them, or the only one; of any batch sizes.
      groups: the ids of the groups that are experts; by default those over which such a sum is found, and that run
        along a batch axis of a parameter or are weighted in it by a value that has no features (the gates).

    Returns:
      float32[size] by the id of each group of the model; infinity for groups that are no experts, so that under
      `jp.select` they go last.

    Raises:
      ValueError: no batches, an unknown group, or no sum over its experts: mixtures by `lax.ragged_dot` or by gathers
        and scatters have none, and their experts are no group that can be cut.

    Example:
      >>> import jaxprune as jp
      >>> def apply_fn(p, x):
      ...     outputs = jnp.einsum("td,edf->etf", x, p["experts"])
      ...     return jnp.einsum("te,etf->tf", jax.nn.softmax(x @ p["router"]), outputs)
      >>> experts = jnp.stack([jnp.eye(2), jnp.zeros((2, 2)), 3 * jnp.eye(2)])
      >>> params = {"experts": experts, "router": jnp.zeros((2, 3))}
      >>> x = jnp.array([[3.0, 4.0]])
      >>> model = jp.trace(apply_fn, params, x)
      >>> scores = expert_scores(model, params, [x])
      >>> [round(float(score), 2) for score in scores["experts:0"]]
      [1.67, 0.0, 5.0]
      >>> jp.select(model, scores, 0.0, ratios={"experts:0": 1 / 3}).keep["experts:0"].tolist()
      [True, False, True]

    References:
      Lasby et al. 2025, REAP the Experts, arXiv 2510.13999.
    """
    check_leaves(model.layers, params)
    names = list(model.groups) if groups is None else _known(model, groups)
    # A look at the traced program says which groups have a sum, before anything is run.
    found = {name: _sums(model, model.program, name) for name in names}
    if groups is None:
        names = [name for name in names if _is_mixture(model, name, found[name])]
    without = [name for name in names if not found[name]]
    if without or not names:
        raise ValueError(
            f"there is no sum over the experts {'of ' + ', '.join(without) if without else 'of any group'} in the "
            "trace. Experts are found where they are an axis of their own, as in einsum('te,etd->td', gates, outputs); "
            "with lax.ragged_dot, or gathers and scatters, they are not supported. Score them with reap_scores."
        )

    @jax.jit
    def step(params: PyTree, args: tuple[Any, ...]) -> dict[str, Any]:
        layers = read_layers(model.apply_fn, params, *args)  # values have the numbers of the trace, at any batch size
        points = [point for name in names for point in _sums(model, layers.program, name)]
        watch = _Watch(layers.program, points)
        watch([*jax.tree.leaves(params), *jax.tree.leaves(args)])
        return watch.found

    totals: dict[str, Any] | None = None
    for args in map(as_arguments, batches):
        part = step(params, args)
        totals = part if totals is None else add(totals, part)
    if totals is None:
        raise ValueError("expert_scores: there are no batches, so there is nothing to learn from.")
    scores = {name: jnp.full(group.size, jnp.inf, jnp.float32) for name, group in model.groups.items()}
    return {**scores, **{name: _mean(*totals[name]) for name in names}}


def _mean(total: jax.Array, count: jax.Array) -> jax.Array:
    return total / jnp.maximum(count, 1)


def _known(model: Model, groups: Sequence[str]) -> list[str]:
    unknown = [name for name in groups if name not in model.groups]
    if unknown:
        raise ValueError(
            f"the model has no groups {', '.join(unknown)}; they are {trees.list_paths(list(model.groups))}. "
            "Model.explain says why an axis is none."
        )
    return list(groups)


def _is_mixture(model: Model, name: str, sums: "Sequence[_Sum]") -> bool:
    """Whether a group looks like experts: heads and hidden features are summed over, too."""
    batch = any("batch" in member.roles for member in model.groups[name].members)
    return bool(sums) and (batch or any(each.gated for each in sums))


@dataclasses.dataclass(frozen=True, eq=False)
class _Sum:
    """A node that sums over the experts.

    Attributes:
      name: the group.
      node: the node.
      axes: for each operand, the axis that the experts run along.
      index: for each operand, int[experts, k]: the positions of each expert on it.
      features: the axes of the result that are features; the others are tokens.
      gated: whether it multiplies with data that has no features: gates.
      loops: as of an `Input`; what is found in a loop is summed over its steps.
    """

    name: str
    node: Node
    axes: tuple[int, ...]
    index: tuple[np.ndarray, ...]
    features: tuple[int, ...]
    gated: bool
    loops: tuple[Any, ...] = ()

    def measure(self, operands: Sequence[Any]) -> tuple[jax.Array, jax.Array]:
        """The sum over the tokens of the norms of what each expert adds, and how many tokens it adds to."""
        parts = [jnp.asarray(x).take(i, axis) for x, i, axis in zip(operands, self.index, self.axes, strict=False)]

        def one(*parts: jax.Array) -> tuple[jax.Array, jax.Array]:
            added = jnp.square(self.add_up(parts).astype(jnp.float32))
            norms = jnp.sqrt(jnp.sum(added, self.features))
            return jnp.sum(norms), jnp.sum((norms > 0).astype(jnp.float32))

        # Each expert in front, its positions where the axis was.
        each = tuple(jnp.moveaxis(x, axis, 0) for x, axis in zip(parts, self.axes, strict=True))
        return lax.map(lambda parts: one(*parts), each)

    def add_up(self, parts: Sequence[jax.Array]) -> jax.Array:
        """What the node makes of the positions of one expert."""
        params = self.node.params
        if self.node.name == "reduce_sum":
            return jnp.sum(parts[0], tuple(params["axes"]))
        return lax.dot_general(
            parts[0],
            parts[1],
            params["dimension_numbers"],
            precision=params["precision"],
            preferred_element_type=params["preferred_element_type"],
        )


def _sums(model: Model, program: Program, name: str) -> list[_Sum]:
    """Where a program sums over the index of a group values that have features."""
    atom, made, data = dims.find(model.atoms[name]), _feature_atoms(model), model.layers.origins.is_data
    found = []
    for node in program.graph.everything():
        if node.name == "dot_general":
            (left, right), (left_batch, right_batch) = node.params["dimension_numbers"]
            pairs = list(zip(left, right, strict=True))
            first, second = (model.axes.of(operand) for operand in node.inputs)
            kept = [
                *(first[k] for k in left_batch),
                *(first[k] for k in free_axes(len(first), left, left_batch)),
                *(second[k] for k in free_axes(len(second), right, right_batch)),
            ]
        elif node.name == "reduce_sum":
            pairs = [(axis,) for axis in node.params["axes"]]
            first = second = model.axes.of(node.inputs[0])
            kept = [dim for k, dim in enumerate(first) if k not in node.params["axes"]]
        else:
            continue
        features = tuple(k for k, dim in enumerate(kept) if _has(dim, made))
        for axes in pairs:
            sides = (first, second)[: len(axes)]
            along = [side[k] for side, k in zip(sides, axes, strict=True)]
            if not features or not data(node.outputs[0]) or not all(_has(dim, {atom}) for dim in along):
                continue
            plain = [not any(_has(d, made) for d in side if d not in along) for side in sides]
            gated = any(plain) and all(map(data, node.inputs)) and len(sides) == 2
            found.append(_Sum(name, node, axes, tuple(dims.index_map(d, atom) for d in along), features, gated))
    return found


def _has(dim: Dim, atoms: set[Dim]) -> bool:
    return not atoms.isdisjoint(map(dims.find, dims.atoms_of(dim)))


def _feature_atoms(model: Model) -> set[Dim]:
    """The indices that products with parameters make."""
    made: set[Dim] = set()
    for leaf in range(len(model.leaves)):
        for axis, dim in enumerate(model.dims_of(leaf)):
            if "out" in model.roles[leaf, axis]:
                made.update(map(dims.find, dims.atoms_of(dim)))
    return made


class _Watch(Tap):
    """Runs a program, and measures what experts add wherever it sums over them."""

    def __init__(self, program: Program, points: Sequence[Any]):
        super().__init__(program, points, lambda x, weights: None)

    def step(self, node: Node, operands: list[Any], values: dict[int, Any]) -> list[Any]:
        if node not in self.at:
            return super().step(node, operands, values)
        for point in self.at[node]:
            self.note({point.name: point.measure(operands)})  # pyright: ignore[reportAttributeAccessIssue]
        return Evaluator.step(self, node, operands, values)
