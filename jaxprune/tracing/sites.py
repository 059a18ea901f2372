"""Where parameters are consumed: the operations that read one, and what each of its axes is there."""

import dataclasses
from collections import defaultdict
from collections.abc import Iterator, Sequence

from jaxprune.tracing.graph import Graph, Node, Program
from jaxprune.tracing.origins import NONE, LeafAxes, Origin, Origins, Part, Span
from jaxprune.tracing.rules.contractions import free_axes
from jaxprune.tracing.views import Stacked, View

DOT, CONVOLUTION, GATHER, RAGGED_DOT = "dot", "convolution", "gather", "ragged_dot"
_KINDS = {
    "dot_general": DOT,
    "conv_general_dilated": CONVOLUTION,
    "gather": GATHER,
    "ragged_dot_general": RAGGED_DOT,
    "ragged_dot": RAGGED_DOT,
}


@dataclasses.dataclass(frozen=True, eq=False)
class Site:
    """One operation that consumes one parameter.

    Attributes:
      path: the parameter.
      leaf: its position among the parameters.
      kind: `"dot"`, `"convolution"`, `"gather"` (an embedding) or `"ragged_dot"`.
      node: the operation.
      operand: which operand of it the parameter is.
      view: the steps from the parameter to the operand.
      contract: the axes of the *parameter* that are summed over, in the operation's order.
      output: its axes that become axes of the result.
      batch: its axes that run along with an axis of the data; for a gather, the axes that are indexed.
      stack: its axes that a loop runs over.
      contract_operand: the axes of the *operand* that are summed over.
      repeats: how often the operation runs in one call, by the lengths of the loops around it (a `while` counts once).
      span: the stretch of the operand that the parameter is, where the operand is a concatenation; None for all of it.

    Example:
      >>> import jax.numpy as jnp
      >>> import jaxprune as jp
      >>> params = {"a": jnp.ones((2, 3)), "b": jnp.ones((3, 2))}
      >>> model = jp.trace(lambda p, x: x @ p["a"] @ p["b"], params, jnp.ones(2))
      >>> [(site.path, site.kind, site.contract, site.output) for site in model.sites]
      [('a', 'dot', (0,), (1,)), ('b', 'dot', (0,), (1,))]
    """

    path: str
    leaf: int
    kind: str
    node: Node
    operand: int
    view: View
    contract: tuple[int, ...]
    output: tuple[int, ...]
    batch: tuple[int, ...]
    stack: tuple[int, ...]
    contract_operand: tuple[int, ...]
    repeats: int
    span: Span | None = None

    @property
    def source(self) -> str:
        """The user's line."""
        return self.node.source

    def __str__(self) -> str:
        parts = [
            f"{name} {list(axes)}" for name in ("contract", "output", "batch", "stack") if (axes := getattr(self, name))
        ]
        return f"{self.path}: {self.kind} at {self.source or 'an unknown line'}; axes: {', '.join(parts)}"


@dataclasses.dataclass(frozen=True)
class Consumption:
    """The axes of one operand of a consuming node, in the operand's own numbering."""

    node: Node
    operand: int
    contract: tuple[int, ...]
    output: tuple[int, ...]
    batch: tuple[int, ...]


def consumptions(node: Node, program: Program) -> list[Consumption]:
    """What a dot, a convolution or a gather does with the axes of each operand that can be a parameter."""
    params = node.params
    if node.name == "dot_general":
        (left_sum, right_sum), (left_batch, right_batch) = params["dimension_numbers"]
        sides = ((0, left_sum, left_batch), (1, right_sum, right_batch))
        return [
            Consumption(
                node, k, tuple(total), tuple(free_axes(len(program.shape(node.inputs[k])), total, batch)), tuple(batch)
            )
            for k, total, batch in sides
        ]
    if node.name == "conv_general_dilated":
        output, inputs, *window = params["dimension_numbers"].rhs_spec
        return [Consumption(node, 1, (*window, inputs), (output,), ())]
    if node.name.startswith("ragged_dot"):
        numbers = params["ragged_dot_dimension_numbers"]
        (_, total), (_, batch) = numbers.dot_dimension_numbers
        groups = tuple(numbers.rhs_group_dimensions)
        free = free_axes(len(program.shape(node.inputs[1])), total, batch, groups)
        return [Consumption(node, 1, tuple(total), tuple(free), (*batch, *groups))]
    if node.name == "gather":
        numbers = params["dimension_numbers"]
        indexed = (*numbers.collapsed_slice_dims, *numbers.operand_batching_dims)
        return [Consumption(node, 0, (), tuple(free_axes(len(program.shape(node.inputs[0])), indexed)), indexed)]
    return []


class Roles(defaultdict[tuple[int, int], set[str]]):
    """For each (parameter, axis) what the program does with it: `in`, `out`, `batch`, `index`, `window`."""

    def __init__(self):
        super().__init__(set)

    def add(self, pairs: LeafAxes, role: str) -> None:
        """Gives a role to axes."""
        for pair in pairs:
            self[pair].add(role)


def find_sites(program: Program, origins: Origins, paths: Sequence[str]) -> tuple[list[Site], Roles]:
    """The sites of a program in its order, one for each parameter of a concatenation, and the roles of their axes."""
    sites, roles = [], Roles()
    for node, repeats in _with_repeats(program.graph, 1):
        for each in consumptions(node, program):
            origin = origins.of(node.inputs[each.operand])
            if origin is None or not _meets_data(node, each, origins):
                continue
            _note_roles(roles, each, origin)
            sites.extend(_site(each, origin, part, paths, repeats) for part in origin.parts)
    return sites, roles


def _meets_data(node: Node, each: Consumption, origins: Origins) -> bool:
    others = [operand for k, operand in enumerate(node.inputs) if k != each.operand]
    return any(map(origins.is_data, others)) or (node.name == "gather")


def _note_roles(roles: Roles, each: Consumption, origin: Origin) -> None:
    window = each.contract[:-1] if each.node.name == "conv_general_dilated" else ()
    batch = "index" if each.node.name == "gather" else "batch"
    for k in each.contract:
        roles.add(origin.axes[k], "window" if k in window else "in")
    for k in each.output:
        roles.add(origin.axes[k], "out")
    for k in each.batch:
        roles.add(origin.axes[k], batch)


def _site(each: Consumption, origin: Origin, part: Part, paths: Sequence[str], repeats: int) -> Site:
    leaf = part.leaf

    def own(axes: Sequence[int]) -> tuple[int, ...]:
        found = [sorted(axis for owner, axis in origin.axes[k] if owner == leaf) for k in axes]
        return tuple(dict.fromkeys(axis for group in found for axis in group))

    stacked = sum(isinstance(step, Stacked) for step in part.view)
    seen = {axis for pairs in (*origin.axes, NONE) for owner, axis in pairs if owner == leaf}
    stack = tuple(range(stacked)) if stacked and not seen & set(range(stacked)) else ()
    return Site(
        path=paths[leaf],
        leaf=leaf,
        kind=_KINDS[each.node.name],
        node=each.node,
        operand=each.operand,
        view=part.view,
        contract=own(each.contract),
        output=own(each.output),
        batch=own(each.batch),
        stack=stack,
        contract_operand=each.contract,
        repeats=repeats,
        span=part.span,
    )


def _with_repeats(graph: Graph, repeats: int) -> Iterator[tuple[Node, int]]:
    for node in graph.primitives():
        yield node, repeats
        times = repeats * node.params["length"] if node.name == "scan" else repeats
        for subgraph in node.subgraphs:
            yield from _with_repeats(subgraph, times)
