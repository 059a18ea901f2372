"""Counts against arrays of ones (each multiply-add adds one to their product), NumPy, and XLA's own analysis."""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

import jaxprune as jp
from jaxprune.tracing.cost import Macs
from tests.zoo.models import ZOO

LOOPS = {"scan", "while", "cond"}


def xla(function: Callable[..., Any], *args: Any) -> tuple[float, float]:
    analysis = jax.jit(function).lower(*args).cost_analysis()
    assert analysis is not None
    return analysis.get("flops", 0), analysis.get("transcendentals", 0)


def with_ones(function: Callable[..., Any], *shapes: tuple[int, ...]) -> int:
    return total_of(jax.jit(function)(*(np.ones(shape, np.float32) for shape in shapes)))


def total_of(array: jax.Array) -> int:
    return round(float(np.asarray(array).sum()))


DOTS = {
    "matrix": ("ik,kj->ij", (3, 4), (4, 5)),
    "vector": ("k,kj->j", (4,), (4, 5)),
    "batch": ("bik,bkj->bij", (2, 3, 4), (2, 4, 5)),
    "two sums": ("ikl,klj->ij", (3, 4, 2), (4, 2, 5)),
    "outer": ("i,j->ij", (3,), (5,)),
    "parameter on the left": ("ik,kj->ji", (3, 4), (4, 5)),
}


@pytest.mark.parametrize("name", DOTS)
def test_dots_are_counted_as_ones_count_them(name: str) -> None:
    equation, left, right = DOTS[name]

    def apply(w: jax.Array, x: jax.Array) -> jax.Array:
        return jnp.einsum(equation, x, w)

    cost = jp.trace(apply, jnp.ones(right), jnp.ones(left)).cost()
    assert cost.macs == with_ones(apply, right, left)
    assert cost.flops == 2 * cost.macs == xla(apply, jnp.ones(right), jnp.ones(left))[0]
    assert [macs for _, macs in cost.per_site] == [cost.macs]


CONVOLUTIONS: dict[str, tuple[tuple[int, ...], tuple[int, ...], dict[str, Any]]] = {
    "valid": ((2, 7, 6, 4), (3, 2, 4, 5), {"padding": "VALID"}),
    "same": ((2, 7, 6, 4), (3, 3, 4, 5), {"padding": "SAME"}),
    "strides": ((2, 7, 6, 4), (3, 3, 4, 5), {"padding": "SAME", "window_strides": (2, 3)}),
    "uneven padding": ((1, 5, 5, 2), (3, 3, 2, 3), {"padding": ((3, 0), (0, 4))}),
    "negative padding": ((1, 7, 7, 2), (3, 3, 2, 3), {"padding": ((-1, 2), (1, -2))}),
    "dilated kernel": ((1, 9, 8, 2), (3, 2, 2, 3), {"padding": "SAME", "rhs_dilation": (2, 3)}),
    "transposed": ((1, 5, 4, 2), (3, 4, 2, 3), {"padding": ((2, 2), (1, 3)), "lhs_dilation": (2, 3)}),
    "all at once": (
        (2, 6, 5, 4),
        (3, 2, 2, 6),
        {
            "padding": ((2, 1), (3, 0)),
            "window_strides": (2, 1),
            "lhs_dilation": (2, 3),
            "rhs_dilation": (2, 2),
            "feature_group_count": 2,
        },
    ),
    "depthwise": ((2, 6, 6, 4), (3, 3, 1, 8), {"padding": "SAME", "feature_group_count": 4}),
    "groups of batches": ((4, 6, 6, 3), (3, 3, 3, 6), {"padding": "SAME", "batch_group_count": 2}),
}


def convolution(keywords: dict[str, Any]) -> Callable[..., jax.Array]:
    options = {"window_strides": (1, 1), "dimension_numbers": ("NHWC", "HWIO", "NHWC"), **keywords}
    return lambda w, x: lax.conv_general_dilated(x, w, **options)


@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions_are_counted_on_valid_positions(name: str) -> None:
    data, kernel, keywords = CONVOLUTIONS[name]
    apply = convolution(keywords)
    model = jp.trace(apply, jnp.ones(kernel), jnp.ones(data))
    cost = model.cost()
    assert cost.macs == with_ones(apply, kernel, data)
    assert cost.flops == xla(apply, jnp.ones(kernel), jnp.ones(data))[0]
    mask = np.random.default_rng(0).random(kernel) < 0.4
    masked = model.cost(masks=mask)
    assert masked.macs == total_of(jax.jit(apply)(mask.astype(np.float32), np.ones(data, np.float32)))
    assert masked.parameters == int(mask.sum())


