"""Functions that mask or scale a parameter before they multiply with it: as if the product was the parameter."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from jaxprune.posttraining import owl, wanda
from jaxprune.posttraining.sensitivity import layer_sensitivity
from tests.draws import normal
from tests.posttraining.layers import Grown

DRIVERS = [jp.prune_one_shot, jp.prune_sequential]


MASK = normal(9, 16, 16) > -0.5
SCALE = jnp.exp(1.5 * normal(3, 16))[:, None]
W, X = normal(0, 16, 16) / SCALE, normal(1, 64, 16) @ normal(2, 16, 16)
STACK = {"w": normal(4, 3, 16, 16), "s": jnp.exp(normal(5, 3, 16, 1))}


def scan(make):
    def apply_fn(p, x):
        return jax.lax.scan(lambda x, own: (jnp.tanh(x @ make(own)), None), x, p)[0]

    return apply_fn


def loop(make):
    def apply_fn(p, x):
        def step(state):
            return state[0] + 1, jnp.tanh(state[1] @ make(p))

        return jax.lax.while_loop(lambda state: state[0] < 3, step, (0, x))[1]

    return apply_fn


def branch(make):
    return lambda p, x: jax.lax.cond(x[0, 0] < jnp.inf, lambda x: x @ make(p), lambda x: x, x)


# How the function runs, its parameters, and what it multiplies with, which is the same in the parameters of `plain`.
LINEAR = {
    "mask": (lambda make: lambda p, x: x @ make(p), {"w": W}, lambda p: jnp.where(MASK, p["w"], 0)),
    "scale": (lambda make: lambda p, x: x @ make(p), {"w": W}, lambda p: p["w"] * SCALE),
    "view": (lambda make: lambda p, x: x @ make(p).T, {"w": W}, lambda p: (-p["w"].T.reshape(256) / 3).reshape(16, 16)),
    "scan": (scan, STACK, lambda p: p["w"] * p["s"]),
    "while": (loop, {"w": W}, lambda p: p["w"] * SCALE),
    "cond": (branch, {"w": W}, lambda p: p["w"] * SCALE),
}


def plain_of(name: str):
    """The function and its parameters, and those of one that has what is multiplied with as its parameter."""
    run, params, make = LINEAR[name]
    own = {**params, "w": jax.vmap(make)(params) if name == "scan" else make(params)}
    if name == "view":
        own["w"] = own["w"].T  # the same axes as the parameter has
        return run(make), params, (lambda p, x: x @ p["w"]), own
    return run(make), params, run(lambda p: p["w"]), own


def made(name: str, params):
    value = LINEAR[name][2](params) if name != "scan" else jax.vmap(LINEAR[name][2])(params)
    return value.T if name == "view" else value


@pytest.mark.parametrize("name", LINEAR)
@pytest.mark.parametrize("prune", DRIVERS)
def test_the_product_is_what_is_pruned(prune, name) -> None:
    apply_fn, params, plain, own = plain_of(name)
    found = prune(apply_fn, params, [X], Grown(), sparsity=0.5, where="w")
    expected = prune(plain, own, [X], Grown(), sparsity=0.5, where="w")
    np.testing.assert_allclose(made(name, found.params), expected.params["w"], rtol=1e-4, atol=1e-6)
    np.testing.assert_array_equal(found.params["w"] != 0, found.masks["w"])
    for one, other in zip(found.layers, expected.layers, strict=True):
        assert (one.error, one.note) == (pytest.approx(other.error, rel=1e-3), "")
    if name == "mask":  # what the function never uses is pruned
        assert not found.masks["w"][~MASK].any()
    elif name != "view":
        np.testing.assert_array_equal(found.masks["w"], expected.masks["w"])


def weight_norm(p, x):
    return x @ (p["w"] / jnp.linalg.norm(p["w"], axis=0, keepdims=True))


@pytest.mark.parametrize("prune", DRIVERS)
def test_a_weight_norm_is_masked_and_its_error_is_that_of_the_function(prune) -> None:
    found = prune(weight_norm, {"w": W}, [X], Grown(), sparsity=0.5)
    np.testing.assert_array_equal(found.params["w"], np.where(found.masks["w"], W, 0))
    before, after = weight_norm({"w": W}, X), weight_norm(found.params, X)
    assert found.layers[0].error == pytest.approx(
        float(jnp.linalg.norm(after - before) / jnp.linalg.norm(before)), 1e-3
    )
    assert "masked only" in found.layers[0].note


def standardised(p, x):
    return x @ (p["w"] - jnp.mean(p["w"], 0, keepdims=True))


def low_rank(p, x):
    return x @ (p["w"] + jax.lax.stop_gradient(SCALE))


def two_scales(p, x):
    return x @ (p["w"] * SCALE), x @ (p["w"] * SCALE.T)


def scale_of_the_step(p, x):
    return jax.lax.scan(lambda x, s: (jnp.tanh(x @ (p["w"] * s)), None), x, STACK["s"])[0]


UNPRUNABLE = {standardised: "no zeros of what", low_rank: "no zeros of what", two_scales: "in different ways"}
UNPRUNABLE |= {scale_of_the_step: "at each step"}


@pytest.mark.parametrize("function", UNPRUNABLE, ids=lambda f: f.__name__)
def test_what_pruning_would_leave_dense_is_left_out_with_the_reason(function) -> None:
    def apply_fn(p, x):
        return function(p, x @ p["first"])

    params = {"first": W, "w": W}
    for prune in DRIVERS:
        found = prune(apply_fn, params, [X], wanda(), sparsity=0.5)
        assert [layer.name for layer in found.layers] == ["first"]
        assert UNPRUNABLE[function] in found.skipped["w"] and "not pruned: w: " in str(found)
        np.testing.assert_array_equal(found.params["w"], W)
        for options in ({"where": "w"}, {"strict": True}):
            with pytest.raises(ValueError, match="these parameters cannot be pruned"):
                prune(apply_fn, params, [X], wanda(), sparsity=0.5, **options)


@pytest.mark.parametrize("name", ["scale", "scan"])
def test_allocations_see_the_product(name) -> None:
    apply_fn, params, plain, own = plain_of(name)
    for measure in (outliers, sensitivities):
        found, expected = (
            measure(jp.trace(f, p, X), p, jp.calibrate(f, p, [X], jp.stats.gram))
            for f, p in ((apply_fn, params), (plain, own))
        )
        np.testing.assert_allclose(found["w"], expected["w"], rtol=1e-3)


def outliers(model, params, stats):
    return owl(model, params, stats, 0.5, threshold=2.0, where="w")


def sensitivities(model, params, stats):
    return layer_sensitivity(model, params, stats, Grown(), sparsities=(0.2, 0.5), where="w").errors


@pytest.mark.parametrize("apply_fn", [plain_of("mask")[0], weight_norm])
def test_sensitivity_is_the_error_of_pruning(apply_fn) -> None:
    stats = jp.calibrate(apply_fn, {"w": W}, [X], jp.stats.gram)
    found = sensitivities(jp.trace(apply_fn, {"w": W}, X), {"w": W}, stats)["w"]
    pruned = (jp.prune_one_shot(apply_fn, {"w": W}, [X], Grown(), sparsity=s, stats=stats) for s in (0.2, 0.5))
    np.testing.assert_allclose(found, [each.layers[0].error for each in pruned], rtol=1e-3)


def test_structured_pruning_sees_the_product() -> None:
    def apply_fn(p, x):
        return jnp.tanh(x @ p["a"]) @ (p["b"] * SCALE) + p["c"][None]

    def plain(p, x):
        return jnp.tanh(x @ p["a"]) @ p["b"] + p["c"][None]

    params = {"a": W, "b": normal(7, 16, 16), "c": jnp.zeros(16)}
    own, plan, outputs = {**params, "b": params["b"] * SCALE}, jp.Plan({"a:1": jnp.arange(16) % 2 == 0}), []
    for f, p in ((apply_fn, params), (plain, own)):
        model = jp.trace(f, p, X)
        gram, moments = (jp.calibrate(f, p, [X], stat) for stat in (jp.stats.gram, jp.stats.moments))
        repaired = jp.posttraining.repair_consumers(model, plan, p, gram)
        assert not repaired["b"][1::2].any()
        shifted, _ = jp.posttraining.compensate_bias(model, plan, p, moments)
        scores = jp.posttraining.flap_scores(model, p, moments, standardize=False)["a:1"]
        outputs.append((f(repaired, X), shifted["c"], scores))
    for one, other in zip(*outputs, strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-3, atol=1e-3)
