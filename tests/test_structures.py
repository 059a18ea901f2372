"""Structures against plain loops over weights."""

import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxprune as jp

FAST = settings(max_examples=15, deadline=None, derandomize=True)
CASES = [
    ((7, 5), (2, 3), None),
    ((8, 6), (4, 3), None),
    ((3, 3, 5, 6), (2, 4), None),
    ((3, 3, 5, 6), (3, 3), (0, 1)),
    ((6, 4, 5), (4,), (0,)),
    ((3, 2), (8, 8), None),
]


def tiles(shape, size, axes):
    """All tiles, as tuples of slices, with their unit index."""
    axes = axes if axes is not None else tuple(range(-len(size), 0))
    tile = [1] * len(shape)
    for axis, s in zip(axes, size, strict=True):
        tile[axis] = s
    counts = [-(-n // t) for n, t in zip(shape, tile, strict=True)]
    for index in itertools.product(*(range(c) for c in counts)):
        yield index, tuple(slice(i * t, (i + 1) * t) for i, t in zip(index, tile, strict=True))


@pytest.mark.parametrize("reduce", ["mean", "sum", "max"])
@pytest.mark.parametrize(("shape", "size", "axes"), CASES)
def test_block_pools_and_expands_tiles(shape, size, axes, reduce):
    rng = np.random.default_rng(0)
    block = jp.Block(size, axes, reduce)
    scores = -np.abs(rng.standard_normal(shape)).astype(np.float32)  # negative: padding must not win
    pooled = np.asarray(block.pool(jnp.asarray(scores)))
    units = rng.random(pooled.shape) < 0.5
    mask = np.asarray(block.expand(jnp.asarray(units), shape))
    assert mask.shape == shape and mask.dtype == bool
    for index, window in tiles(shape, size, axes):
        np.testing.assert_allclose(pooled[index], getattr(np, reduce)(scores[window]), rtol=1e-5)
        assert (mask[window] == units[index]).all()


@pytest.mark.parametrize("axis", [-1, 0, 2])
def test_channel(axis):
    scores = np.random.default_rng(1).standard_normal((3, 4, 5)).astype(np.float32)
    channel = jp.Channel(axis)
    pooled = channel.pool(jnp.asarray(scores))
    others = tuple(i for i in range(3) if i != axis % 3)
    np.testing.assert_allclose(pooled, scores.mean(others, keepdims=True), rtol=1e-5, atol=1e-7)
    units = pooled > 0
    np.testing.assert_array_equal(channel.expand(units, (3, 4, 5)), np.broadcast_to(units, (3, 4, 5)))


def test_16_bit_scores_are_pooled_in_float32():
    scores = jnp.full((64, 64), 1.001, jnp.bfloat16)
    for structure in (jp.Block((64, 64)), jp.Block((8, 8), reduce="sum"), jp.Channel()):
        pooled = structure.pool(scores)
        assert pooled.dtype == jnp.float32


def test_unstructured():
    scores = jnp.ones((2, 3))
    assert jp.Unstructured().pool(scores) is scores
    assert jp.Unstructured().expand(scores, (2, 3)) is scores


def nm_oracle(scores, n, m, axis):
    moved = np.moveaxis(scores, axis, -1)
    mask = np.ones(moved.shape, bool)
    for index in np.ndindex(moved.shape[:-1]):
        row = moved[index]
        for start in range(0, row.size - m + 1, m):
            group = row[start : start + m].astype(np.float64)
            value = np.where(np.isnan(group), np.inf, group)
            best = np.lexsort((np.arange(m), -value, ~np.isnan(group)))[:n]
            mask[index][start : start + m] = np.isin(np.arange(m), best)
    return np.moveaxis(mask, -1, axis)


@pytest.mark.parametrize(
    ("n", "m", "axis", "shape"),
    [(2, 4, -2, (8, 5)), (2, 4, 0, (10, 3)), (1, 4, -1, (3, 9)), (3, 3, -2, (6, 2)), (5, 20, -2, (23, 3))],
)
def test_nm_equals_a_sort_of_each_group(n, m, axis, shape):
    size = int(np.prod(shape))
    structure = jp.NM(n, m, axis)
    select = jax.jit(structure.select)
    values = st.sampled_from([0.0, -0.0, 1.0, 2.0, -1.0, np.inf, -np.inf, np.nan, 1e-42])

    @FAST
    @given(st.lists(st.one_of(values, st.floats(width=32)), min_size=size, max_size=size))
    def check(drawn):
        scores = np.array(drawn, np.float32).reshape(shape)
        mask = np.asarray(select(jnp.asarray(scores)))
        np.testing.assert_array_equal(mask, nm_oracle(scores, n, m, axis))
        assert mask.sum() == structure.kept(shape)

    check()


def test_nm_on_conv_kernels_and_16_bit_scores():
    scores = np.random.default_rng(2).standard_normal((3, 3, 8, 4)).astype(np.float16)
    mask = jax.jit(jp.NM(2, 4).select)(jnp.asarray(scores))
    np.testing.assert_array_equal(mask, nm_oracle(scores, 2, 4, -2))


def test_nm_first():
    scores = jnp.array([[4.0], [3.0], [2.0], [1.0]])
    mask = jp.NM(2, 4).select(scores, jnp.array([[False], [False], [False], [True]]))
    assert mask[:, 0].tolist() == [True, False, False, True]


def test_nm_remainder_and_strict():
    mask = jp.NM(1, 4).select(jnp.arange(6.0)[:, None])
    assert mask[:, 0].tolist() == [False, False, False, True, True, True]
    assert jp.NM(1, 4).select(jnp.zeros((3, 2))).all()
    with pytest.raises(ValueError, match=r"6.*4"):
        jp.NM(1, 4, strict=True).select(jnp.arange(6.0)[:, None])
    jp.NM(1, 3, strict=True).select(jnp.arange(6.0)[:, None])


@pytest.mark.parametrize(("n", "m"), [(5, 4), (0, 4), (-1, 4), (1.5, 4), (2, 0)])
def test_bad_nm(n, m):
    with pytest.raises(ValueError, match=f"n={n}, m={m}.*1 <= n <= m"):
        jp.NM(n, m)


@pytest.mark.parametrize("shape", [(), (0, 2), (2, -1), (1.5,)])
def test_bad_block_shape(shape):
    with pytest.raises(ValueError, match="positive integer"):
        jp.Block(shape)


def test_other_bad_structures():
    with pytest.raises(ValueError, match="one size for each axis"):
        jp.Block((2, 2), axes=(0,))
    with pytest.raises(ValueError, match="reduce='median'"):
        jp.Block((2, 2), reduce="median")
    for structure in (jp.Block((2, 2)), jp.Channel(1), jp.NM(2, 4)):
        with pytest.raises(ValueError, match=r"shape \(3,\) has no axis"):
            (structure.select if isinstance(structure, jp.NM) else structure.pool)(jnp.ones(3))