X, BITS = np.linspace(0.1, 0.9, 200, dtype=np.float32).reshape(10, 20), np.arange(200, dtype=np.int32).reshape(10, 20)
FUNCTIONS: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
    **{name: (getattr(lax, name), (X,)) for name in "neg sign floor abs exp tanh logistic rsqrt erf cbrt".split()},
    **{name: (getattr(lax, name), (X, X)) for name in "add div max pow atan2 eq rem".split()},
    **{f"power {n}": (lambda x, n=n: lax.integer_pow(x, n), (X,)) for n in (1, 2, 3, 5, 7, -1, -2)},
    **{name: (lambda x, name=name: getattr(lax, name)(x, axis=1), (X,)) for name in ("cumsum", "cummax")},
    "cumlogsumexp": (lambda x: lax.cumlogsumexp(x, axis=0), (X,)),
    "integers": (lambda x: lax.bitwise_and(x, lax.population_count(x)) * x, (BITS,)),
    "cast": (lambda x: x.astype(jnp.bfloat16), (X,)),
    "select": (lambda x: jnp.where(x > 0, x, -x), (X,)),
    "select of three": (lambda k, x, y: lax.select_n(k, x, y, x), (BITS, X, X + 1)),
    "sum": (lambda x: x.sum(1), (X,)),
    "any": (lambda x: (x > 0).any(0), (X,)),
    "argmax": (lambda x: lax.argmax(x, 1, jnp.int32), (X,)),
    "argmin of integers": (lambda x: lax.argmin(x, 0, jnp.int32), (BITS,)),
    "generic reduction": (lambda x: lax.reduce(x, np.float32(0), lambda a, b: a + b * b, (1,)), (X,)),
    "max pool": (lambda x: lax.reduce_window(x, -jnp.inf, lax.max, (2, 2), (2, 2), "VALID"), (X,)),
    "sum pool": (lambda x: lax.reduce_window(x, 0.0, lax.add, (3, 3), (1, 1), "SAME"), (X,)),
    "gradient of max pool": (
        jax.grad(lambda x: lax.reduce_window(x, -jnp.inf, lax.max, (2, 2), (2, 2), "VALID").sum()),
        (X,),
    ),
    "softmax": (jax.nn.softmax, (X,)),
    "moves": (lambda x: jnp.pad(jnp.concatenate([x.T, x.T])[::-1, 2:5], 1), (X,)),
    "sort": (lambda x: lax.sort(x), (X,)),
    "fft": (lambda x: jnp.fft.fft(x), (X.astype(np.complex64),)),
    "take that fills": (lambda x, k: x.at[k].get(mode="fill", fill_value=0.0), (X, BITS[0, :3])),
    "take of elements": (lambda x, k: x.at[k, k].get(mode="fill", fill_value=0.0), (X, BITS[0, :3])),
    "take that clips": (lambda x, k: x.at[k].get(mode="clip"), (X, BITS[0, :3])),
    "scatter": (lambda x, k: x.at[k].set(1.0), (X, BITS[0, :3])),
    "scatter of sums": (lambda x, k: x.at[k].add(1.0), (X, BITS[0, :3])),
    "most expensive branch": (
        lambda k, x: lax.switch(k, [lambda x: x + 1, lambda x: jnp.exp(x * 2 + 1), lambda x: x], x),
        (np.int32(1), X),
    ),
    "dead code": (lambda x: (x @ x.T, x + 1)[1], (X,)),
}


@pytest.mark.parametrize("name", FUNCTIONS)
def test_arithmetic_is_counted_as_xla_counts_it(name: str) -> None:
    function, args = FUNCTIONS[name]
    cost = jp.trace(lambda _, *args: function(*args), {}, *args).cost()
    assert (cost.flops, cost.transcendentals) == xla(function, *args)
    assert not cost.notes


EXPANDED = "acos acosh asin asinh atanh bessel_i0e bessel_i1e cosh digamma erf_inv erfc exp2 lgamma sinh".split()


@pytest.mark.parametrize("name", EXPANDED)
def test_series_are_about_as_long_as_in_xla(name: str) -> None:
    cost = jp.trace(lambda _, x: getattr(lax, name)(x), {}, X).cost()
    assert (cost.flops, cost.transcendentals) == pytest.approx(xla(getattr(lax, name), X), rel=0.3)  # releases differ


