"""Toy models for the tests of plans, scores, selection and dead units: their functions, and random parameters."""

from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

import jaxprune as jp


def arrays(shapes: Any, seed: int = 0) -> dict[str, jax.Array]:
    """A normal array for each shape."""
    draw = np.random.default_rng(seed)
    return {name: jnp.asarray(draw.normal(size=shape), jnp.float32) for name, shape in shapes.items()}


def mlp(params: Any, x: jax.Array) -> jax.Array:
    """Three dense layers."""
    x = jax.nn.relu(x @ params["a"] + params["a_bias"][None])
    x = jax.nn.relu(x @ params["b"] + params["b_bias"][None])
    return x @ params["c"] + params["c_bias"][None]


MLP_SHAPES = {"a": (3, 6), "a_bias": 6, "b": (6, 5), "b_bias": 5, "c": (5, 2), "c_bias": 2}
MLP = arrays(MLP_SHAPES)
X = jnp.asarray(np.random.default_rng(1).normal(size=(4, 3)), jnp.float32)
MLP_MODEL = jp.trace(mlp, MLP, X)


def heads(params: Any, x: jax.Array) -> jax.Array:
    """A dense layer whose output is seen as (head, feature of the head)."""
    x = jax.nn.relu(x @ params["a"] + params["bias"][None]).reshape(-1, 4, 3)
    return jnp.einsum("bhd,hdo->bo", x, params["merge"]) + params["last"][None]


HEADS = arrays({"a": (3, 12), "bias": 12, "merge": (4, 3, 2), "last": 2})
HEADS_MODEL = jp.trace(heads, HEADS, X)


def joined(params: Any, x: jax.Array) -> jax.Array:
    """Two dense layers, joined; what they make is scaled."""
    x = jnp.concatenate([jnp.tanh(x @ params["left"]), jnp.tanh(x @ params["right"])], -1)
    return (x * params["scale"][None]) @ params["merge"]


JOINED = arrays({"left": (3, 4), "right": (3, 2), "scale": 6, "merge": (6, 2)})
JOINED_MODEL = jp.trace(joined, JOINED, X)


def convolve(x: jax.Array, kernel: jax.Array, padding: str) -> jax.Array:
    """A convolution of images whose channels come last."""
    return lax.conv_general_dilated(x, kernel, (1, 1), padding, dimension_numbers=("NHWC", "HWIO", "NHWC"))


def quick(function: Any) -> Any:
    """Compiled, without what only makes the result faster."""
    options = {"xla_backend_optimization_level": 0, "xla_llvm_disable_expensive_passes": True}
    return jax.jit(function, compiler_options=options)


def assert_shrunk_equals(
    model: jp.Model, plan: jp.Plan, small_from: Any, params: Any, *arguments: tuple[Any, ...]
) -> None:
    """The shrunk function on cut parameters, and the traced one on uncut ones, give what `params` do.

    Args:
      model: the model.
      plan: the plan.
      small_from: the parameters that are cut.
      params: those that say what is right.
      arguments: each a tuple of arguments.
    """
    small, full = jp.shrink(model, plan, small_from), quick(model.apply_fn)
    shrunk = quick(jp.shrunk_function(model, plan))
    for args in arguments:
        expected = jax.tree.leaves(full(params, *args))
        for found in (shrunk(small, *args), full(small_from, *args)):
            for x, y in zip(jax.tree.leaves(found), expected, strict=True):
                np.testing.assert_allclose(x, y, rtol=0, atol=1e-5 * float(np.abs(y).max()))
