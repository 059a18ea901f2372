"""Scores against their formulas in NumPy."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from jaxprune import scores

RNG = np.random.default_rng(0)
W = RNG.standard_normal((4, 5)).astype(np.float32)
G = RNG.standard_normal((4, 5)).astype(np.float32)
S = RNG.random((4, 5)).astype(np.float32)
PARAMS, GRADS, STATS = ({"w": jnp.asarray(a)} for a in (W, G, S))


@pytest.mark.parametrize(
    ("score", "inputs", "want"),
    [
        (scores.magnitude, {}, np.abs(W)),
        (scores.saliency, {"grads": GRADS}, np.abs(W * G)),
        (scores.taylor, {"grads": GRADS}, (W * G) ** 2),
        (scores.fisher, {"grads": GRADS}, 0.5 * W**2 * G**2),
        (scores.fisher, {"stats": STATS}, 0.5 * W**2 * S),
        (scores.fisher, {"grads": GRADS, "stats": STATS}, 0.5 * W**2 * S),
        (scores.fisher, {"grads": GRADS, "stats": {"w": jnp.zeros((4, 5))}}, 0.5 * W**2 * G**2),
        (scores.movement, {"grads": GRADS}, -W * G),
    ],
)
def test_formulas(score, inputs, want):
    got = score(PARAMS, **inputs)["w"]
    np.testing.assert_allclose(got, want, rtol=1e-6)
    assert jax.tree.structure(score(PARAMS, **inputs)) == jax.tree.structure(PARAMS)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
def test_squares_of_16_bit_gradients_do_not_underflow(dtype):
    params, grads = {"w": jnp.array([2.0, 3.0], dtype)}, {"w": jnp.array([1e-4, 2e-4], dtype)}
    for score in (scores.taylor, scores.fisher, scores.saliency, scores.movement, scores.lamp):
        got = score(params, grads=grads)["w"]
        assert got.dtype == jnp.float32
        assert (got != 0).all()
    assert scores.magnitude(params)["w"].dtype == dtype


def test_integer_leaves_pass():
    params = {"w": jnp.ones((2, 2)), "i": jnp.arange(3), "f": jnp.array([True])}
    key = jax.random.key(0)
    for score in (scores.magnitude, scores.random, scores.lamp, scores.saliency, scores.fisher):
        got = score(params, grads=params, key=key)
        assert got["i"].tolist() == [0, 1, 2] and got["f"].dtype == bool


def test_random():
    params = {"a": jnp.zeros((64, 64)), "b": jnp.zeros((64, 64), jnp.bfloat16)}
    one, again = scores.random(params, key=jax.random.key(1)), scores.random(params, key=jax.random.key(1))
    other = scores.random(params, key=jax.random.key(2))
    for name in params:
        assert one[name].dtype == jnp.float32
        assert ((one[name] >= 0) & (one[name] < 1)).all()
        assert abs(float(one[name].mean()) - 0.5) < 0.03
        np.testing.assert_array_equal(one[name], again[name])
        assert not np.array_equal(one[name], other[name])
    assert not np.array_equal(one["a"], one["b"])


@pytest.mark.parametrize("kind", ["distinct", "ties", "zeros", "one"])
def test_lamp_against_quadratic_time(kind):
    made = {
        "distinct": W,
        "ties": np.round(2 * W) / 2,
        "zeros": np.where(W > 0, W, 0),
        "one": np.array([[-3.0]], np.float32),
    }[kind].astype(np.float32)
    squares = made.astype(np.float64).reshape(-1) ** 2
    want = np.array([s / squares[squares >= s].sum() if s else 0.0 for s in squares]).reshape(made.shape)
    got = scores.lamp({"w": jnp.asarray(made)})["w"]
    np.testing.assert_allclose(got, want, rtol=1e-5)
    if kind != "zeros":
        order = np.argsort(np.abs(made).reshape(-1), kind="stable")
        assert (np.diff(np.asarray(got).reshape(-1)[order]) >= 0).all()


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_lamp_keeps_broken_weights_visible(bad):
    """They rank first, and leave the other scores as they are."""
    params = {"w": jnp.asarray(np.append(W.reshape(-1), np.float32(bad)))}
    got = np.asarray(scores.lamp(params)["w"])
    np.testing.assert_allclose(got[:-1], scores.lamp(PARAMS)["w"].reshape(-1), rtol=1e-6)
    assert np.isnan(got[-1]) if np.isnan(bad) else got[-1] == np.inf
    for allocation in (jp.allocation.lamp, jp.allocation.global_normalized):
        mask = jp.compute_masks(params, 0.9, where="w", allocation=allocation)["w"]
        assert mask.tolist() == [False] * 7 + [bool(i == np.argmax(np.abs(W).reshape(-1))) for i in range(7, 20)] + [
            True
        ]


# GraSP


def quadratic(hessian, center):
    hessian, center = jnp.asarray(hessian, jnp.float32), jnp.asarray(center, jnp.float32)

    def loss(params):
        d = params["w"] - center
        return 0.5 * d @ hessian @ d

    return loss


def squared_norm(loss, w):
    gradient = jax.grad(loss)({"w": jnp.asarray(w, jnp.float32)})["w"]
    return float(gradient @ gradient)


def test_grasp_is_the_hessian_vector_product():
    hessian = np.array([[2.0, 0.5], [0.5, 1.0]])
    center, w = np.array([0.3, -1.0]), np.array([1.0, 2.0])
    got = scores.grasp(quadratic(hessian, center))({"w": jnp.asarray(w, jnp.float32)})["w"]
    np.testing.assert_allclose(got, w * (hessian @ (hessian @ (w - center))), rtol=1e-5)


def test_grasp_keeps_the_weight_whose_removal_costs_gradient_flow():
    # The first order change of |g|^2 when a weight shrinks by eps w is -2 eps w (H g) = -2 eps score.
    loss = quadratic([[2.0, 0.5], [0.5, 1.0]], [0.3, 3.0])
    w = np.array([1.0, 2.0])
    score = np.asarray(scores.grasp(loss)({"w": jnp.asarray(w, jnp.float32)})["w"])
    assert score[0] > 0 > score[1]
    eps = 1e-2
    for i in range(2):
        up, down = w.copy(), w.copy()
        up[i] *= 1 + eps
        down[i] *= 1 - eps
        slope = (squared_norm(loss, down) - squared_norm(loss, up)) / (2 * eps)
        np.testing.assert_allclose(slope, -2 * score[i], rtol=1e-2)
    # Taking out the lowest score raises the gradient norm to first order, the highest lowers it.
    small = w * np.array([1.0, 1 - eps])
    assert squared_norm(loss, small) > squared_norm(loss, w)
    small = w * np.array([1 - eps, 1.0])
    assert squared_norm(loss, small) < squared_norm(loss, w)
    mask = jp.compute_masks({"w": jnp.asarray(w, jnp.float32)}, 0.5, score=scores.grasp(loss), where="w")["w"]
    assert mask.tolist() == [True, False]


# SynFlow


def layers(params, x):
    for name in sorted(params):
        x = jax.nn.relu(x @ params[name])
    return x


def test_synflow_by_hand_and_conservation():
    params = {name: RNG.standard_normal(s).astype(np.float32) for name, s in {"a": (3, 4), "b": (4, 2)}.items()}
    got = scores.synflow(layers, jnp.zeros((1, 3)))(jax.tree.map(jnp.asarray, params))
    a, b = np.abs(params["a"]), np.abs(params["b"])
    np.testing.assert_allclose(got["a"], a * b.sum(1)[None], rtol=1e-5)
    np.testing.assert_allclose(got["b"], b * a.sum(0)[:, None], rtol=1e-5)
    # The flow is conserved from layer to layer.
    np.testing.assert_allclose(got["a"].sum(), got["b"].sum(), rtol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.float16, jnp.bfloat16])
def test_synflow_of_16_bit_parameters_is_that_of_their_values(dtype):
    # The flow through four layers of 64 overflows float16.
    narrow = {name: jnp.asarray(4 * RNG.standard_normal((64, 64)), dtype) for name in "abcd"}
    wide = jax.tree.map(lambda w: w.astype(jnp.float32), narrow)
    got = scores.synflow(layers, jnp.zeros((1, 64), dtype))(narrow)
    want = scores.synflow(layers, jnp.zeros((1, 64)))(wide)
    for name in narrow:
        assert got[name].dtype == jnp.float32
        np.testing.assert_array_equal(got[name], want[name])
        assert jnp.isfinite(got[name]).all()


def test_synflow_does_not_see_the_data_or_the_signs():
    params = {"a": jnp.asarray(W)}
    one = scores.synflow(layers, jnp.zeros((2, 4)))(params)["a"]
    two = scores.synflow(layers, jnp.full((2, 4), -7.0))({"a": -params["a"]})["a"]
    np.testing.assert_array_equal(one, two)
    assert (one >= 0).all()


def test_jit():
    for score in (scores.magnitude, scores.taylor, scores.fisher, scores.movement, scores.lamp):
        plain, jitted = score(PARAMS, grads=GRADS), jax.jit(lambda p, g, s=score: s(p, grads=g))(PARAMS, GRADS)
        np.testing.assert_allclose(plain["w"], jitted["w"], rtol=1e-6)
