"""Structure of zeros: what made them is found, and random zeros are not taken for structure."""

import itertools
import math

import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxprune import patterns
from jaxprune.patterns import find_structure


def weights(shape, seed=0):
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def keep_n_of_m(array, n, m, axis):
    """The NumPy definition: the n largest of every m along an axis; the remainder stays."""
    moved = np.moveaxis(array, axis, -1).copy()
    whole = moved.shape[-1] // m * m
    groups = moved[..., :whole].reshape(*moved.shape[:-1], -1, m)
    rank = np.argsort(np.argsort(-np.abs(groups), axis=-1), axis=-1)
    moved[..., :whole] = np.where(rank < n, groups, 0).reshape(*moved.shape[:-1], whole)
    return np.moveaxis(moved, -1, axis)


def zero_tiles(array, rows, columns, share, seed=1):
    """Sets whole tiles of the last two axes to zero."""
    grid = (*array.shape[:-2], -(-array.shape[-2] // rows), -(-array.shape[-1] // columns))
    keep = np.random.default_rng(seed).permutation(math.prod(grid)).reshape(grid) >= share * math.prod(grid)
    keep = np.repeat(np.repeat(keep, rows, -2), columns, -1)[..., : array.shape[-2], : array.shape[-1]]
    return np.where(keep, array, 0)


def nm(found):
    return [(pattern.n, pattern.m, pattern.axis) for pattern in found.groups]


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize(("n", "m"), [(1, 2), (1, 4), (2, 4), (3, 4), (4, 8), (3, 8), (8, 16), (1, 16), (5, 32)])
def test_the_pattern_itself_is_found_not_one_that_it_implies(n, m, axis):
    found = find_structure(keep_n_of_m(weights((64, 96)), n, m, axis))
    assert nm(found) == [(n, m, axis)]
    assert found.groups[0].exact
    assert found.tiles is None


@pytest.mark.parametrize("axis", range(4))
def test_a_remainder_that_stays_dense(axis):
    found = find_structure(keep_n_of_m(weights((14, 15, 18, 13)), 2, 4, axis))
    assert nm(found) == [(2, 4, axis)]


def test_both_axes_at_once():
    mask = np.tile(np.array([[1, 1, 0, 0], [0, 0, 1, 1]] * 2, bool), (8, 8))
    mask = mask[:, np.concatenate([4 * g + np.random.default_rng(g).permutation(4) for g in range(8)])]
    assert {(n, m, axis) for n, m, axis in nm(find_structure(mask))} >= {(2, 4, 1)}


def test_fewer_than_n_in_some_groups():
    pruned = keep_n_of_m(weights((128, 128)), 2, 4, 0)
    pruned[np.random.default_rng(2).random(pruned.shape) < 0.3] = 0
    (pattern,) = find_structure(pruned).groups
    assert (pattern.n, pattern.m, pattern.axis, pattern.exact) == (2, 4, 0, False)
    assert str(pattern) == "2:4 along axis 0 (at most)"


def test_one_group_that_breaks_the_pattern_ends_the_claim():
    pruned = keep_n_of_m(weights((64, 64)), 2, 4, 0)
    pruned[8:12, 5] = 1
    assert nm(find_structure(pruned)) == []


def fits(array, n, m):
    return (np.count_nonzero(array.reshape(-1, m, array.shape[1]), axis=1) <= n).all()


def test_random_zeros_that_fit_are_not_claimed():
    random = np.where(np.random.default_rng(0).random((64, 64)) < 0.02, 1.0, 0.0)
    assert fits(random, 2, 4) and fits(random, 4, 8)
    assert find_structure(random).groups == ()


@settings(max_examples=150, deadline=None)
@given(
    st.lists(st.integers(1, 40), min_size=1, max_size=3),
    st.one_of(st.floats(0, 1), st.sampled_from([0.01, 0.9, 0.98, 0.995])),
    st.integers(0, 2**32 - 1),
)
def test_random_zeros_have_no_structure(shape, density, seed):
    nonzero = np.random.default_rng(seed).random(shape) < density
    found = find_structure(nonzero)
    assert found.zeros == np.sum(nonzero == 0)
    assert found.groups == () and found.tiles is None
    assert not any(dead.beyond_chance for dead in found.dead)
    # That a slice is empty is a fact in any case.
    for axis in range(nonzero.ndim if 0 < found.zeros < nonzero.size and nonzero.ndim > 1 else 0):
        empty = np.sum(~nonzero.any(axis=tuple(k for k in range(nonzero.ndim) if k != axis)))
        assert sum(dead.count for dead in found.dead if dead.axis == axis) == empty


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 7), st.sampled_from([2, 4, 8]), st.integers(0, 1), st.integers(0, 2**32 - 1))
def test_every_exact_pattern_of_a_large_array_is_found(n, m, axis, seed):
    n = min(n, m - 1)
    assert (n, m, axis) in nm(find_structure(keep_n_of_m(weights((64, 64), seed), n, m, axis)))


