"""What matrices are multiplied with: the data operands of the operations, each once, whatever reads it."""

import dataclasses
from collections.abc import Hashable, Iterator, Sequence

from jaxprune.tracing.graph import Graph, Literal, Node, Operand, Program
from jaxprune.tracing.matrices import Matrix
from jaxprune.tracing.origins import Span
from jaxprune.tracing.rules.contractions import free_axes
from jaxprune.tracing.sites import CONVOLUTION, RAGGED_DOT, Site
from jaxprune.tracing.views import CASTS, Stacked

# The same numbers, in another type or order: two of them from one value hold the same rows.
_MOVES = CASTS | {"reshape", "transpose", "squeeze", "expand_dims", "broadcast_in_dim", "rev"}


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
        contract, batch = data_axes(site)
        return others, contract, batch


def site_shape(node: Node, operand: int) -> tuple[int, ...]:
    """The shape of an operand, from the equation of a node."""
    return tuple(node.equation.invars[operand].aval.shape)


def data_axes(site: Site) -> tuple[tuple[int, ...], tuple[int, ...]]:
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


def row_shape(site: Site) -> tuple[int, ...]:
    """The axes of the data that are rows, before they are merged."""
    node = site.node
    if site.kind == CONVOLUTION:
        numbers, result = node.params["dimension_numbers"], node.equation.outvars[0].aval.shape
        return site_shape(node, 0)[numbers.lhs_spec[0]], *(result[k] for k in numbers.out_spec[2:])
    shape = site_shape(node, 1 - site.operand)
    free = ragged_axes(node)[0] if site.kind == RAGGED_DOT else free_axes(len(shape), *data_axes(site))
    return tuple(shape[k] for k in free)


def ragged_axes(node: Node) -> tuple[list[int], tuple[int, ...]]:
    """The axes of the data that are rows, the one that is split between the groups first; and those summed over."""
    numbers = node.params["ragged_dot_dimension_numbers"]
    ((contract, _), _), (ragged,) = numbers.dot_dimension_numbers, numbers.lhs_ragged_dimensions
    return [ragged, *(k for k in free_axes(len(site_shape(node, 0)), contract) if k != ragged)], contract
