"""What a removed slice holds in the masked model, and hence how exact its removal is.

A group's indices can be removed exactly where every sum over them adds only zeros. For every value and every atom that
runs along one of its axes this module finds what the removed slices hold: zero, something that is not finite, or
anything else. The walk is made twice: once with all members of a group zeroed (the masked model), once with its
consumers only. A sum over anything but zeros makes the group approximate, and says where.
"""

import dataclasses
import math
from collections.abc import Iterable, Mapping, Sequence

from jaxprune.tracing import dims
from jaxprune.tracing.axes import Axes, Reason
from jaxprune.tracing.dims import Dim
from jaxprune.tracing.graph import Graph, Literal, Node, Operand
from jaxprune.tracing.rules.contractions import free_axes
from jaxprune.tracing.rules.elementwise import ELEMENTWISE
from jaxprune.tracing.rules.reductions import REDUCTIONS, reduced_axes
from jaxprune.tracing.views import CASTS

CONSUMERS, MASKED, APPROXIMATE = "consumers", "masked", "approximate"

ZERO, ANYTHING, NOT_FINITE = 0, 1, 2

# f(0) = 0, and f is finite at 0.
_KEEP_ZERO = frozenset(
    """neg abs sign floor ceil round sqrt cbrt tanh sin tan asin atan sinh asinh atanh erf erf_inv expm1 log1p square
    real imag conj mul_p bessel_i1e""".split()
)
_SINGULAR_AT_ZERO = frozenset("acosh digamma lgamma log rsqrt".split())
# Elements of all operands, or of the first one, are moved; zeros among them stay zeros.
_MOVE_ALL = frozenset("pad stack sort select_and_gather_add".split())
_MOVE_FIRST = frozenset(
    """broadcast_in_dim broadcast_to cummax cummin cumprod cumsum dynamic_slice expand_dims fft gather reduce_window_max
    reduce_window_min reduce_window_sum reshape rev select_and_scatter_add slice split squeeze tile unstack""".split()
)
_SUM_LIKE = frozenset("add sub add_any max min or xor".split())


@dataclasses.dataclass(frozen=True, eq=False)
class Held:
    """What the removed slices of one value hold, for each axis and each atom on it."""

    axes: tuple[Mapping[Dim, int], ...]

    def get(self, axis: int, atom: Dim) -> int:
        """The state of one atom on one axis."""
        return self.axes[axis].get(atom, ANYTHING)


