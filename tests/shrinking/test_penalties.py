"""Penalties on whole indices, against NumPy."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune as jp
from tests.shrinking.small import PLAN, inputs, mlp, mlp_model, mlp_params
from tests.zoo.models._model import Draw

PARAMS, MODEL = mlp_params(), mlp_model()


def squares(params):
    """The sum of squares of each index of the two groups, written out."""
    p = jax.tree.map(np.asarray, params)
    return {
        "first/kernel:1": (p["first"]["kernel"] ** 2).sum(0)
        + p["first"]["bias"] ** 2
        + (p["second"]["kernel"] ** 2).sum(1),
        "second/kernel:1": (p["second"]["kernel"] ** 2).sum(0)
        + p["second"]["bias"] ** 2
        + (p["third"]["kernel"] ** 2).sum(1),
    }


def test_group_lasso() -> None:
    found = jp.group_lasso(MODEL, PARAMS)
    assert found.dtype == jnp.float32 and found.shape == ()
    np.testing.assert_allclose(found, sum(np.sqrt(s).sum() for s in squares(PARAMS).values()), rtol=1e-6)
    np.testing.assert_allclose(jax.jit(lambda p: jp.group_lasso(MODEL, p))(PARAMS), found, rtol=1e-6)


def test_strengths_scalar_and_by_index() -> None:
    each = np.arange(8, dtype=np.float32)
    strengths = {"first/kernel:1": jnp.asarray(each), "second/kernel:1": jnp.asarray(0.5)}
    one, two = squares(PARAMS).values()
    expected = (each * np.sqrt(one)).sum() + 0.5 * np.sqrt(two).sum()
    np.testing.assert_allclose(jp.group_lasso(MODEL, PARAMS, strengths=strengths), expected, rtol=1e-6)
    # Plain numbers, as one writes them; groups without a strength have 1.
    expected = 2 * np.sqrt(one).sum() + np.sqrt(two).sum()
    np.testing.assert_allclose(jp.group_lasso(MODEL, PARAMS, strengths={"first/kernel:1": 2}), expected, rtol=1e-6)
    with pytest.raises(ValueError, match=r"strengths for \['third'\].*they are first/kernel:1"):
        jp.group_lasso(MODEL, PARAMS, strengths={"third": 1.0})
    with pytest.raises(ValueError, match=r"group 'first/kernel:1' has shape \(3,\).*\(8,\)"):
        jp.group_lasso(MODEL, PARAMS, strengths={"first/kernel:1": jnp.ones(3)})


def test_members() -> None:
    found = jp.group_lasso(MODEL, PARAMS, members=".*/bias")
    p = jax.tree.map(np.asarray, PARAMS)
    np.testing.assert_allclose(found, np.abs(p["first"]["bias"]).sum() + np.abs(p["second"]["bias"]).sum(), rtol=1e-6)
    # Only the groups with such a member.
    only = jp.group_lasso(MODEL, PARAMS, members="third/kernel")
    np.testing.assert_allclose(only, np.linalg.norm(p["third"]["kernel"], axis=1).sum(), rtol=1e-6)


def test_gradients_are_finite_at_zero() -> None:
    params = jax.tree.map(jnp.zeros_like, PARAMS)
    some = {**PARAMS, "first": jax.tree.map(lambda p: p.at[..., 0].set(0), PARAMS["first"])}
    some["second"] = {**PARAMS["second"], "kernel": PARAMS["second"]["kernel"].at[0].set(0)}
    gradient = jax.jit(jax.grad(lambda p: jp.group_lasso(MODEL, p)))
    for tree in (params, some):
        grads = gradient(tree)
        assert all(jnp.isfinite(leaf).all() for leaf in jax.tree.leaves(grads))
        assert not grads["first"]["kernel"][:, 0].any()
    # Elsewhere it is w / |w_g|.
    norms = np.sqrt(squares(some)["first/kernel:1"])[1:]
    np.testing.assert_allclose(
        grads["first"]["kernel"][:, 1:], np.asarray(some["first"]["kernel"])[:, 1:] / norms, rtol=1e-5
    )


def test_removal_penalty() -> None:
    one, two = squares(PARAMS).values()
    keep = PLAN.keep
    expected = 0.3 / 2 * (one[~keep["first/kernel:1"]].sum() + two[~keep["second/kernel:1"]].sum())
    np.testing.assert_allclose(jp.removal_penalty(MODEL, PARAMS, PLAN, 0.3), expected, rtol=1e-6)
    # The strength may be traced, and an integer.
    traced = jax.jit(lambda p, step: jp.removal_penalty(MODEL, p, PLAN, 0.1 * (step // 10)))
    np.testing.assert_allclose(traced(PARAMS, jnp.float32(30)), expected, rtol=1e-6)
    assert jp.removal_penalty(MODEL, PARAMS, jp.Plan({}), 1) == 0
    gradient = jax.grad(
        lambda p: jp.removal_penalty(MODEL, p, jp.Plan({"first/kernel:1": keep["first/kernel:1"]}), 2.0)
    )
    grads = gradient(PARAMS)["first"]["kernel"]
    removed = ~keep["first/kernel:1"]
    np.testing.assert_allclose(grads, np.where(removed, 2 * np.asarray(PARAMS["first"]["kernel"]), 0), rtol=1e-6)
    with pytest.raises(ValueError, match="which has 8 here"):
        jp.removal_penalty(MODEL, PARAMS, jp.Plan({"first/kernel:1": np.ones(9, bool)}), 1.0)


class Normed(nn.Module):
    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        x = nn.BatchNorm(use_running_average=True)(nn.Dense(6)(x))
        return nn.Dense(2)(nn.relu(x))


def test_one_entry_of_the_parameters() -> None:
    """The model is traced with its batch statistics, the optimiser sees `params["params"]`."""
    module = Normed()
    variables = Draw(0).like(jax.eval_shape(module.init, jax.random.key(0), inputs()))
    model = jp.trace(module.apply, variables, inputs())
    p = jax.tree.map(np.asarray, variables["params"])
    norm = p["BatchNorm_0"]
    learnt = (p["Dense_0"]["kernel"] ** 2).sum(0) + p["Dense_0"]["bias"] ** 2 + norm["scale"] ** 2 + norm["bias"] ** 2
    learnt += (p["Dense_1"]["kernel"] ** 2).sum(1)
    np.testing.assert_allclose(jp.group_lasso(model, variables["params"]), np.sqrt(learnt).sum(), rtol=1e-6)
    slimming = jp.group_lasso(model, variables["params"], members=".*/scale")
    np.testing.assert_allclose(slimming, np.abs(norm["scale"]).sum(), rtol=1e-6)
    plan = jp.Plan({"params/Dense_0/kernel:1": np.arange(6) > 1})
    np.testing.assert_allclose(jp.removal_penalty(model, variables["params"], plan, 2.0), learnt[:2].sum(), rtol=1e-6)
    with pytest.raises(ValueError, match="neither those that the model was traced with nor a part"):
        jp.group_lasso(model, {"params": {"Dense_0": variables["params"]["Dense_0"]}, "other": jnp.ones(2)})


def test_other_dtypes_and_integers() -> None:
    params = {**mlp_params(jnp.bfloat16), "steps": jnp.zeros((), jnp.int32)}
    model = jp.trace(lambda p, x: mlp(p, x), params, inputs(dtype=jnp.bfloat16))
    found = jp.group_lasso(model, params)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, jp.group_lasso(MODEL, PARAMS), rtol=1e-2)


def test_training_with_group_lasso_zeroes_indices() -> None:
    """A target that two of eight units can express: the others fade, the function stays."""
    params = mlp_params()
    draw = Draw(3)
    x = draw.normal(64, 4)
    y = jnp.tile(jax.nn.relu(x[:, :1] + x[:, 1:2]), (1, 3))
    tx = optax.adam(0.02)

    def loss(params):
        return jnp.mean((mlp(params, x) - y) ** 2) + 0.01 * jp.group_lasso(MODEL, params)

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(jax.grad(loss)(params), state)
        return (optax.apply_updates(params, updates), state), None

    with jax.numpy_dtype_promotion("standard"):
        (params, _), _ = jax.jit(lambda p: jax.lax.scan(step, (p, tx.init(p)), length=800))(params)
    norms = {name: np.sqrt(s) for name, s in squares(params).items()}
    plan = jp.Plan({name: norm > 0.05 * norm.max() for name, norm in norms.items()})
    assert all(mask.sum() <= mask.size // 2 for mask in plan.keep.values())
    small = jp.shrunk_function(MODEL, plan)(jp.shrink(MODEL, plan, params), x)
    assert float(jnp.mean((small - y) ** 2)) < 0.1 * float(jnp.var(y))
    np.testing.assert_allclose(small, mlp(params, x), atol=0.05)
