"""What the matrices of a model are multiplied with: the data operand of a dot or a convolution as rows of features."""

import dataclasses
import math
from collections.abc import Hashable, Iterator, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jax import lax

from jaxprune.calibration.statistics import Statistic
from jaxprune.tracing.graph import Graph, Literal, Node, Operand, Program
from jaxprune.tracing.matrices import Matrix
from jaxprune.tracing.origins import Span
from jaxprune.tracing.rules.contractions import free_axes
from jaxprune.tracing.sites import CONVOLUTION, RAGGED_DOT, Site
from jaxprune.tracing.views import CASTS, Stacked

# The same numbers, in another type or order: two of them from one value hold the same rows.
_MOVES = CASTS | {"reshape", "transpose", "squeeze", "expand_dims", "broadcast_in_dim", "rev"}
# Patches of a convolution repeat each element once a tap: above this many of them they are made in parts.
_MAX_PATCHES = 2**25


@dataclasses.dataclass(frozen=True, eq=False)
class Input:
    """What one or several matrices are multiplied with.

    Attributes:
      name: the name of the first of these matrices.
      site: the first operation that reads it.
      loops: the loops around it, from the outermost, and whether each runs over a stacked axis of the parameter.
    """

    name: str
    site: Site
    loops: tuple[tuple[Node, bool], ...]

    @property
    def node(self) -> Node:
        """The operation that reads it."""
        return self.site.node


def find_inputs(matrices: Sequence[Matrix], program: Program) -> tuple[list[Input], dict[str, tuple[str, ...]]]:
    """The inputs of some matrices, each once, and the names of the inputs of each matrix."""
    around = dict(_loops_around(program.graph, ()))
    identity = _Identity(program)
    found: dict[Hashable, Input] = {}
    inputs_of: dict[str, tuple[str, ...]] = {}
    for matrix in matrices:
        names = []
        for k, site in enumerate(matrix.sites):
            stacking = {step.loop for step in site.view if isinstance(step, Stacked)}
            loops = tuple((loop, loop in stacking) for loop in around[site.node])
            name = f"{matrix.name}@{k}" if k else matrix.name
            found.setdefault((identity.of_input(site), loops), Input(name, site, loops))
            names.append(found[identity.of_input(site), loops].name)
        inputs_of[matrix.name] = tuple(names)
    return list(found.values()), inputs_of


def _loops_around(graph: Graph, loops: tuple[Node, ...]) -> Iterator[tuple[Node, tuple[Node, ...]]]:
    for node in graph.primitives():
        yield node, loops
        for subgraph in node.subgraphs:
            yield from _loops_around(subgraph, (*loops, node) if node.name in ("scan", "while") else loops)


class _Identity:
    """Tells which operands hold the same rows, though each layer may have cast them by itself."""

    def __init__(self, program: Program):
        self.makers = {node.outputs[0]: node for node in program.graph.everything() if len(node.outputs) == 1}

    def of(self, operand: Operand) -> Hashable:
        if isinstance(operand, Literal):
            return id(operand)
        maker = self.makers.get(operand)
        if maker is None or maker.name not in _MOVES:
            return operand
        return maker.name, str(sorted(maker.params.items())), tuple(map(self.of, maker.inputs))

    def of_input(self, site: Site) -> Hashable:
        node = site.node
        others = data_span(site), *(self.of(operand) for k, operand in enumerate(node.inputs) if k != site.operand)
        if site.kind == CONVOLUTION:
            keys = ("window_strides", "padding", "lhs_dilation", "rhs_dilation", "feature_group_count")
            numbers = node.params["dimension_numbers"]
            window = tuple(site_shape(node, 1)[k] for k in numbers.rhs_spec[2:])
            return others, CONVOLUTION, window, numbers.lhs_spec, str([node.params[key] for key in keys])
        if site.kind == RAGGED_DOT:
            return others, RAGGED_DOT
        contract, batch = _data_axes(site)
        return others, contract, batch


def site_shape(node: Node, operand: int) -> tuple[int, ...]:
    """The shape of an operand, from the equation of a node."""
    return tuple(node.equation.invars[operand].aval.shape)


