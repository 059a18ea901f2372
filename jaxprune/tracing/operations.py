"""What one operation costs: multiply-adds, other arithmetic, transcendental functions.

The convention is that of XLA's cost analysis of a program *before* optimisation
(`jax.jit(f).lower(*args).cost_analysis()`): what the program says, the same for every backend. The analysis of the
compiled program differs by what that backend's fusions compute twice (up to 30 % for a small transformer on a CPU).
Where a backend has no such operation and JAX spells it out, the count is that of the operation: a ragged dot multiplies
each row once (on a CPU, XLA counts every row with every group), and random bits are counted with their loop unrolled.
"""

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from jaxprune.tracing.axes import Axes
from jaxprune.tracing.dims import Dim
from jaxprune.tracing.graph import Literal, Node, Program
from jaxprune.tracing.rules.contractions import free_axes
from jaxprune.tracing.rules.elementwise import ELEMENTWISE
from jaxprune.tracing.rules.reductions import REDUCTIONS, WINDOWS

Shape = Sequence[int]

# They move elements, or leave them alone.
_FREE = frozenset(
    """approx_top_k broadcast_in_dim broadcast_to concatenate copy copy_p create_token debug_callback
    debug_print device_put dynamic_slice dynamic_update_slice empty expand_dims iota name optimization_barrier
    pad pvary random_clone random_seed random_unwrap random_wrap reshape reshard rev rng_bit_generator
    rng_uniform sharding_constraint slice split squeeze stack stop_gradient tile top_k transpose unstack""".split()
)
# Series and loops, whose length depends on the dtype or on the data.
_UNKNOWN = frozenset("igamma igamma_grad_a igammac polygamma random_gamma regularized_incomplete_beta zeta".split())
# (FLOPs, transcendentals) of an element: functions that the hardware is taken to have, then those that are spelled out.
_FUNCTIONS = dict.fromkeys(
    "atan atan2 cbrt cos erf exp expm1 log log1p pow rsqrt sin sqrt tan tanh".split(), (0, 1)
) | {
    "acos": (3, 2),
    "acosh": (7, 4),
    "asin": (5, 2),
    "asinh": (11, 3),
    "atanh": (6, 2),
    "bessel_i0e": (83, 1),
    "bessel_i1e": (83, 1),
    "conj": (4, 0),
    "cosh": (3, 2),
    "digamma": (73, 3),
    "erf_inv": (37, 2),
    "erfc": (62, 1),
    "exp2": (1, 1),
    "lgamma": (53, 4),
    "logistic": (3, 1),
    "nextafter": (24, 0),
    "sinh": (10, 3),
}
_COMBINATIONS = dict.fromkeys("cumsum cumprod cummax cummin".split(), (1, 0)) | {"cumlogsumexp": (8, 2)}
# Threefry: twenty rounds of an addition, a rotation and an exclusive or, and the keys in between.
_RANDOM_WORD = 123


@dataclasses.dataclass(frozen=True)
class Product:
    """A count that is a product of the sizes of axes, times something that no plan changes.

    Example:
      >>> from jaxprune.tracing import dims
      >>> Product(2, (dims.atom(3), dims.atom(5))).at(lambda dim: dim.size)
      30
    """

    factor: int
    dims: tuple[Dim, ...]

    def at(self, size: Callable[[Dim], int]) -> int:
        """The count for given sizes of the axes."""
        return self.factor * math.prod(map(size, self.dims))


def multiply_adds(node: Node, axes: Axes) -> Product | None:
    """The multiply-adds of a dot or a convolution, from the axes it runs over; None for any other operation."""
    if node.name == "dot_general":
        (total, _), _ = node.params["dimension_numbers"]
        left = axes.of(node.inputs[0])
        return Product(1, (*axes.of(node.outputs[0]), *(left[k] for k in total)))
    if node.name.startswith("ragged_dot"):
        numbers = node.params["ragged_dot_dimension_numbers"]
        (_, total), (_, batch) = numbers.dot_dimension_numbers
        left, right = map(axes.of, node.inputs[:2])
        free = free_axes(len(right), total, batch, tuple(numbers.rhs_group_dimensions))
        return Product(1, (*left, *(right[k] for k in free)))
    if node.name == "conv_general_dilated":
        numbers = node.params["dimension_numbers"]
        kernel, result = axes.of(node.inputs[1]), axes.of(node.outputs[0])
        positions = math.prod(int(valid.sum()) for valid in valid_positions(node, axes.program))
        return Product(
            positions, (result[numbers.out_spec[0]], kernel[numbers.rhs_spec[0]], kernel[numbers.rhs_spec[1]])
        )
    return None


def valid_positions(node: Node, program: Program) -> list[np.ndarray]:
    """For each spatial axis of a convolution, how many outputs read an element, and not padding, with each kernel tap.

    Returns:
      int[kernel size] for each spatial axis.
    """
    params, numbers = node.params, node.params["dimension_numbers"]
    data, kernel = program.shape(node.inputs[0]), program.shape(node.inputs[1])
    result = program.shape(node.outputs[0])
    counts = []
    for axis, (a, b, c) in enumerate(
        zip(numbers.lhs_spec[2:], numbers.rhs_spec[2:], numbers.out_spec[2:], strict=True)
    ):
        first = np.arange(result[c]) * params["window_strides"][axis] - params["padding"][axis][0]
        spread = params["lhs_dilation"][axis]
        taps = [first + tap * params["rhs_dilation"][axis] for tap in range(kernel[b])]
        counts.append(
            np.array([np.sum((at >= 0) & (at <= (data[a] - 1) * spread) & (at % spread == 0)) for at in taps], np.int64)
        )
    return counts


