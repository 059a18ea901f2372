"""Repairs against exact least squares, and the order of the methods by their error."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from jaxprune.posttraining import admm, alps, refit, repaired, sparsegpt, wanda
from tests.posttraining.layers import GRAM, INPUTS, WEIGHTS, K, layer_error, prune


def test_refit_is_least_squares_on_the_mask():
    weights, x = WEIGHTS[:12, :32], INPUTS[:, :32]
    gram = x.T @ x
    mask = np.random.default_rng(0).random(weights.shape) < 0.5
    mask[3], mask[4] = False, True
    damping = 0.01
    system = gram.astype(np.float64) + damping * np.diag(np.diagonal(gram))
    want = np.zeros(weights.shape)
    for row, w, out in zip(mask, weights.astype(np.float64), want, strict=True):
        out[row] = np.linalg.solve(system[np.ix_(row, row)], (system @ w)[row])
    repair = refit(iterations=60, damping=damping)
    found, info = jax.jit(lambda w, g, m: repair(w, g, m))(jnp.asarray(weights), jnp.asarray(gram), jnp.asarray(mask))
    np.testing.assert_allclose(found, want, rtol=1e-3, atol=1e-4 * np.abs(want).max())
    np.testing.assert_array_equal(found[3], np.zeros(32))
    np.testing.assert_allclose(found[4], weights[4], rtol=1e-5)
    assert float(info["damping"]) == pytest.approx(damping)


def test_refit_leaves_columns_without_input_alone():
    gram = np.where(np.arange(K) == 7, 0, GRAM)
    gram[7] = 0
    mask = np.random.default_rng(0).random(WEIGHTS.shape) < 0.5
    found, _ = jax.jit(lambda w, g, m: refit()(w, g, m))(jnp.asarray(WEIGHTS), jnp.asarray(gram), jnp.asarray(mask))
    assert np.isfinite(found).all()
    np.testing.assert_array_equal(found[:, 7], np.where(mask, WEIGHTS, 0)[:, 7])
    for method in (admm(), alps()):
        weights, chosen, _ = prune(method, WEIGHTS, gram, 0.5)
        assert np.isfinite(weights).all() and not chosen[:, 7].any()


@pytest.mark.parametrize("sparsity", [0.5, 0.7])
def test_the_order_of_the_methods(sparsity):
    methods = (wanda(), sparsegpt(block_size=16), repaired(), admm(), alps())
    errors = [layer_error(WEIGHTS, prune(method, WEIGHTS, GRAM, sparsity)[0], GRAM) for method in methods]
    assert errors[0] > errors[1] > max(errors[2:]), errors
    assert errors[2] > errors[4], errors


def test_the_order_under_n_m():
    methods = (sparsegpt(block_size=16), repaired(), alps())
    errors = [layer_error(WEIGHTS, prune(method, WEIGHTS, GRAM, 0.5, jp.NM(2, 4))[0], GRAM) for method in methods]
    assert errors == sorted(errors, reverse=True), errors