def test_random_bits_are_about_as_many_operations_as_in_xla() -> None:
    def apply(_: Any, key: jax.Array) -> jax.Array:
        return jax.random.bits(key, (10, 20))

    unrolled = jax.jit(apply).trace({}, jax.random.key(0)).lower(lowering_platforms=("tpu",)).cost_analysis()
    assert unrolled is not None
    assert jp.trace(apply, {}, jax.random.key(0)).cost().flops == pytest.approx(unrolled["flops"], rel=0.3)


def test_a_scan_counts_its_body_as_often_as_it_runs() -> None:
    def apply(params: Any, x: jax.Array) -> jax.Array:
        def inner(x: jax.Array, _: Any) -> tuple[jax.Array, None]:
            return jnp.tanh(x @ params["shared"]), None

        def outer(x: jax.Array, w: jax.Array) -> tuple[jax.Array, None]:
            return lax.scan(inner, x @ w, None, length=3)[0], None

        return lax.scan(outer, x, params["stacked"])[0]

    params = {"shared": jnp.ones((4, 4)), "stacked": jnp.ones((5, 4, 4))}
    model = jp.trace(apply, params, jnp.ones((2, 4)))
    cost = model.cost()
    assert cost.per_path["stacked"].macs == 5 * 2 * 4 * 4
    assert cost.per_path["shared"].macs == 5 * 3 * 2 * 4 * 4
    assert cost.macs == 640
    assert (cost.flops, cost.transcendentals) == (2 * 640, 15 * 8)
    mask = np.random.default_rng(0).random((5, 4, 4)) < 0.3
    masked = model.cost(masks={"shared": True, "stacked": mask})
    assert masked.per_path["stacked"].macs == 2 * int(mask.sum())
    assert masked.macs == 480 + 2 * int(mask.sum())


def test_a_while_loop_counts_once_and_says_so() -> None:
    def apply(w: jax.Array, x: jax.Array) -> jax.Array:
        return lax.while_loop(lambda x: x.sum() < 9, lambda x: x @ w, x)

    cost = jp.trace(apply, jnp.ones((3, 3)), jnp.ones(3)).cost()
    assert cost.macs == 9
    assert "while loop" in cost.notes[0] and "note: " in str(cost)


def test_an_unknown_primitive_is_named() -> None:
    cost = jp.trace(lambda w, x: lax.igamma(w, x), jnp.ones(3), jnp.ones(3)).cost()
    assert cost.flops == 0 and "igamma" in cost.notes[0]


def test_products_of_data_are_only_in_the_total() -> None:
    def apply(w: jax.Array, x: jax.Array) -> jax.Array:
        h = x @ w
        return h @ h.T

    cost = jp.trace(apply, jnp.ones((3, 4)), jnp.ones((2, 3))).cost()
    assert cost.macs == 2 * 3 * 4 + 2 * 4 * 2
    assert cost.per_path[""].macs == 2 * 3 * 4
    assert "other operations" in str(cost)


def test_bytes_follow_dtypes_and_views_of_parameters_cost_nothing() -> None:
    params = {"w": jnp.ones((4, 3), jnp.bfloat16), "count": jnp.zeros((), jnp.int32), "key": jax.random.key(0)}

    def apply(params: Any, x: jax.Array) -> jax.Array:
        return jnp.exp(x @ params["w"].T.astype(jnp.float32))

    cost = jp.trace(apply, params, jnp.ones((2, 3))).cost()
    assert (cost.parameters, cost.weight_bytes) == (13, 12 * 2 + 4)
    assert cost.activation_bytes == 2 * (2 * 4) * 4


def test_masks_of_parts_of_a_kernel_and_of_nothing() -> None:
    def apply(params: Any, x: jax.Array) -> jax.Array:
        left, right = jnp.split(params["w"], 2, axis=1)
        return (x @ left) + (x @ right[::-1].astype(jnp.float32)) + params["b"]

    params = {"w": jnp.ones((4, 6)), "b": jnp.ones((1, 3))}
    model = jp.trace(apply, params, jnp.ones((5, 4)))
    mask = np.zeros((4, 6), bool)
    mask[:3, 0], mask[0, 4:] = True, True
    cost = model.cost(masks={"w": mask, "b": True})
    assert (cost.parameters, cost.weight_bytes, cost.macs) == (5 + 3, 32, 5 * 5)
    assert [macs for _, macs in cost.per_site] == [15, 10]
    assert model.cost().flops - cost.flops == 2 * 5 * (24 - 5)
    assert (cost.word, model.cost().word) == ("theoretical", "modelled")
    assert model.cost(masks={"w": False, "b": np.ones((1, 1), bool)}).macs == 0
    everything = model.cost(masks={"w": True, "b": True})
    assert (everything.macs, everything.flops) == (model.cost().macs, model.cost().flops)