def masked_multiply_adds(node: Node, program: Program, dense: int, kept: np.ndarray, stack: int) -> int:
    """The multiply-adds of an operation with the weights that a mask keeps.

    Args:
      node: a dot or a convolution.
      program: its program.
      dense: its multiply-adds with all weights.
      kept: the mask of the operand that is a parameter; those of `stack` operands, one for each turn of a loop.
      stack: how many.

    Returns:
      The sum over the stack.
    """
    if not kept.size:
        return 0
    if node.name != "conv_general_dilated":  # each weight is used as often as any other
        return dense * stack * int(kept.sum()) // kept.size
    # At the edges a tap of the kernel falls on padding more often than its neighbours do.
    numbers = node.params["dimension_numbers"]
    rank = len(numbers.rhs_spec)
    uses = np.ones((1,) * rank, np.int64)
    for axis, valid in zip(numbers.rhs_spec[2:], valid_positions(node, program), strict=True):
        uses = uses * valid.reshape([-1 if k == axis else 1 for k in range(rank)])
    batch = program.shape(node.outputs[0])[numbers.out_spec[0]]
    return batch * int(np.sum(np.where(kept, uses, 0)))


def other_work(node: Node, inputs: Sequence[Shape], outputs: Sequence[Shape]) -> tuple[int, int] | None:
    """The FLOPs and the transcendental functions of an operation, apart from multiply-adds.

    Args:
      node: the operation.
      inputs: the shapes of what it reads.
      outputs: the shapes of what it makes.

    Returns:
      The pair; None where the operation is not known.
    """
    name, size = node.name, math.prod(outputs[0]) if outputs else 0
    if name in _FREE or name in ("scan", "while", "cond", "dot_general", "conv_general_dilated"):
        return 0, 0
    if name.startswith("ragged_dot"):
        return 0, 0
    if name in _FUNCTIONS:
        flops, functions = _FUNCTIONS[name]
        return flops * size, functions * size
    if name in _COMBINATIONS:  # to XLA, a window as long as the axis
        flops, functions = _COMBINATIONS[name]
        steps = size * max(outputs[0][node.params["axis"]] - 1, 0)
        return flops * steps, functions * steps
    flops = _flops(node, inputs, outputs, size)
    return None if flops is None else (flops, 0)


def _flops(node: Node, inputs: Sequence[Shape], outputs: Sequence[Shape], size: int) -> int | None:
    """The operations of which only FLOPs are counted; `size` is the number of elements of the first output."""
    name, params = node.name, node.params
    if name in REDUCTIONS:
        reduced = math.prod(inputs[0]) - size
        return reduced * _each_reduction(node)
    if name in WINDOWS:
        return size * (math.prod(params["window_dimensions"]) - 1) * _body_length(params)
    if name == "select_and_scatter_add":
        return math.prod(inputs[0]) * math.prod(params["window_dimensions"])
    if name == "integer_pow":  # square and multiply; a negative power divides as well
        power = abs(params["y"])
        return size * (max(power.bit_length() - 1, 0) + max(power.bit_count() - 1, 0) + (params["y"] < 0))
    if name == "select_n":  # more than two cases are told apart by comparisons
        cases = len(inputs) - 1
        return size * (cases - 1) * (1 if cases == 2 else 2)
    if name == "convert_element_type":
        return size if _dtype(node.inputs[0], node) != node.equation.outvars[0].aval.dtype else 0
    if name == "gather":
        return _gather_flops(node, inputs[1], size)
    if name.startswith("scatter"):
        return math.prod(inputs[2]) * (name != "scatter")
    if name == "sort":
        elements = math.prod(inputs[0])
        return elements * max(elements - 1, 0).bit_length()
    if name == "fft":
        return 8 * math.prod(inputs[0]) * math.prod(length.bit_length() - 1 for length in params["fft_lengths"])
    if name in ("random_bits", "random_split", "random_fold_in"):
        return _RANDOM_WORD * size
    if name == "cholesky":
        return size * inputs[0][-1] // 3
    if name == "triangular_solve":
        return math.prod(inputs[1]) * inputs[0][-1]
    return size if name in ELEMENTWISE - _UNKNOWN else None


def _dtype(operand: Any, node: Node) -> Any:
    return operand.aval.dtype if isinstance(operand, Literal) else node.equation.invars[0].aval.dtype


def _each_reduction(node: Node) -> int:
    if node.name in ("argmax", "argmin"):  # values and indices are compared; of floats, whether they are NaN as well
        return 9 if np.issubdtype(node.equation.invars[0].aval.dtype, np.inexact) else 7
    return _body_length(node.params)


def _body_length(params: dict[str, Any]) -> int:
    """How many operations the function of a generic reduction has; the named ones have one."""
    body = params.get("jaxpr")
    return 1 if body is None else len(body.eqns)


def _gather_flops(node: Node, indices: Shape, size: int) -> int:
    """A gather that fills: the indices are compared with the bounds, and the result is selected."""
    if "FILL" not in str(node.params["mode"]):
        return 0
    rows, depth = math.prod(indices[:-1]), indices[-1]
    return size + rows * (3 * depth + max(depth - 1, 0))
