"""SparseGPT against a naive sweep in float64, and its factorisation where that is hard."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from jaxprune.posttraining import repaired, sparsegpt, sweep, wanda
from jaxprune.posttraining._factorization import inverse_factor
from tests.posttraining.layers import GRAM, INPUTS, OUT, WEIGHTS, K, layer_error, prune

METHOD = sparsegpt(block_size=16)
SWEEP = jax.jit(lambda w, g, m: sweep()(w, g, m))


def reference(weights, gram, *, mask=None, sparsity=None, pattern=None, block=16, damping=0.01):
    """Column by column, with the remaining inverse computed anew at each: no factor, no blocks of updates."""
    w, gram = weights.astype(np.float64), gram.astype(np.float64)
    columns = len(gram)
    damped = gram + damping * np.diagonal(gram).mean() * np.eye(columns)
    keep = np.ones(w.shape, bool) if mask is None else mask.copy()
    # The pivot of column j in the inverse over the columns from j on.
    pivots = np.array([np.linalg.inv(damped[j:, j:])[0, 0] for j in range(columns)])
    done = 0
    for j in range(columns):
        if sparsity is not None and j % block == 0:
            end = min(j + block, columns)
            part = (w[:, j:end] ** 2 / pivots[j:end]).reshape(-1)
            total = round((1 - sparsity) * end * len(w))
            keep[:, j:end] = (part >= np.sort(part)[len(part) - (total - done)]).reshape(len(w), -1)
            done = total
        if pattern is not None and j % pattern[1] == 0 and j + pattern[1] <= columns:
            n, m = pattern
            scores = w[:, j : j + m] ** 2 / pivots[j : j + m]
            keep[:, j : j + m] = np.argsort(np.argsort(-scores, 1), 1) < n
        inverse = np.linalg.inv(damped[j:, j:])
        w[:, j:] -= np.outer(np.where(keep[:, j], 0, w[:, j]) / inverse[0, 0], inverse[0])
        w[:, j] = np.where(keep[:, j], w[:, j], 0)
    return w, keep


@pytest.mark.parametrize(
    ("structure", "options"),
    [
        (jp.Unstructured(), {"sparsity": 0.6}),
        (jp.NM(2, 4), {"pattern": (2, 4)}),
        (jp.NM(1, 3), {"pattern": (1, 3)}),
        (jp.NM(7, 20), {"pattern": (7, 20)}),
    ],
)
def test_against_the_naive_sweep(structure, options):
    found = prune(METHOD, WEIGHTS, GRAM, options.get("sparsity", 0.5), structure)
    weights, keep = reference(WEIGHTS, GRAM, **options)
    np.testing.assert_array_equal(found[1], keep)
    np.testing.assert_allclose(found[0], weights, rtol=1e-3, atol=1e-5)


def test_a_fixed_mask_and_columns_without_input():
    alive = np.arange(K) % 9 != 4
    x = np.where(alive, INPUTS, 0)
    gram = x.T @ x
    mask = np.random.default_rng(0).random(WEIGHTS.shape) < 0.5
    swept, _ = SWEEP(jnp.asarray(WEIGHTS), jnp.asarray(gram), jnp.asarray(mask))
    want, _ = reference(WEIGHTS[:, alive], gram[np.ix_(alive, alive)], mask=mask[:, alive])
    np.testing.assert_allclose(np.asarray(swept)[:, alive], want, rtol=1e-3, atol=1e-5)
    np.testing.assert_array_equal(np.asarray(swept)[:, ~alive], np.where(mask, WEIGHTS, 0)[:, ~alive])
    _, chosen, info = prune(METHOD, WEIGHTS, gram, 0.6)
    assert not np.asarray(chosen)[:, ~alive].any()
    assert int(chosen.sum()) == round(0.4 * WEIGHTS.size) and not bool(info["fallback"])
    _, pattern, _ = prune(METHOD, WEIGHTS, gram, 0.5, jp.NM(2, 4))
    assert (np.asarray(pattern)[:, :44].reshape(OUT, 11, 4).sum(2) == 2).all()


def test_more_features_than_rows():
    x = INPUTS[:20]
    gram = x.T @ x
    weights, _, info = prune(METHOD, WEIGHTS, gram, 0.6)
    plain, _, _ = prune(wanda(), WEIGHTS, gram, 0.6)
    assert np.isfinite(weights).all() and not bool(info["fallback"])
    assert layer_error(WEIGHTS, weights, gram) < layer_error(WEIGHTS, plain, gram)


def test_damping_is_raised_where_the_factorisation_fails():
    factor = jax.jit(inverse_factor, static_argnums=1)
    eye = np.eye(6, dtype=np.float32)
    off = (np.ones((6, 6), np.float32) - eye) * np.sign(np.outer(np.arange(6) - 2.5, np.arange(6) - 2.5))
    for strength, used, diagonal in [(0.9, 0.01, False), (1.05, 0.1, False), (1.5, 1.0, False), (4.0, 1.0, True)]:
        gram = 3 * (eye + strength * off)
        upper, damping, fallback = factor(jnp.asarray(gram), 0.01)
        assert float(damping) == pytest.approx(used) and bool(fallback) == (used > 0.01 or diagonal)
        target = gram + used * 3 * eye
        if diagonal:
            target = np.diag(np.diagonal(target))
        np.testing.assert_allclose(np.asarray(upper).T @ np.asarray(upper), np.linalg.inv(target), rtol=2e-3, atol=2e-4)
    # Layers of a stack do not disturb one another.
    grams = jnp.stack([jnp.asarray(3 * (eye + s * off)) for s in (0.9, 1.05)])
    _, damping, fallback = jax.jit(jax.vmap(lambda g: inverse_factor(g, 0.01)))(grams)
    np.testing.assert_allclose(damping, [0.01, 0.1], rtol=1e-6)
    assert fallback.tolist() == [False, True]
    assert np.isfinite(factor(jnp.zeros((6, 6)), 0.0)[0]).all()


def test_the_facts_of_a_failure_reach_the_caller():
    bad = GRAM.copy()
    bad[0, 1] = bad[1, 0] = 1.05 * np.sqrt(bad[0, 0] * bad[1, 1])
    weights, _, info = prune(METHOD, WEIGHTS, bad, 0.6)
    assert bool(info["fallback"]) and info["damping"] > 0.05 and np.isfinite(weights).all()
    repair = repaired(METHOD)
    assert bool(prune(repair, WEIGHTS, bad, 0.6)[2]["fallback"])


def test_the_scale_of_the_inputs_does_not_matter():
    dead = np.where(np.arange(K) == 3, 0, GRAM)
    dead[3] = 0
    one = prune(METHOD, WEIGHTS, dead, 0.6)
    other = prune(METHOD, WEIGHTS, dead * 2.0**-30, 0.6)
    np.testing.assert_array_equal(one[1], other[1])
    np.testing.assert_allclose(one[0], other[0], rtol=1e-5)