def _data_axes(site: Site) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The axes of the data that a dot sums over, in the order of the parameter's, and its batch axes."""
    sums, batches = site.node.params["dimension_numbers"]
    order = sorted(range(len(sums[site.operand])), key=lambda k: sums[site.operand][k])
    other = sums[1 - site.operand]
    return tuple(other[k] for k in order), tuple(batches[1 - site.operand])


def data_span(site: Site) -> Span | None:
    """The stretch of the data that meets a parameter of a concatenation; None where all of the data does."""
    if site.span is None:
        return None
    numbers = site.node.params["dimension_numbers"]
    pairs = (
        [(numbers.rhs_spec[1], numbers.lhs_spec[1])]
        if site.kind == CONVOLUTION
        else [pair for sides in numbers for pair in zip(sides[site.operand], sides[1 - site.operand], strict=True)]
    )
    axis = dict(pairs).get(site.span.axis)
    return None if axis is None else site.span._replace(axis=axis)


def _met(x: Any, site: Site) -> jax.Array:
    """What a parameter is multiplied with, out of the data operand."""
    x, span = jnp.asarray(x), data_span(site)
    return x if span is None else lax.slice_in_dim(x, span.start, span.stop, axis=span.axis)


def measure(
    source: Input, operands: Sequence[Any], stat: Statistic, row_weights: jax.Array | None
) -> tuple[jax.Array, Any]:
    """The statistic of an input, and how many rows it had.

    Args:
      source: the input.
      operands: those of its node.
      stat: the statistic.
      row_weights: what each row counts for, over the leading axes of the data; None for 1.

    Returns:
      float32[*batch], and the value of the statistic.

    Raises:
      ValueError: the weights do not fit the rows.
    """
    site = source.site
    if site.kind == CONVOLUTION:
        return _measure_convolution(source, operands[0], stat, row_weights)
    if site.kind == RAGGED_DOT:
        return _measure_groups(source, operands, stat, row_weights)
    x = _met(operands[1 - site.operand], site)
    contract, batch = _data_axes(site)
    x = jnp.transpose(x, (*batch, *free_axes(x.ndim, contract, batch), *contract))
    rows = math.prod(row_shape(site))
    x = x.reshape(*x.shape[: len(batch)], rows, math.prod(x.shape[x.ndim - len(contract) :]))
    return _apply(stat, x, _row_weights(row_weights, source))


def rows_of(x: jax.Array, weights: jax.Array | None = None) -> jax.Array:
    """The rows themselves, each times the root of its weight: no sum, so that convolutions give them whole."""
    x = x.astype(jnp.float32)
    return x if weights is None else x * jnp.sqrt(weights)[..., None]


def _apply(stat: Statistic, x: jax.Array, weights: jax.Array | None) -> tuple[jax.Array, Any]:
    if weights is None:
        return jnp.full(x.shape[:-2], x.shape[-2], jnp.float32), stat(x, None)
    weights = jnp.broadcast_to(weights, x.shape[:-1])
    return jnp.sum(weights, -1), stat(x, weights)