@pytest.mark.parametrize("tile", [(4, 4), (8, 8), (1, 4), (4, 1), (16, 8), (32, 32)])
@pytest.mark.parametrize("shape", [(128, 96), (3, 3, 64, 64), (125, 90)])
def test_blocks(tile, shape):
    pruned = zero_tiles(weights(shape), *tile, 0.5)
    found = find_structure(pruned)
    assert found.tiles is not None and found.tiles.shape == tile
    assert found.tiles.coverage == 1
    assert found.groups == ()
    live = [k for k in range(-(-shape[-2] // tile[0])) if pruned[..., tile[0] * k : tile[0] * (k + 1), :].any()]
    if not found.dead:
        count = math.prod(shape[:-2]) * len(live) * -(-shape[-1] // tile[1])
        assert found.tiles.count == count
        assert found.tiles.zero == round(count / 2)


def test_kernels_of_a_convolution_as_pytorch_stores_it():
    kernels = weights((24, 16, 3, 3)) * (np.random.default_rng(0).random((24, 16, 1, 1)) < 0.5)
    found = find_structure(kernels)
    assert found.tiles is not None and found.tiles.shape == (3, 3)


def test_blocks_beside_dead_channels():
    pruned = zero_tiles(weights((128, 128)), 8, 8, 0.5)
    pruned[:, 20:45] = 0
    found = find_structure(pruned)
    assert found.tiles is not None and found.tiles.shape == (8, 8)
    assert (1, 25) in [(dead.axis, dead.count) for dead in found.dead]
    # Tiles that lie wholly in the dead columns 24 to 39 count neither as zero nor at all.
    assert found.tiles.count == 16 * 14
    grid = pruned.reshape(16, 8, 16, 8).any(axis=(1, 3))
    assert found.tiles.zero == np.sum(~np.delete(grid, [3, 4], axis=1))


def test_a_few_other_zeros_do_not_hide_blocks():
    pruned = zero_tiles(weights((128, 128)), 8, 8, 0.5)
    pruned[np.random.default_rng(3).random(pruned.shape) < 0.005] = 0
    found = find_structure(pruned)
    assert found.tiles is not None and found.tiles.shape == (8, 8)
    assert patterns.COVERAGE <= found.tiles.coverage < 1


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_dead_channels_are_no_blocks_and_no_groups(axis):
    shape = (12, 16, 20)
    keep = np.arange(shape[axis]) % 2 == 0
    pruned = weights(shape) * keep.reshape([-1 if k == axis else 1 for k in range(3)])
    found = find_structure(pruned)
    assert [(dead.axis, dead.count, dead.beyond_chance) for dead in found.dead] == [(axis, shape[axis] // 2, True)]
    assert found.groups == () and found.tiles is None


@pytest.mark.parametrize("dead_axis", [0, 1])
def test_groups_beside_dead_channels(dead_axis):
    pruned = keep_n_of_m(weights((64, 64)), 2, 4, 0)
    (pruned if dead_axis == 0 else pruned.T)[5:25] = 0
    found = find_structure(pruned)
    assert nm(found) == [(2, 4, 0)]
    assert [(dead.axis, dead.count) for dead in found.dead if dead.beyond_chance] == [(dead_axis, 20)]


def test_the_bound_is_an_upper_bound():
    """All placements of 8 zeros in 4x4 are counted, for the probability of 2:4 and of dead rows."""
    fits, empty, total = 0, 0, 0
    for chosen in itertools.combinations(range(16), 8):
        mask = np.ones(16, bool)
        mask[list(chosen)] = False
        counts = mask.reshape(4, 4).sum(axis=0)
        fits += bool((counts <= 2).all())
        empty += bool((counts == 0).sum() >= 2)
        total += 1
    two_rows = np.ones((4, 4), bool)
    two_rows[:, :2] = False
    (dead,) = find_structure(two_rows).dead
    assert empty / total <= 10**dead.log10_chance < 1
    exact = np.array([[1, 1, 0, 0], [0, 0, 1, 1], [1, 0, 1, 0], [0, 1, 0, 1]], bool).T
    assert find_structure(exact).groups == ()  # 0.1 of all placements fit: too few weights to tell
    assert fits / total > patterns.CHANCE


@pytest.mark.parametrize("dtype", [np.float16, np.float64, np.int8, bool, np.complex64, ml_dtypes.bfloat16])
def test_dtypes(dtype):
    pruned = keep_n_of_m(np.where(weights((32, 32)) > 0, 1.0, 2.0), 2, 4, 0).astype(dtype)
    assert nm(find_structure(pruned)) == [(2, 4, 0)]


def test_minus_zero_is_zero_and_nan_is_not():
    assert find_structure(np.array([-0.0, np.nan, 0.0, 1.0])).zeros == 2


@pytest.mark.parametrize(
    ("array", "says"),
    [
        (np.ones((3, 3)), "dense"),
        (np.zeros((3, 3)), "all zero"),
        (np.zeros(()), "all zero"),
        (np.ones((0, 4)), "dense"),
        (np.eye(3), "unstructured"),
        (np.array([[0.0, 1.0], [0.0, 1.0]]), "unstructured; axis 1: 1 of 2 dead (chance)"),
    ],
)
def test_words(array, says):
    found = find_structure(array)
    assert str(found) == says == found.to_dict()["text"]


def test_text_has_no_zeros():
    with pytest.raises(TypeError, match="dtype <U1 has no zeros"):
        find_structure(np.array(["a"]))


def test_layout_in_memory_does_not_matter():
    pruned = keep_n_of_m(weights((64, 32)), 2, 4, 0)
    assert nm(find_structure(np.asfortranarray(pruned))) == nm(find_structure(pruned[::1])) == [(2, 4, 0)]
    assert nm(find_structure(pruned.T)) == [(2, 4, 1)]
