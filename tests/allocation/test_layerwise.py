"""Uniform and ERK: counts against the formula, the budget, and the bounds."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxprune import allocation
from jaxprune.allocation import Units

FAST = settings(max_examples=60, deadline=None, derandomize=True)
shapes = st.lists(
    st.lists(st.integers(1, 40), min_size=1, max_size=4).map(tuple).filter(lambda s: np.prod(s) > 1),
    min_size=1,
    max_size=6,
)


def weights(shapes, **fixed):
    return [Units(str(i), s, int(np.prod(s)), 1, fixed.get(f"p{i}")) for i, s in enumerate(shapes)]


def test_bounds_are_checked():
    for made in (allocation.uniform, allocation.erk, allocation.global_):
        for low, high in [(-0.1, 1.0), (0.0, 1.1), (0.6, 0.5)]:
            with pytest.raises(ValueError, match=f"minimum_density={low}, maximum_density={high}"):
                dataclasses.replace(made, minimum_density=low, maximum_density=high)


@FAST
@given(shapes, st.floats(0, 0.95))
def test_uniform_counts(shapes, sparsity):
    units = weights(shapes)
    counts = allocation.uniform.counts(units, sparsity)
    total = sum(u.count for u in units)
    exact = [(1 - sparsity) * u.count for u in units]
    # Counts of at least one may force a sum above the budget in tiny layers.
    if min(exact) >= 1:
        assert abs(sum(counts) - round((1 - sparsity) * total)) <= 1
    for count, share, unit in zip(counts, exact, units, strict=True):
        assert 1 <= count <= unit.count
        assert abs(count - share) <= 1 + 1e-6 + 1 / len(units) or count == 1


@FAST
@given(shapes, st.floats(0.05, 0.95))
def test_erk_is_the_formula_with_dense_layers(shapes, sparsity):
    units = weights(shapes)
    counts = allocation.erk.counts(units, sparsity)
    sizes = np.array([u.count for u in units], float)
    raw = np.array([sum(s) / np.prod(s) for s in shapes])
    budget = round((1 - sparsity) * sizes.sum())
    # The reference algorithm: the layer whose density would pass 1 becomes dense, the rest is solved again.
    dense = np.zeros(len(units), bool)
    while True:
        scale = (budget - sizes[dense].sum()) / max((raw * sizes)[~dense].sum(), 1e-30)
        over = ~dense & (scale * raw > 1 + 1e-9)
        if not over.any():
            break
        dense[np.argmax(np.where(dense, -1, raw))] = True
    want = np.where(dense, 1.0, scale * raw) * sizes
    for count, share, unit in zip(counts, want, units, strict=True):
        assert 1 <= count <= unit.count
        assert abs(count - share) <= 1 + 1e-4 * max(share, 1)
    if want.min() >= 1:
        assert abs(sum(counts) - budget) <= 1


def test_erk_by_hand():
    # raw = 2 * 10 / 100 = 0.2 and (10 + 1000) / 10000 = 0.101; eps * (20 + 1010) = 5050.
    units = weights([(10, 10), (10, 1000)])
    first = allocation.erk.counts(units, 0.5)
    eps = 5050 / (20 + 1010)
    assert first == [round(eps * 20), 5050 - round(eps * 20)]
    # Low sparsity: the small layer is dense, the other takes what is left.
    assert allocation.erk.counts(units, 0.2) == [100, 8080 - 100]


@pytest.mark.parametrize("made", [allocation.uniform, allocation.erk])
def test_minimum_and_maximum_density(made):
    units = weights([(10, 10), (100, 100), (20, 30)])
    bounded = dataclasses.replace(made, minimum_density=0.08, maximum_density=0.3)
    counts = bounded.counts(units, 0.9)
    for count, unit in zip(counts, units, strict=True):
        assert 0.08 * unit.count - 1 <= count <= 0.3 * unit.count + 1
    assert abs(sum(counts) - 1070) <= 1


def test_budget_outside_the_bounds():
    units = weights([(10, 10), (20, 30)])
    for low, high, sparsity in [(0.2, 1.0, 0.9), (0.0, 0.3, 0.5)]:
        bounded = dataclasses.replace(allocation.uniform, minimum_density=low, maximum_density=high)
        with pytest.raises(ValueError, match=f"cannot be met by 2 parameters of 700.*between {low} and {high}"):
            bounded.counts(units, sparsity)


def test_fixed_sparsities_take_their_part_of_the_budget():
    units = weights([(10, 10), (20, 30), (7, 11)], p1=0.7)
    for made in (allocation.uniform, allocation.erk):
        counts = made.counts(units, 0.6)
        assert counts[1] == 180
        assert abs(sum(counts) - round(0.4 * 777)) <= 1
    everything = weights([(10, 10), (20, 30)], p0=0.5, p1=0.7)
    assert allocation.uniform.counts(everything, 0.0) == [50, 180]


@FAST
@given(
    st.lists(st.tuples(st.integers(2, 40), st.sampled_from([1, 10, 300, 1000])), min_size=1, max_size=12),
    st.floats(0.01, 0.5),
)
def test_units_of_unequal_weight_meet_the_budget_to_one_unit(leaves, sparsity):
    units = [Units(str(i), (count, weight), count, weight) for i, (count, weight) in enumerate(leaves)]
    weights = [u.weight for u in units]
    exact = sum((1 - sparsity) * u.count * u.weight for u in units)
    counts = allocation.uniform.counts(units, sparsity)
    assert abs(np.dot(counts, weights) - exact) <= max(weights) / 2 + 1
    for count, unit in zip(counts, units, strict=True):
        assert abs(count - (1 - sparsity) * unit.count) <= 1 + 1 / unit.weight


@pytest.mark.parametrize("sparsity", [0.55, 0.54, 0.46, 0.45])
def test_a_traced_sparsity_gives_the_counts_of_a_static_one(sparsity):
    units = [Units(f"large{i}", (10, 1000), 10, 1000) for i in range(9)]
    units += [Units(f"small{i}", (10, 10), 10, 10) for i in range(9)]
    counts = jax.jit(lambda s: allocation.uniform.counts(units, s))(jnp.float32(sparsity))
    kept = sum(int(c) * u.weight for c, u in zip(counts, units, strict=True))
    assert abs(kept - (1 - sparsity) * 90_900) <= 500
    static = allocation.uniform.counts(units, sparsity)
    assert abs(kept - np.dot(static, [u.weight for u in units])) <= 1000


def test_erk_of_scalars_and_of_empty_arrays():
    units = [Units("w", (4, 4), 16, 1), Units("scalar", (), 1, 1), Units("empty", (0, 4), 0, 1)]
    assert sum(allocation.erk.counts(units, 0.5)) in (8, 9)
    assert allocation.erk.counts(units, 0.5)[1:] == [1, 0]


def test_explicit_by_path():
    params = {"a": [jnp.ones(2), jnp.ones(3)], "b": jnp.ones(4)}
    assert allocation.explicit(0.5).by_path(params) == {"a/0": 0.5, "a/1": 0.5, "b": 0.5}
    with pytest.raises(ValueError, match=r"sparsity of a/1=-0\.5"):
        allocation.explicit({"a": [0.0, -0.5], "b": 0.0}).by_path(params)
    with pytest.raises(ValueError, match="no prefix"):
        allocation.explicit({"a": 0.0, "z": 0.0}).by_path(params)