class RemovedSlices:
    """One walk over a solved program.

    Args:
      axes: the solved axes.
      zeroed: for each parameter and axis, whether the removed slices are set to zero there.

    Attributes:
      faults: for each atom, the first reason why a sum over it is not exact.
      summed: the atoms that something is summed over. An index can reach an output no other way, as the axes of outputs
        are frozen: the others have no part in the result.
    """

    def __init__(self, axes: Axes, zeroed: Mapping[tuple[int, int], bool]):
        self.solved = axes
        self.held: dict[int, Held] = {}
        self.faults: dict[Dim, Reason] = {}
        self.summed: set[Dim] = set()
        self._atoms: dict[Dim, list[Dim]] = {}
        for leaf, value in enumerate(axes.program.graph.inputs):
            self.held[value] = Held(
                tuple(
                    {atom: ZERO if zeroed.get((leaf, k), False) else ANYTHING for atom in self.atoms(dim)}
                    for k, dim in enumerate(axes.of(value))
                )
            )
        self.walk(axes.program.graph)

    def atoms(self, dim: Dim) -> list[Dim]:
        """The atoms of an axis from which something can be removed."""
        dim = dims.find(dim)
        if dim not in self._atoms:
            self._atoms[dim] = list(dict.fromkeys(atom for atom in dims.atoms_of(dim) if not atom.frozen))
        return self._atoms[dim]

    def of(self, operand: Operand) -> Held:
        """What is known of a value; of constants nothing."""
        if isinstance(operand, Literal):
            return Held(())
        return self.held.get(operand) or Held(tuple({} for _ in self.solved.of(operand)))

    def fault(self, node: Node, operand: Operand, axis: int, states: Mapping[Dim, int], text: str) -> None:
        """Notes the atoms of an axis whose removed slices are not zero where they are summed."""
        for atom in self.atoms(self.solved.of(operand)[axis]):
            self.summed.add(atom)
            state = states.get(atom, ANYTHING)
            if state != ZERO:
                words = "a zeroed slice is divided by zero, then summed" if state == NOT_FINITE else text
                self.faults.setdefault(atom, Reason(words, node))

    def walk(self, graph: Graph) -> None:
        """Follows every node."""
        for node in graph.primitives():
            if node.subgraphs:
                _BODIES[node.name](self, node)
                continue
            if not any(self.atoms(dim) for value in (*node.inputs, *node.outputs) for dim in self.solved.of(value)):
                continue
            for output, held in zip(node.outputs, self._follow(node), strict=True):
                self.held[output] = held

    def _follow(self, node: Node) -> list[Held]:
        name = node.name
        if name in ELEMENTWISE or name in CASTS:
            return [self._elementwise(node, output) for output in node.outputs]
        if name in REDUCTIONS:
            return self._reduce(node)
        if name == "dot_general":
            return [self._dot(node)]
        if name == "ragged_dot_general" or name == "ragged_dot":
            return [self._ragged(node)]
        if name == "conv_general_dilated":
            return [self._convolution(node)]
        if name == "transpose":
            held = self.of(node.inputs[0])
            return [Held(tuple(held.axes[k] for k in node.params["permutation"]))]
        if name.startswith("scatter"):
            return [self._carried(node, node.outputs[0], (node.inputs[0], node.inputs[2]))]
        if name in ("concatenate", "dynamic_update_slice"):
            return [self._carried(node, node.outputs[0], node.inputs[: 2 if name[0] == "d" else None], pieces=True)]
        if name in _MOVE_ALL:
            return [self._carried(node, output, node.inputs) for output in node.outputs]
        if name in _MOVE_FIRST:
            return [self._carried(node, output, node.inputs[:1]) for output in node.outputs]
        return [Held(tuple({} for _ in self.solved.of(output))) for output in node.outputs]

    # One operation on each element.

    def _elementwise(self, node: Node, output: int) -> Held:
        """At a removed index, each operand holds what its own slice holds, or its constant, or anything."""
        result = []
        for k, dim in enumerate(self.solved.of(output)):
            states = {}
            for atom in self.atoms(dim):
                operands = [self._state(operand, k, atom, len(self.solved.of(output))) for operand in node.inputs]
                states[atom] = _combine(node, operands)
            result.append(states)
        return Held(tuple(result))

    def _state(self, operand: Operand, axis: int, atom: Dim, rank: int) -> int:
        if isinstance(operand, Literal):
            return ZERO if not isinstance(operand.value, str) and _is_zero(operand.value) else ANYTHING
        own = self.solved.of(operand)
        if not own and operand in self.solved.program.constants:
            return ZERO if _is_zero(self.solved.program.constants[operand]) else ANYTHING
        if len(own) == rank:
            return self.of(operand).get(axis, atom)
        return ANYTHING

    # Sums.

    def _reduce(self, node: Node) -> list[Held]:
        gone, count = reduced_axes(node), len(node.outputs)
        for operand in node.inputs[:count]:
            held = self.of(operand)
            for axis in gone:
                if node.name == "reduce_sum":
                    self.fault(node, operand, axis, held.axes[axis], "what is summed over this axis is not zero")
                else:
                    self.fault(node, operand, axis, {}, f"{node.name} over this axis sees zeros in the masked model")
        # Other reductions of zeros are zero; a function of the user's, or an index, may be anything.
        known = node.name.startswith("reduce_")
        rest = [[s for k, s in enumerate(self.of(operand).axes) if k not in gone] for operand in node.inputs[:count]]
        return [Held(tuple(states if known else {} for states in axes)) for axes in rest]

    def _contract(self, node: Node, pairs: Iterable[tuple[int, int]]) -> None:
        left, right = node.inputs[:2]
        for a, b in pairs:
            one, two = self.of(left).axes[a], self.of(right).axes[b]
            states = {
                atom: _product([one.get(atom, ANYTHING), two.get(atom, ANYTHING)])
                for atom in self.atoms(self.solved.of(left)[a])
            }
            self.fault(node, left, a, states, "neither factor of a sum over this axis is zero")

    def _dot(self, node: Node) -> Held:
        (left_sum, right_sum), (left_batch, right_batch) = node.params["dimension_numbers"]
        self._contract(node, zip(left_sum, right_sum, strict=True))
        left, right = (list(self.of(operand).axes) for operand in node.inputs)
        batch = [
            {
                atom: _product([left[a].get(atom, ANYTHING), right[b].get(atom, ANYTHING)])
                for atom in {**left[a], **right[b]}
            }
            for a, b in zip(left_batch, right_batch, strict=True)
        ]
        rest = [left[k] for k in free_axes(len(left), left_sum, left_batch)]
        return Held((*batch, *rest, *(right[k] for k in free_axes(len(right), right_sum, right_batch))))

    def _ragged(self, node: Node) -> Held:
        numbers = node.params["ragged_dot_dimension_numbers"]
        (left_sum, right_sum), (left_batch, right_batch) = numbers.dot_dimension_numbers
        groups = tuple(numbers.rhs_group_dimensions)
        self._contract(node, zip(left_sum, right_sum, strict=True))
        left, right = (list(self.of(operand).axes) for operand in node.inputs[:2])
        rest = [left[k] for k in free_axes(len(left), left_sum, left_batch)]
        free = free_axes(len(right), right_sum, right_batch, groups)
        return Held((*(left[k] for k in left_batch), *rest, *(right[k] for k in free)))

    def _convolution(self, node: Node) -> Held:
        numbers, groups = node.params["dimension_numbers"], node.params["feature_group_count"]
        left, right = self.of(node.inputs[0]), self.of(node.inputs[1])
        channels, inputs = left.axes[numbers.lhs_spec[1]], right.axes[numbers.rhs_spec[1]]
        outputs = right.axes[numbers.rhs_spec[0]]
        inner = self.atoms(self.solved.of(node.inputs[1])[numbers.rhs_spec[1]])
        states = {atom: _product([channels.get(atom, ANYTHING), inputs.get(atom, ANYTHING)]) for atom in inner}
        self.fault(node, node.inputs[1], numbers.rhs_spec[1], states, "neither factor of a sum over this axis is zero")
        result: list[Mapping[Dim, int]] = [{} for _ in numbers.out_spec]
        result[numbers.out_spec[0]] = left.axes[numbers.lhs_spec[0]]
        # The groups run along with the channels of the data; an index within a group does not, even where it is tied.
        along = set(channels) - set(inner) if groups > 1 else set()
        result[numbers.out_spec[1]] = {
            atom: _product([state, channels.get(atom, ANYTHING)]) if atom in along else state
            for atom, state in outputs.items()
        }
        return Held(tuple(result))

    # Shapes.

    def _carried(self, node: Node, output: int, operands: Sequence[Operand], pieces: bool = False) -> Held:
        """Elements are moved, not changed: an atom on one axis before and one after takes its state along.

        `pieces` says that an operand without the atom is another piece of the axis, and has no say.
        """
        result: list[dict[Dim, int]] = [{} for _ in self.solved.of(output)]
        wanted = [(k, atom) for k, dim in enumerate(self.solved.of(output)) for atom in self.atoms(dim)]
        for atom in dict.fromkeys(atom for _, atom in wanted):
            places = [k for k, other in wanted if other is atom]
            states: list[list[int]] = []
            for operand in operands:
                if isinstance(operand, Literal):
                    states.append([self._state(operand, 0, atom, -1)] * len(places))
                    continue
                own = self.solved.of(operand)
                before = [k for k, dim in enumerate(own) if atom in self.atoms(dim)]
                if pieces and not before:
                    continue
                found = [self.of(operand).get(k, atom) for k in before]
                if len(found) != len(places):
                    found = [max(found, default=self._constant(operand))] * len(places)
                states.append(found)
            for index, k in enumerate(places):
                result[k][atom] = max((each[index] for each in states), default=ANYTHING)
        return Held(tuple(result))

    def _constant(self, operand: int) -> int:
        constant = self.solved.program.constants.get(operand)
        return ZERO if constant is not None and _is_zero(constant) else ANYTHING

    # Loops and branches.

    def _scan(self, node: Node) -> None:
        (body,), params = node.subgraphs, node.params
        consts, carry = params["num_consts"], params["num_carry"]
        start = [self.of(operand) for operand in node.inputs]
        for k, (held, inner) in enumerate(zip(start, body.inputs, strict=True)):
            self.held[inner] = (
                Held(held.axes[1:]) if k >= consts + carry else self._literal(held, inner, node.inputs[k])
            )
        self._loop(body, body.inputs[consts : consts + carry], body.outputs[:carry])
        for k, output in enumerate(node.outputs):
            inner = self.of(body.outputs[k]) if k >= carry else self.of(body.inputs[consts + k])
            self.held[output] = Held(({}, *inner.axes)) if k >= carry else inner

    def _while(self, node: Node) -> None:
        test, body = node.subgraphs
        first, second = node.params["cond_nconsts"], node.params["body_nconsts"]
        start = [self.of(operand) for operand in node.inputs]
        for graph, consts in ((body, start[first : first + second]), (test, start[:first])):
            for inner, held in zip(graph.inputs, [*consts, *start[first + second :]], strict=True):
                self.held[inner] = held
        self._loop(body, body.inputs[second:], body.outputs)
        for outer, inner in zip(test.inputs[first:], body.inputs[second:], strict=True):
            self.held[outer] = self.of(inner)
        self.walk(test)
        for output, inner in zip(node.outputs, body.inputs[second:], strict=True):
            self.held[output] = self.of(inner)

    def _loop(self, body: Graph, carried: Sequence[int], after: Sequence[Operand]) -> None:
        """Walks a body until what it carries is the same before and after: states only ever get worse."""
        while True:
            faults = dict(self.faults)
            self.walk(body)
            joined = [_join(self.of(a), self.of(b)) for a, b in zip(carried, after, strict=True)]
            if all(new.axes == self.of(old).axes for new, old in zip(joined, carried, strict=True)):
                return
            self.faults = faults
            for value, held in zip(carried, joined, strict=True):
                self.held[value] = held

    def _literal(self, held: Held, inner: int, operand: Operand) -> Held:
        return held if len(held.axes) == len(self.solved.of(inner)) else Held(tuple({} for _ in self.solved.of(inner)))

    def _cond(self, node: Node) -> None:
        for branch in node.subgraphs:
            for operand, inner in zip(node.inputs[1:], branch.inputs, strict=True):
                self.held[inner] = self._literal(self.of(operand), inner, operand)
            self.walk(branch)
        for k, output in enumerate(node.outputs):
            held = self.of(node.subgraphs[0].outputs[k])
            for branch in node.subgraphs[1:]:
                held = _join(held, self.of(branch.outputs[k]))
            self.held[output] = held


