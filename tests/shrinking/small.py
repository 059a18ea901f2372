"""A small model with bias, norm and two groups, and its plan, for the tests of this folder."""

import jax
import jax.numpy as jnp
import numpy as np

import jaxprune as jp
from tests.zoo.models._model import Draw, dense

PLAN = jp.Plan({"first/kernel:1": np.arange(8) % 3 > 0, "second/kernel:1": np.arange(6) < 4})
KEPT = {name: np.flatnonzero(mask) for name, mask in PLAN.keep.items()}
SHAPES = {
    "first": {"kernel": (4, 5), "bias": (5,)},
    "second": {"kernel": (5, 4), "bias": (4,)},
    "third": {"kernel": (4, 3), "bias": (3,)},
}


def mlp(params, x):
    x = jax.nn.relu(dense(params["first"], x))
    x = jax.nn.relu(dense(params["second"], x))
    return dense(params["third"], x)


def mlp_params(dtype=jnp.float32):
    draw = Draw(0)
    params = {"first": draw.dense(4, 8), "second": draw.dense(8, 6), "third": draw.dense(6, 3)}
    return jax.tree.map(lambda p: p.astype(dtype), params)


def inputs(rows=2, dtype=jnp.float32):
    return Draw(1).normal(rows, 4).astype(dtype)


def mlp_model(dtype=jnp.float32):
    return jp.trace(mlp, mlp_params(dtype), inputs(dtype=dtype))


def by_hand(params):
    """The cut of `PLAN`, written out with NumPy."""
    one, two = KEPT.values()
    p = jax.tree.map(np.asarray, params)
    return {
        "first": {"kernel": p["first"]["kernel"][:, one], "bias": p["first"]["bias"][one]},
        "second": {"kernel": p["second"]["kernel"][one][:, two], "bias": p["second"]["bias"][two]},
        "third": {"kernel": p["third"]["kernel"][two], "bias": p["third"]["bias"]},
    }


def assert_equal(found, expected):
    assert jax.tree.structure(found) == jax.tree.structure(expected)
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)


def assert_close(found, expected, tolerance=2e-6):
    assert jnp.shape(found) == np.shape(expected)
    np.testing.assert_allclose(
        np.asarray(found, np.float32), np.asarray(expected, np.float32), rtol=tolerance, atol=tolerance
    )


def cut(apply_fn, params, *args, share=0.5, norm="exact", where=None):
    """Traces, removes the last half of every group (of those whose id is in `where`), and shrinks."""
    model = jp.trace(apply_fn, params, *args)
    keep = {n: np.arange(g.size) < share * g.size for n, g in model.groups.items() if where is None or n in where}
    assert keep, "the model has no group"
    plan = jp.Plan(keep)
    return model, plan, jp.shrink(model, plan, params), jp.shrunk_function(model, plan, norm=norm)
