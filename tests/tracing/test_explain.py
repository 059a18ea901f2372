"""`Model.explain`: the words for what an axis is tied to, and for every reason to leave one alone."""

from typing import Any

import jax
import jax.numpy as jnp
import pytest
from jax import lax
from jax.core import ShapedArray
from jax.extend.core import Primitive

import jaxprune as jp
from tests.frameworks.plans import line_of

ONES = jnp.ones((4, 3))
RIDDLE = Primitive("riddle")
RIDDLE.def_abstract_eval(lambda x: ShapedArray(x.shape, x.dtype))


def ones(**shapes: Any) -> dict[str, jax.Array]:
    return {name: jnp.ones(shape) for name, shape in shapes.items()}


def linear(params: Any, x: jax.Array) -> jax.Array:
    return (x @ params["a"] + params["bias"][None]) @ params["b"]


LINEAR = jp.trace(linear, ones(a=(3, 5), bias=5, b=(5, 2)), ONES)


def test_tied() -> None:
    assert LINEAR.explain("a", 1) == (
        "a axis 1 (5 indices, out) is the group 'a:1': tied to b axis 0 (in), bias axis 0. To zero the weights that "
        "read an index is the same as to remove it."
    )
    assert LINEAR.explain("bias", 0) == (
        "bias axis 0 (5 indices) is the group 'a:1': tied to a axis 1 (out), b axis 0 (in). To zero the weights that "
        "read an index is the same as to remove it."
    )
    assert LINEAR.explain("bias", -1) == LINEAR.explain("bias", 0)


def test_a_whole_parameter_and_what_reads_it() -> None:
    lines = LINEAR.explain("a").splitlines()
    line = line_of(__file__, 'return (x @ params["a"] + params["bias"][None]) @ params["b"]')
    assert lines == [
        "a: float32[3, 5]",
        f"It is read by a dot at {line} (linear).",
        LINEAR.explain("a", 0),
        LINEAR.explain("a", 1),
    ]
    assert LINEAR.explain("bias").splitlines() == ["bias: float32[5]", LINEAR.explain("bias", 0)]


def test_an_axis_of_an_argument() -> None:
    assert LINEAR.explain("a", 0) == "a axis 0 (3 indices, in) stays as it is: it is an axis of an argument."


def test_an_axis_of_an_output() -> None:
    text = LINEAR.explain("b", 1)
    assert "it is axis 1 of the output '', which frozen_outputs may let go." in text
    named = jp.trace(lambda p, x: {"head": [linear(p, x)]}, LINEAR.params, ONES)
    assert "it is axis 1 of the output 'head/0', which frozen_outputs may let go." in named.explain("b", 1)


def test_tied_to_nothing_else_and_to_itself() -> None:
    def apply(params, x):
        return (x @ params["a"]).sum(-1) + jnp.tanh(x @ params["in"] @ params["h"] @ params["h"]) @ params["out"]

    model = jp.trace(apply, ones(a=(3, 5), h=(4, 4), out=4) | {"in": jnp.ones((3, 4))}, ONES)
    assert model.explain("a", 1) == (
        "a axis 1 (5 indices, out) is the group 'a:1': tied to nothing else. To zero all weights of an index is the "
        "same as to remove it."
    )
    assert "tied to h axis 1 (out), in axis 1 (out), out axis 0 (in)." in model.explain("h", 0)


def test_approximate() -> None:
    def apply(params, x):
        return jax.nn.softmax(x @ params["a"]) @ params["b"]

    model = jp.trace(apply, ones(a=(3, 5), b=(5, 2)), ONES)
    line = line_of(__file__, 'return jax.nn.softmax(x @ params["a"]) @ params["b"]')
    text = model.explain("a", 1)
    assert "is the group 'a:1': tied to b axis 0 (in). Its removal is approximate: reduce_max over this axis" in text
    assert text.endswith(f"(reduce_max at {line} (test_approximate.<locals>.apply)).")


def test_not_floating() -> None:
    def apply(params, x):
        return x @ (params["w"] * params["mask"].astype(jnp.float32)) @ params["b"]

    model = jp.trace(apply, ones(w=(3, 5), b=(5, 2)) | {"mask": jnp.ones((3, 5), int)}, ONES)
    assert not model.groups
    assert "stays as it is: it is no floating array" in model.explain("w", 1)
    assert model.explain("mask", 1).startswith("mask axis 1 (5 indices, out) stays as it is: it is no floating array")


def test_unused() -> None:
    params = LINEAR.params | ones(extra=(5, 7))
    model = jp.trace(linear, params, ONES)
    assert model.explain("extra").splitlines() == [
        "extra: float32[5, 7]",
        "It is unused: no operation reads it, so it forms no group.",
        "extra axis 0 (5 indices) is unused: no operation reads the parameter.",
        "extra axis 1 (7 indices) is unused: no operation reads the parameter.",
    ]


