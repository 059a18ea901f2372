"""FLAP, and repairs of what reads a cut, against NumPy: dense, attention, convolution and stacked layers."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from jaxprune.posttraining.structured import compensate_bias, flap_scores, repair_consumers


def normal(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


PARAMS = {"a": normal(0, 6, 10), "b": normal(1, 10, 4), "c": normal(2, 4)}
X = normal(3, 50, 6)


def net(params, x):
    return jnp.tanh(x @ params["a"]) @ params["b"] + params["c"][None]


MODEL = jp.trace(net, PARAMS, X)
HIDDEN = np.tanh(X @ PARAMS["a"])
PLAN = jp.Plan({"a:1": np.arange(10) % 3 != 0})
KEPT = PLAN.keep["a:1"]


def cut(plan, model, params):
    """Zeros in the weights that read what goes."""
    return jp.apply_masks(params, plan.masks(model, consumers_only=True))


def error(apply, new, params, *args) -> float:
    apply = jax.jit(apply)
    return float(jnp.sum(jnp.square(apply(new, *args) - apply(params, *args))))


def test_flap_scores() -> None:
    stats = jp.calibrate(net, PARAMS, [X[:20], X[20:]], jp.stats.moments)
    expected = HIDDEN.var(0) * np.square(PARAMS["b"]).sum(1)
    found = flap_scores(MODEL, PARAMS, stats, standardize=False)
    np.testing.assert_allclose(found["a:1"], expected, rtol=1e-4)
    scores = flap_scores(MODEL, PARAMS, stats)
    np.testing.assert_allclose(scores["a:1"], (expected - expected.mean()) / expected.std(), rtol=1e-3, atol=1e-5)
    assert jp.select(MODEL, scores, 0.3).keep["a:1"].sum() == 7
    with pytest.raises(ValueError, match="no group of the model is read"):
        flap_scores(MODEL, PARAMS, jp.calibrate(net, PARAMS, [X], jp.stats.moments, where="a"))
    with pytest.raises(ValueError, match="hold no means and variances"):
        flap_scores(MODEL, PARAMS, jp.calibrate(net, PARAMS, [X], jp.stats.gram))


def test_flap_of_a_group_without_statistics() -> None:
    apply, params = lambda p, x: jnp.tanh(net(p, x)) @ p["d"], PARAMS | {"d": normal(20, 4, 2)}
    model = jp.trace(apply, params, X)
    found = flap_scores(model, params, jp.calibrate(apply, params, [X], jp.stats.moments, where="d"))
    assert np.isinf(found["a:1"]).all() and np.isfinite(found["b:1"]).all()
    assert list(jp.select(model, found, 0.2).keep) == ["b:1"]


def test_repair_is_least_squares() -> None:
    stats = jp.calibrate(net, PARAMS, [X], jp.stats.gram)
    new = repair_consumers(MODEL, PLAN, PARAMS, stats, damping=0.0)
    expected = np.linalg.lstsq(HIDDEN[:, KEPT], HIDDEN @ PARAMS["b"])[0]
    np.testing.assert_allclose(new["b"][KEPT], expected, rtol=2e-3, atol=2e-3)
    assert (new["b"][~KEPT] == 0).all() and new["a"] is PARAMS["a"]
    damped = repair_consumers(MODEL, PLAN, PARAMS, stats)
    lost = [error(net, p, PARAMS, X) for p in (new, damped, cut(PLAN, MODEL, PARAMS))]
    assert lost[0] <= lost[1] < 0.8 * lost[2]
    small = jp.shrink(MODEL, PLAN, new)
    np.testing.assert_allclose(net(small, X), net(new, X), rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="of b, which read what the plan removes, nothing can be repaired"):
        repair_consumers(MODEL, PLAN, PARAMS, jp.calibrate(net, PARAMS, [X], jp.stats.gram, where="a"))


def convolve(params, x):
    x = jax.nn.relu(jax.lax.conv_general_dilated(x, params["a"], (1, 1), "SAME", dimension_numbers=NHWC))
    x = jax.lax.conv_general_dilated(x, params["b"], (2, 2), "SAME", dimension_numbers=NHWC)
    return x + params["bias"][None, None, None]


NHWC = ("NHWC", "HWIO", "NHWC")
CONV = {"a": normal(4, 3, 3, 2, 8), "b": normal(5, 3, 3, 8, 4), "bias": normal(6, 4)}
IMAGES = normal(7, 6, 8, 8, 2)


def scanned(params, x):
    def layer(x, p):
        return jnp.tanh(jnp.tanh(x @ p["up"]) @ p["down"] + p["bias"][None]), None

    return jax.lax.scan(layer, x, params)[0]


STACK = {"up": normal(8, 3, 5, 9), "down": normal(9, 3, 9, 5), "bias": normal(10, 3, 5)}


@pytest.mark.parametrize(
    ("apply", "params", "x", "group", "size"),
    [(convolve, CONV, IMAGES, "a:3", 8), (scanned, STACK, normal(11, 40, 5), "up:2", 9)],
    ids=["convolution", "scan"],
)
def test_repairs_of_other_layers(apply, params, x, group, size) -> None:
    model = jp.trace(apply, params, x)
    plan = jp.Plan({group: np.arange(size) % 3 != 0})
    plain = error(apply, cut(plan, model, params), params, x)
    new = repair_consumers(model, plan, params, jp.calibrate(apply, params, [x], jp.stats.gram))
    assert error(apply, new, params, x) < 0.8 * plain
    stats = jp.calibrate(apply, params, [x], jp.stats.moments)
    moved, without = compensate_bias(model, plan, params, stats)
    assert without == () and error(apply, cut(plan, model, moved), params, x) < plain
    if apply is scanned:
        wide = stats["down"].variance[..., None] * jnp.square(params["down"])
        found = flap_scores(model, params, stats, standardize=False)
        np.testing.assert_allclose(found[group], wide.sum((0, 2)), rtol=1e-4)
        mean = np.where(plan.keep[group], 0, stats["down"].mean)
        expected = params["bias"] + np.einsum("lio,li->lo", params["down"], mean)
        np.testing.assert_allclose(moved["bias"], expected, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(
        jax.jit(jp.shrunk_function(model, plan))(jp.shrink(model, plan, new), x), apply(new, x), rtol=1e-3, atol=1e-4
    )


def test_head_shaped_kernels() -> None:
    def heads(p, x):
        h = jnp.tanh(jnp.einsum("td,dhk->thk", x, p["value"]))
        return jnp.einsum("thk,hkd->td", h, p["out"]) + p["bias"][None]

    params = {"value": normal(12, 6, 3, 4), "out": normal(13, 3, 4, 6), "bias": normal(14, 6)}
    model = jp.trace(heads, params, X)
    by_head, by_feature = jp.Plan({"value:1": [True, False, True]}), jp.Plan({"value:2": [True, False, True, True]})
    hidden = np.tanh(np.einsum("td,dhk->thk", X, params["value"]))
    grams, means = (jp.calibrate(heads, params, [X], stat) for stat in (jp.stats.gram, jp.stats.moments))
    scores = flap_scores(model, params, means, standardize=False)
    wide = hidden.var(0) * np.square(params["out"]).sum(2)
    np.testing.assert_allclose(scores["value:1"], wide.sum(1), rtol=1e-4)
    np.testing.assert_allclose(scores["value:2"], wide.sum(0), rtol=1e-4)
    for plan, kept in ((by_head, np.s_[:, ::2]), (by_feature, np.s_[:, :, [0, 2, 3]])):
        new = repair_consumers(model, plan, params, grams, damping=0.0)
        left = hidden[kept].reshape(50, -1)
        expected = np.linalg.lstsq(left, hidden.reshape(50, -1) @ params["out"].reshape(-1, 6))[0]
        np.testing.assert_allclose(new["out"][kept[1:]].reshape(-1, 6), expected, rtol=2e-3, atol=2e-3)
        moved, without = compensate_bias(model, plan, params, means)
        gone = hidden.mean(0)
        gone[kept[1:]] = 0
        expected = params["bias"] + np.einsum("hk,hkd->d", gone, params["out"])
        np.testing.assert_allclose(moved["bias"], expected, rtol=1e-4, atol=1e-5)
        assert without == ()


def test_compensation_is_exact_for_constants() -> None:
    params = PARAMS | {"a": PARAMS["a"] * KEPT[None]}

    def apply(p, x):
        return jnp.cos(x @ p["a"]) @ p["b"] - p["c"][None]

    model = jp.trace(apply, params, X)
    stats = jp.calibrate(apply, params, [X], jp.stats.moments)
    new, without = compensate_bias(model, PLAN, params, stats)
    small = jp.shrink(model, PLAN, new)
    np.testing.assert_allclose(apply(small, X), apply(params, X), rtol=1e-4, atol=1e-5)
    assert without == ()


def test_without_a_bias() -> None:
    def apply(p, x):
        return jnp.tanh(x @ p["a"]) @ p["b"]

    model = jp.trace(apply, PARAMS, X)
    new, without = compensate_bias(model, PLAN, PARAMS, jp.calibrate(apply, PARAMS, [X], jp.stats.moments))
    assert without == ("b",) and new["c"] is PARAMS["c"]
