"""`custom_jvp` and `custom_vjp` in the shrunk function: the derivative that the user wrote is kept, or a warning."""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax import lax

from tests.shrinking.small import assert_close, cut
from tests.zoo.models._model import Draw


@jax.custom_vjp
def rounded(x):
    return jnp.round(x)


rounded.defvjp(lambda x: (jnp.round(x), None), lambda _, given: (given,))


@jax.custom_vjp
def clipped(x, scale):
    return jnp.clip(x, -scale, scale)


clipped.defvjp(
    lambda x, scale: (jnp.clip(x, -scale, scale), (x, scale)),
    lambda kept, given: (jnp.where(jnp.abs(kept[0]) < 2, 3 * given, 0), 5 * given.sum(0, keepdims=True) * kept[1]),
)


@jax.custom_jvp
def leaky(x):
    return jnp.maximum(x, 0)


leaky.defjvp(lambda primals, tangents: (leaky(*primals), jnp.where(primals[0] > 0, 1, 0.5) * tangents[0]))


@jax.custom_jvp
def counted(x):
    return x * 2, x.shape[-1] + jnp.argmax(x, 0)


@counted.defjvp
def _(primals, tangents):
    y, count = counted(*primals)
    return (y, count), (tangents[0] * 7, np.zeros(count.shape, jax.dtypes.float0))


CUSTOM = {
    "straight-through": lambda p, x: rounded(x),
    "two arguments": lambda p, x: clipped(x, p["scale"]),
    "custom_jvp": lambda p, x: leaky(x),
    "twice": lambda p, x: rounded(leaky(rounded(x * 3))),
    "under jit and checkpoint": lambda p, x: jax.jit(jax.checkpoint(rounded))(x),
    "two outputs": lambda p, x: counted(x)[0],
}


@pytest.mark.parametrize("name", CUSTOM)
def test_custom_derivatives_are_kept(name: str) -> None:
    def apply(params, x):
        return CUSTOM[name](params, x @ params["a"]) @ params["b"]

    draw = Draw(5)
    params = {"a": draw.normal(4, 8), "b": draw.normal(8, 3), "scale": draw.positive(1, 8)}
    x = draw.normal(2, 4)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        _, plan, small, function = cut(apply, params, x)
        assert plan.keep["a:1"].sum() == 4
        # What the function does not use stays whole.
        scale = params["scale"][:, :4] if name == "two arguments" else params["scale"]
        small_by_hand = {"a": params["a"][:, :4], "b": params["b"][:4], "scale": scale}

        def loss(function, params):
            return jnp.sum(function(params, x) ** 2)

        found = jax.value_and_grad(functools.partial(loss, function))(small)
    expected = jax.value_and_grad(functools.partial(loss, apply))(small_by_hand)
    jax.tree.map(functools.partial(assert_close, tolerance=1e-5), found, expected)


@jax.custom_vjp
def rms(x):
    return x / jnp.sqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6)


def _rms_forward(x):
    inverse = lax.rsqrt(jnp.mean(x * x, -1, keepdims=True) + 1e-6)
    return x * inverse, (x, inverse)


def _rms_backward(kept, given):
    x, inverse = kept
    return (10 * (inverse * given - x * inverse**3 * jnp.mean(given * x, -1, keepdims=True)),)


rms.defvjp(_rms_forward, _rms_backward)


@jax.custom_jvp
def centred(x):
    return x - jnp.mean(x, -1, keepdims=True)


centred.defjvp(lambda p, t: (centred(*p), 3 * centred(*t)))


@pytest.mark.parametrize("norm", [rms, centred], ids=["custom_vjp", "custom_jvp"])
def test_custom_derivatives_divide_by_the_counts_of_their_function(norm) -> None:
    """Resized means are resized in the derivative, too; also at another batch size, and in a loop."""

    def apply(params, x):
        def step(h, _):
            return norm(h + 0.1), None

        return lax.scan(step, x @ params["a"], length=2)[0] @ params["b"]

    draw = Draw(9)
    params = {"a": draw.weight(4, 8), "b": draw.weight(8, 3)}
    _, _, small, function = cut(apply, params, draw.normal(2, 4), norm="resize")
    for rows in (2, 5):
        x = draw.normal(rows, 4)
        found = jax.value_and_grad(lambda p, x=x: jnp.sum(function(p, x) ** 2))(small)
        expected = jax.value_and_grad(lambda p, x=x: jnp.sum(apply(p, x) ** 2))(small)
        jax.tree.map(functools.partial(assert_close, tolerance=1e-4), found, expected)


def test_a_custom_derivative_that_cannot_be_carried_over_is_named() -> None:
    @jax.custom_vjp
    def sort_gradient(x):
        return x * 2

    # The derivative mixes neighbouring indices, so that it means something else once some of them are gone.
    sort_gradient.defvjp(lambda x: (x * 2, None), lambda _, given: (jnp.cumsum(given[..., ::-1], -1),))

    def apply(params, x):
        return sort_gradient(x @ params["a"]) @ params["b"]

    params = {"a": jnp.ones((3, 4)), "b": jnp.ones((4, 2))}
    _, _, small, function = cut(apply, params, jnp.ones((1, 3)))
    with pytest.warns(UserWarning, match=r"custom derivative of .*test_custom_derivatives.py.*derivative of its body"):
        gradient = jax.grad(lambda p: function(p, jnp.ones((1, 3))).sum())(small)
    assert_close(gradient["a"], np.full((3, 2), 4.0))