def test_a_part_that_nothing_reads() -> None:
    model = jp.trace(lambda p, x: linear({**p, "b": p["b"][:, :2]}, x), ones(a=(3, 5), bias=5, b=(5, 6)), ONES)
    lines = model.explain("b", 1).splitlines()
    assert lines[0] == (
        "b axis 1 (6 indices, out) has 2 parts, (!2) + (4) ('*' merges axes, '+' joins them, '!' must stay):"
    )
    assert lines[1].startswith("  2 indices: the part stays as it is: it is axis 1 of the output ''")
    assert lines[2] == "  4 indices: the part has no part in the result: nothing that an output depends on reads it."


def test_several_parts() -> None:
    def apply(params, x):
        return jnp.einsum("bhd,hdo->bo", (x @ params["a"]).reshape(-1, 2, 5), params["merge"])

    lines = jp.trace(apply, ones(a=(3, 10), merge=(2, 5, 2)), ONES).explain("a", 1).splitlines()
    assert lines == [
        "a axis 1 (10 indices, out) has 2 parts, (2) * (5) ('*' merges axes, '+' joins them, '!' must stay):",
        "  2 indices: the part is the group 'a:1:0': tied to merge axis 0 (in). To zero the weights that read an index "
        "is the same as to remove it.",
        "  5 indices: the part is the group 'a:1:1': tied to merge axis 1 (in). To zero the weights that read an index "
        "is the same as to remove it.",
    ]


def test_an_unknown_primitive_is_named_with_its_line() -> None:
    def apply(params, x):
        return RIDDLE.bind(x @ params["a"]) @ params["b"]

    model = jp.trace(apply, ones(a=(3, 5), b=(5, 2)), ONES)
    line = line_of(__file__, 'return RIDDLE.bind(x @ params["a"]) @ params["b"]')
    text = model.explain("a", 1)
    assert "stays as it is: jaxprune has no rule for the primitive 'riddle' (riddle at " in text
    assert f"at {line} (test_an_unknown_primitive" in text and not model.groups


def test_an_unknown_primitive_inside_of_a_library() -> None:
    def apply(params, x):
        return jnp.linalg.qr(x @ params["a"])[0] @ params["b"]

    text = jp.trace(apply, ones(a=(3, 5), b=(4, 2)), ONES).explain("a", 1)
    assert "no rule for the primitive 'qr' (qr at " in text


def test_an_output_that_may_change() -> None:
    model = jp.trace(linear, LINEAR.params, ONES, frozen_outputs=False)
    assert model.explain("a", 1) == LINEAR.explain("a", 1)
    assert "is the group 'b:1': tied to nothing else." in model.explain("b", 1)


def test_what_a_kernel_slides_over() -> None:
    def apply(params, x):
        return lax.conv_general_dilated(x, params["kernel"], (1,), "SAME", dimension_numbers=("NHC", "HIO", "NHC"))

    model = jp.trace(apply, ones(kernel=(2, 3, 4)), jnp.ones((1, 5, 3)))
    assert model.explain("kernel", 0).startswith(
        "kernel axis 0 (2 indices, window) stays as it is: the kernel slides over this axis (conv_general_dilated at "
    )


def test_what_a_loop_runs_along() -> None:
    def apply(params, x):
        return lax.scan(lambda h, w: (jnp.tanh(h @ w), None), x, params["layers"])[0]

    text = jp.trace(apply, ones(layers=(6, 3, 3)), ONES).explain("layers", 0)
    assert text.startswith("layers axis 0 (6 indices) stays as it is: the loop runs along this axis (scan at ")


def test_one_index() -> None:
    text = jp.trace(lambda p, x: x @ p["a"] @ p["b"], ones(a=(3, 1), b=(1, 2)), ONES).explain("a", 1)
    assert "stays as it is: it has no more than one index" in text


def test_what_is_asked_for_must_exist() -> None:
    with pytest.raises(ValueError, match="there is no parameter 'c'; the parameters are a, b, bias"):
        LINEAR.explain("c")
    for axis in (2, -3):
        with pytest.raises(ValueError, match=rf"a has shape \(3, 5\), so no axis {axis}; give one from 0 to 1"):
            LINEAR.explain("a", axis)
    scalar = jp.trace(lambda p, x: linear(p, x) * p["s"], LINEAR.params | ones(s=()), ONES)
    with pytest.raises(ValueError, match=r"s has shape \(\), so no axis 0; it has none"):
        scalar.explain("s", 0)
    assert scalar.explain("s") == "s: float32[]"