def _measure_convolution(
    source: Input, x: jax.Array, stat: Statistic, row_weights: jax.Array | None
) -> tuple[jax.Array, Any]:
    params = source.node.params
    numbers, groups = params["dimension_numbers"], params["feature_group_count"]
    kernel = site_shape(source.node, 1)
    window = [kernel[k] for k in numbers.rhs_spec[2:]]
    spatial = "DHWXYZ"[: len(window)]
    x = jnp.transpose(_met(x, source.site), numbers.lhs_spec)
    features = x.shape[1] // groups

    def rows(part: jax.Array) -> jax.Array:
        patches = lax.conv_general_dilated_patches(
            part,
            window,
            params["window_strides"],
            params["padding"],
            lhs_dilation=params["lhs_dilation"],
            rhs_dilation=params["rhs_dilation"],
            dimension_numbers=("NC" + spatial, "OI" + spatial, "NC" + spatial),
            precision=lax.Precision.HIGHEST,
        )
        # Patches come as (features, *window); matrices have them as (*window, features), as kernels do.
        patches = patches.reshape(part.shape[0], groups, features, math.prod(window), -1)
        patches = patches.transpose(1, 0, 4, 3, 2)
        return patches.reshape(groups, -1, math.prod(window) * features)

    parts = -(-math.prod(row_shape(source.site)) * math.prod(window) * features * groups // _MAX_PATCHES)
    parts = next(n for n in range(min(max(parts, 1), x.shape[0]), x.shape[0] + 1) if x.shape[0] % n == 0)
    weights = _row_weights(row_weights, source)

    def one(part: jax.Array, weights: jax.Array | None) -> Any:
        found = _apply(stat, rows(part), weights)
        return found if groups > 1 else jax.tree.map(lambda value: value[0], found)

    if parts == 1 or stat is rows_of:
        return one(x, weights)
    split = x.reshape(parts, -1, *x.shape[1:])
    each = None if weights is None else weights.reshape(parts, -1)
    start = jax.tree.map(jnp.zeros_like, jax.eval_shape(one, split[0], None if each is None else each[0]))

    def add_part(total: Any, part: Any) -> tuple[Any, None]:
        return jax.tree.map(jnp.add, total, one(*part)), None

    return lax.scan(add_part, start, (split, each))[0]


def _measure_groups(
    source: Input, operands: Sequence[Any], stat: Statistic, row_weights: jax.Array | None
) -> tuple[jax.Array, Any]:
    free, contract = _ragged_axes(source.node)
    x, sizes, shape = jnp.asarray(operands[0]), operands[2], row_shape(source.site)
    x = jnp.transpose(x, (*free, *contract)).reshape(math.prod(shape), -1)
    weights = _row_weights(row_weights, source)
    group = jnp.searchsorted(jnp.cumsum(sizes), jnp.arange(shape[0], dtype=sizes.dtype), side="right")

    def of_group(k: jax.Array) -> Any:
        member = jnp.broadcast_to((group == k).astype(jnp.float32).reshape(-1, *[1] * (len(shape) - 1)), shape)
        mine = member.reshape(-1)
        return _apply(stat, x, mine if weights is None else mine * weights)

    return lax.map(of_group, jnp.arange(sizes.shape[0], dtype=group.dtype))


def row_shape(site: Site) -> tuple[int, ...]:
    """The axes of the data that are rows, before they are merged."""
    node = site.node
    if site.kind == CONVOLUTION:
        numbers, result = node.params["dimension_numbers"], node.equation.outvars[0].aval.shape
        return site_shape(node, 0)[numbers.lhs_spec[0]], *(result[k] for k in numbers.out_spec[2:])
    shape = site_shape(node, 1 - site.operand)
    free = _ragged_axes(node)[0] if site.kind == RAGGED_DOT else free_axes(len(shape), *_data_axes(site))
    return tuple(shape[k] for k in free)


def _ragged_axes(node: Node) -> tuple[list[int], tuple[int, ...]]:
    """The axes of the data that are rows, the one that is split between the groups first; and those summed over."""
    numbers = node.params["ragged_dot_dimension_numbers"]
    ((contract, _), _), (ragged,) = numbers.dot_dimension_numbers, numbers.lhs_ragged_dimensions
    return [ragged, *(k for k in free_axes(len(site_shape(node, 0)), contract) if k != ragged)], contract


def covered_axes(weights: tuple[int, ...], rows: tuple[int, ...]) -> int | None:
    """How many leading axes of the rows weights of a shape run along, some of them merged; None where they do not."""
    left = list(weights)
    used = 0
    for size in rows:
        merged = 1
        while left and merged < size:
            merged *= left.pop(0)
        while left and left[0] == 1:
            left.pop(0)
        if merged != size:
            break
        used += 1
        if not left:
            break
    return None if left or math.prod(rows[:used]) != math.prod(weights) else used


def _row_weights(weights: jax.Array | None, source: Input) -> jax.Array | None:
    """Weights over leading axes, spread over all rows: float32[rows]."""
    if weights is None:
        return None
    shape = row_shape(source.site)
    used = covered_axes(weights.shape, shape)
    if used is None:
        raise ValueError(
            f"weights of shape {weights.shape} do not fit the rows of {source.site.path!r} ({source.site.source}), "
            f"whose axes are {shape}: they must be its leading axes. Leave the parameter out with `where`, or "
            "calibrate without weights."
        )
    flat = weights.astype(jnp.float32).reshape(-1, 1)
    return jnp.broadcast_to(flat, (flat.shape[0], math.prod(shape[used:]))).reshape(-1)
