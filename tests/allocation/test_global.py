"""Global thresholds: against one concatenated sort, with bounds on each parameter."""

import dataclasses

import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from jaxprune.allocation import Units

SHAPES = [(6, 8), (5, 5), (2, 40)]


def scores(seed=0):
    rng = np.random.default_rng(seed)
    scales = (10.0, 1.0, 0.1)
    return [np.abs(s * rng.standard_normal(shape)).astype(np.float32) for s, shape in zip(scales, SHAPES, strict=True)]


UNITS = [Units(str(i), s, int(np.prod(s)), 1) for i, s in enumerate(SHAPES)]
TOTAL = sum(u.count for u in UNITS)


def transformed(name, leaf):
    wide = leaf.astype(np.float64)
    if name == "global_":
        return wide
    if name == "global_normalized":
        return wide / np.sqrt((wide**2).sum())
    squares = wide.reshape(-1) ** 2
    return np.array([s / squares[squares >= s].sum() for s in squares]).reshape(leaf.shape)


@pytest.mark.parametrize("name", ["global_", "global_normalized", "lamp"])
@pytest.mark.parametrize("sparsity", [0.3, 0.9])
def test_one_threshold(name, sparsity):
    leaves = scores()
    made = getattr(jp.allocation, name)
    masks = made([jnp.asarray(s) for s in leaves], UNITS, sparsity, None)
    kept = round((1 - sparsity) * TOTAL)
    joined = np.concatenate([transformed(name, s).reshape(-1) for s in leaves])
    want = np.zeros(TOTAL, bool)
    want[np.argsort(-joined)[:kept]] = True
    np.testing.assert_array_equal(np.concatenate([np.asarray(m).reshape(-1) for m in masks]), want)


@pytest.mark.parametrize("name", ["global_", "lamp"])
def test_minimum_and_maximum_density(name):
    leaves = [jnp.asarray(s) for s in scores()]
    made = dataclasses.replace(getattr(jp.allocation, name), minimum_density=0.1, maximum_density=0.6)
    for sparsity in (0.45, 0.8):
        masks = made(leaves, UNITS, sparsity, None)
        counts = [int(m.sum()) for m in masks]
        assert sum(counts) == round((1 - sparsity) * TOTAL)
        for count, unit in zip(counts, UNITS, strict=True):
            assert 0.1 * unit.count <= count <= 0.6 * unit.count
    with pytest.raises(ValueError, match=r"cannot be met by 3 parameters of 153.*between 0\.1 and 0\.6"):
        made(leaves, UNITS, 0.95, None)
    with pytest.raises(ValueError, match="cannot be met"):
        made(leaves, UNITS, 0.2, None)


@pytest.mark.parametrize("progress", [0.25, 0.5, 1.0])
def test_a_maximum_density_on_the_way_to_the_target_goes_by_score(progress):
    rng = np.random.default_rng(0)
    leaves = [rng.random((20, 20), np.float32) for _ in "ab"]
    units = [Units(name, (20, 20), 400, 1) for name in "ab"]
    made = dataclasses.replace(jp.allocation.global_, maximum_density=0.3)
    masks = made([jnp.asarray(s) for s in leaves], units, 0.8, jnp.float32(progress))
    assert sum(int(m.sum()) for m in masks) == 800 - round(640 * progress)
    for leaf, mask in zip(leaves, map(np.asarray, masks), strict=True):
        assert leaf[mask].min() > leaf[~mask].max()


def test_a_fixed_parameter():
    leaves = [jnp.asarray(s) for s in scores()]
    units = [UNITS[0], dataclasses.replace(UNITS[1], sparsity=0.2), UNITS[2]]
    masks = jp.allocation.global_(leaves, units, 0.6, None)
    assert int(masks[1].sum()) == 20
    assert sum(int(m.sum()) for m in masks) == round(0.4 * TOTAL)


def test_lamp_as_a_score_and_as_an_allocation():
    params = {str(i): jnp.asarray(s) for i, s in enumerate(scores(3))}
    one = jp.compute_masks(params, 0.7, allocation=jp.allocation.lamp)
    two = jp.compute_masks(params, 0.7, score=jp.scores.lamp, allocation=jp.allocation.global_)
    for name in params:
        np.testing.assert_array_equal(one[name], two[name])


def test_scores_of_zero_only():
    leaves = [jnp.zeros(s) for s in SHAPES]
    for name in ("global_", "global_normalized", "lamp"):
        masks = getattr(jp.allocation, name)(leaves, UNITS, 0.4, None)
        assert sum(int(m.sum()) for m in masks) == round(0.6 * TOTAL)