_BODIES = {"scan": RemovedSlices._scan, "while": RemovedSlices._while, "cond": RemovedSlices._cond}


def _join(a: Held, b: Held) -> Held:
    pairs = zip(a.axes, b.axes, strict=True)
    return Held(
        tuple({atom: max(x.get(atom, ANYTHING), y.get(atom, ANYTHING)) for atom in {**x, **y}} for x, y in pairs)
    )


def _product(states: Sequence[int]) -> int:
    if NOT_FINITE in states:
        return NOT_FINITE
    return ZERO if ZERO in states else ANYTHING


def _combine(node: Node, states: Sequence[int]) -> int:
    """The state of f(x, y, ...) from the states of its operands."""
    name = node.name
    if name in ("mul", "and"):
        return _product(states)
    if name == "div":
        if NOT_FINITE in states or states[1] == ZERO:
            return NOT_FINITE
        return states[0]
    if name == "select_n":
        return max(states[1:])
    if name == "clamp":
        return max(states)
    if name == "integer_pow":
        return states[0] if node.params["y"] > 0 else (NOT_FINITE if states[0] != ANYTHING else ANYTHING)
    if NOT_FINITE in states:
        return NOT_FINITE
    if name == "pow":
        exponent = node.inputs[1]
        if states[0] == ZERO and isinstance(exponent, Literal) and (_scalar(exponent.value) or 0) > 0:
            return ZERO
        return NOT_FINITE if states[0] == ZERO else ANYTHING
    if name in _SINGULAR_AT_ZERO:
        return NOT_FINITE if states[0] == ZERO else ANYTHING
    if name in _KEEP_ZERO or name in CASTS:
        return states[0]
    return max(states) if name in _SUM_LIKE else ANYTHING


def _is_zero(value: object) -> bool:
    return _scalar(value) == 0


def _scalar(value: object) -> float | None:
    """The number that a value of one element is."""
    try:
        return float(value) if math.prod(getattr(value, "shape", ())) == 1 else None  # pyright: ignore[reportArgumentType]
    except (TypeError, ValueError):
        return None
