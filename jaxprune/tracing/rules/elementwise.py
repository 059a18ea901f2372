"""Primitives that work on each element by itself: all operands have the same axes."""

from jaxprune.tracing import dims
from jaxprune.tracing.axes import Axes
from jaxprune.tracing.graph import Node
from jaxprune.tracing.rules._rule import Rule

ELEMENTWISE = frozenset(
    """abs acos acosh add add_any and asin asinh atan atan2 atanh bessel_i0e bessel_i1e bitcast_convert_type cbrt ceil
    clamp clz complex conj convert_element_type copy copy_p cos cosh digamma div eq eq_to erf erf_inv erfc exp exp2
    expm1 floor ge gt igamma igamma_grad_a igammac imag integer_pow is_finite le le_to lgamma log log1p logistic lt
    lt_to max min mul mul_p name ne neg nextafter nextafter not or polygamma population_count pow pvary random_clone
    random_fold_in real reduce_precision regularized_incomplete_beta rem reshard round rsqrt select_n
    sharding_constraint shift_left shift_right_arithmetic shift_right_logical sign sin sinh sqrt square stop_gradient
    sub tan tanh xor
    zeta""".split()
)


def _elementwise(node: Node, axes: Axes) -> None:
    (output,) = node.outputs
    shape = axes.shape(output)
    found: list[dims.Dim | None] = [None] * len(shape)
    for operand in node.inputs:
        own = axes.of(operand)
        if len(own) != len(shape):  # a scalar
            continue
        for k, axis in enumerate(own):
            if axis.size != shape[k]:  # one index, broadcast
                continue
            first = found[k]
            if first is None:
                found[k] = axis
            else:
                axes.unify(node, [first], [axis])
    axes.set(output, [dims.atom(size) if axis is None else axis for axis, size in zip(found, shape, strict=True)])


def _pass_on(node: Node, axes: Axes) -> None:
    for operand, output in zip(node.inputs, node.outputs, strict=True):
        axes.set(output, axes.of(operand) if len(axes.of(operand)) == len(axes.shape(output)) else [])


RULES = {name: Rule(_elementwise, empty=True) for name in ELEMENTWISE}
RULES |= {name: Rule(_pass_on) for name in ("optimization_barrier", "device_put")}
