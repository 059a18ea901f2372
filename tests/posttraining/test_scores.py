"""The scores that only choose, against NumPy, and what goes with them."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from jaxprune.calibration import statistics
from jaxprune.posttraining import (
    bias_compensation,
    channel_permutation,
    dsnot,
    magnitude,
    repaired,
    ria,
    sparsegpt,
    sparsegpt_score,
    sweep,
    wanda,
)
from jaxprune.posttraining._choice import choose
from tests.posttraining.layers import make_layer, prune

W, X = make_layer(16, 24, 50, seed=3, mean=0.5)
NORMS = np.linalg.norm(X.astype(np.float64), axis=0)
SIZE = np.abs(W.astype(np.float64))
SCORES = {
    magnitude(group="row"): SIZE,
    wanda(): SIZE * NORMS,
    ria(group="row"): (SIZE / SIZE.sum(0) + SIZE / SIZE.sum(1, keepdims=True)) * NORMS**0.5,
}


@pytest.mark.parametrize("method", SCORES)
@pytest.mark.parametrize("stat", [statistics.column_norms, statistics.gram])
def test_masks_against_numpy(method, stat):
    scores = SCORES[method]
    weights, mask, _ = prune(method, W, stat(jnp.asarray(X)), 0.75)
    want = scores >= np.sort(scores, 1)[:, -6][:, None]
    np.testing.assert_array_equal(mask, want)
    np.testing.assert_array_equal(weights, np.where(want, W, 0))


def test_dead_columns_go_first():
    x = jnp.asarray(X).at[:, 5:9].set(0.0)
    stat = statistics.column_norms(x)
    for method in (wanda(), ria(), ria(power=0.0)):
        mask = prune(method, W, stat, 0.5)[1]
        assert not mask[:, 5:9].any()
        assert mask.sum() == W.size // 2


def test_composites_ask_for_what_is_needed():
    assert repaired(wanda()).stat is statistics.gram
    assert repaired(sparsegpt()).stat is statistics.gram
    assert dsnot(wanda()).stat is statistics.moments
    stat = repaired(dsnot()).stat
    assert stat == repaired(dsnot()).stat and hash(stat) == hash(repaired(dsnot()).stat)
    value = stat(jnp.asarray(X), None)
    assert set(value) == {"select", "repair"} and value["repair"].shape == (24, 24)
    method = repaired(dsnot(sparsegpt_score(group="row")), sweep())
    value = method.stat(jnp.asarray(X), None)
    assert set(value["select"]) == {"initial", "moments"}
    weights, mask, info = prune(method, W, value, 0.5)
    assert (
        (mask.sum(1) == 12).all() and not (weights[~mask]).any() and sorted(info) == ["cycles", "damping", "fallback"]
    )


def test_channel_permutation_spreads_the_strong():
    scores = jnp.asarray(SIZE * NORMS, jnp.float32)
    order = np.asarray(channel_permutation(scores, 4))
    assert sorted(order) == list(range(24))
    totals = SIZE.sum(0) * NORMS
    ranks = np.argsort(np.argsort((SIZE * NORMS).sum(0)))[order].reshape(6, 4)
    # One column of each quarter in every group, dealt to and fro.
    np.testing.assert_array_equal(ranks // 6, np.tile(np.arange(4), (6, 1)))
    np.testing.assert_array_equal(ranks.sum(1), np.full(6, ranks[0].sum()))
    pattern = jax.jit(lambda s: jnp.where(choose(s, None, jp.NM(2, 4)), s, 0).sum())
    assert pattern(scores[:, order]) > pattern(scores)
    assert totals.argmax() in channel_permutation(scores[:, :23], 4)[20:]
    assert channel_permutation(scores[:, :3], 4).shape == (3,)


def test_bias_compensation_keeps_the_mean_of_the_output():
    mask = prune(wanda(), W, statistics.column_norms(jnp.asarray(X)), 0.5)[1]
    added = bias_compensation(jnp.asarray(W), jnp.asarray(mask), statistics.moments(jnp.asarray(X)).mean)
    np.testing.assert_allclose((X @ np.where(mask, W, 0).T).mean(0) + added, (X @ W.T).mean(0), rtol=1e-4, atol=1e-4)


def reference_dsnot(mask, moments, group, cycles=50, tolerance=0.01):
    """Row by row, as the docstring says."""
    mean, variance = np.asarray(moments.mean, np.float64), np.asarray(moments.variance, np.float64)
    squares = np.asarray(moments.squares, np.float64)
    refined = mask.copy()
    for w, row in zip(W.astype(np.float64), refined, strict=True):
        effect, price, initial = w * mean, np.abs(w) * np.sqrt(squares), row.copy()
        error = effect[~row].sum()
        enough = tolerance * np.sqrt((w**2 * squares / len(X)).sum())
        for _ in range(cycles):
            sign, same = np.sign(error), row == initial
            leaving = [j for j in range(len(w)) if initial[j] and same[j] and effect[j] * sign < 0]
            coming = [
                j
                for j in range(len(w))
                if not initial[j]
                and same[j]
                and effect[j] * sign > 0
                and any(i // group == j // group for i in leaving)
            ]
            if not coming or abs(error) <= enough:
                break
            grown = max(coming, key=lambda j: effect[j] * sign / variance[j])
            pruned = min((i for i in leaving if i // group == grown // group), key=lambda i: price[i])
            after = error + effect[pruned] - effect[grown]
            if after * sign <= 0:
                break
            row[[grown, pruned]], error = [True, False], after
    return refined


@pytest.mark.parametrize(("structure", "sparsity"), [(jp.Unstructured(), 0.75), (jp.NM(2, 4), 0.5)])
def test_dsnot_against_numpy(structure, sparsity):
    about = statistics.moments(jnp.asarray(X))
    initial = prune(wanda(), W, about.squares, sparsity, structure)[1]
    weights, mask, info = prune(dsnot(), W, about, sparsity, structure)
    group = 4 if isinstance(structure, jp.NM) else 24
    np.testing.assert_array_equal(mask, reference_dsnot(initial, about, group))
    assert (mask != initial).any() and 0 < int(info["cycles"]) < 50
    # The expected error falls in every row.
    expected = [np.abs(np.where(kept, 0, W) @ np.asarray(about.mean)) for kept in (mask, initial)]
    assert (expected[0] <= expected[1] + 1e-6).all()
    np.testing.assert_array_equal(weights, np.where(mask, W, 0))