def test_bad_input_is_refused() -> None:
    params = {"a": jnp.ones((2, 3)), "b": jnp.ones((3, 2))}
    model = jp.trace(lambda p, x: x @ p["a"] @ p["b"], params, jnp.ones(2))
    with pytest.raises(ValueError, match="lacks b"):
        model.cost(masks={"a": True})
    with pytest.raises(ValueError, match="mask of a has shape"):
        model.cost(masks={"a": np.ones((4, 3), bool), "b": True})
    with pytest.raises(ValueError, match="not both"):
        model.cost(masks={"a": True, "b": True}, plan=jp.Plan({}))
    with pytest.raises(ValueError, match="which this model has not"):
        model.cost(plan=jp.Plan({"c:0": [True]}))
    with pytest.raises(TypeError, match=r"give a jaxprune\.Plan"):
        model.cost(plan={"a:1": [True, False, True]})


# JAX has no ragged dot for a CPU: it masks the rows for each group, by four operations, and multiplies all of them.
def ragged_extra(model: jp.Model) -> int:
    extra = 0
    for node in model.program.graph.everything():
        if node.name.startswith("ragged_dot"):
            (rows, inner), (groups, _, outer) = map(model.program.shape, node.inputs[:2])
            extra += 2 * (groups - 1) * rows * inner * outer + 4 * groups * rows * inner + groups * (groups - 1)
    return extra


@pytest.mark.parametrize("name", ZOO)
def test_zoo_against_xla_and_after_a_plan(name: str) -> None:
    zoo = ZOO[name]()
    model = jp.trace(zoo.apply_fn, zoo.params, *zoo.args)
    cost = model.cost()
    if not LOOPS & {node.name for node in model.program.graph.everything()}:
        flops, transcendentals = xla(zoo.apply_fn, zoo.params, *zoo.args)
        assert cost.flops + ragged_extra(model) == pytest.approx(flops, rel=0.05)
        assert cost.transcendentals == pytest.approx(transcendentals, rel=0.05)
    assert cost.parameters == sum(math.prod(leaf.shape) for leaf in jax.tree.leaves(zoo.params))

    plan = jp.Plan({name: np.arange(group.size) % 2 == 0 for name, group in model.groups.items()})
    planned = model.cost(plan=plan)
    again = jp.trace(jp.shrunk_function(model, plan), jp.shrink(model, plan, model.params), *zoo.args).cost()
    for exact in ("parameters", "macs", "weight_bytes"):
        assert getattr(planned, exact) == getattr(again, exact)
    assert [macs for _, macs in planned.per_site] == [macs for _, macs in again.per_site]
    # Replayed, some scalars are constants, and what is made in full is cut by a few operations more.
    assert planned.flops == pytest.approx(again.flops, rel=0.03)
    assert planned.activation_bytes == pytest.approx(again.activation_bytes, rel=0.05)
    macs = Macs(model)
    assert (macs(model.sizes({})), macs(model.sizes(plan.keep))) == (cost.macs, planned.macs)


def test_branches_that_consume_parameters() -> None:
    """The total has the most expensive branch, so it is no sum over parameters, and what is left is not negative."""
    params = {"a": jnp.ones((4, 8)), "b": jnp.ones((4, 8))}

    def apply(p, which, x):
        x = lax.cond(which, lambda x: x @ p["a"], lambda x: x @ p["b"], x)
        return x @ x.T

    cost = jp.trace(apply, params, True, jnp.ones((2, 4))).cost()
    assert (cost.macs, cost.other_macs) == (2 * 4 * 8 + 2 * 8 * 2, 2 * 8 * 2)
    assert [each.macs for each in cost.per_path.values()] == [64, 64]
    assert " -" not in str(cost).split("FLOPs")[0]
    assert any("the most expensive branch counts, by parameter all of them do (cond" in note for note in cost.notes)


def test_an_operation_on_two_parameters() -> None:
    params = {"a": jnp.ones((4, 8)), "b": jnp.ones((8, 3))}
    cost = jp.trace(lambda p, x: x @ (p["a"] @ p["b"]), params, jnp.ones((2, 4))).cost()
    assert cost.macs == 4 * 8 * 3 + 2 * 4 * 3
    assert " -" not in str(cost).split("FLOPs")[0]
