"""Selection against a NumPy sort, on raw bit patterns: every kind of number there is."""

import contextlib

import jax
import jax.numpy as jnp
import ml_dtypes
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jaxprune import selection

FAST = settings(max_examples=25, deadline=None, derandomize=True)
DTYPES = {"float32": np.float32, "bfloat16": ml_dtypes.bfloat16, "float16": np.float16, "float64": np.float64}
SPECIAL = [0.0, -0.0, np.inf, -np.inf, np.nan, -np.nan, 1.0, -1.0, 2.0, 0.5]
N = 24


def width(dtype):
    return 8 * np.dtype(dtype).itemsize


def x64_for(dtype):
    return jax.enable_x64(True) if np.dtype(dtype) == np.float64 else contextlib.nullcontext()


def bits(dtype, n=N):
    """Arrays of arbitrary bit patterns: NaNs, subnormals and ties come often."""
    w = width(dtype)
    common = [int(v) for v in np.array(SPECIAL, dtype).view(f"uint{w}")]
    common += [1, 2, (1 << (w - 1)) | 1]  # the smallest subnormals
    element = st.one_of(st.sampled_from(common), st.integers(0, 2**w - 1))
    return st.lists(element, min_size=n, max_size=n).map(lambda v: np.array(v, f"uint{w}").view(dtype))


def order(scores, among=None, first=None):
    """Flat indices from the highest rank to the lowest; stable, so ties keep their order."""
    flat = scores.reshape(-1).astype(np.float64)
    nan = np.isnan(flat)
    value = np.where(nan, np.inf, flat)
    group = np.ones(flat.size, int)
    if among is not None:
        group[~among.reshape(-1)] = 0
    if first is not None:
        group[first.reshape(-1)] = 2
    # Within `first`, and outside `among`, all are equal.
    value, nan = np.where(group == 1, value, 0.0), nan & (group == 1)
    return np.lexsort((np.arange(flat.size), -value, ~nan, -group))


def oracle(scores, k, among=None, first=None):
    mask = np.zeros(scores.size, bool)
    mask[order(scores, among, first)[:k]] = True
    return mask.reshape(scores.shape)


@pytest.mark.parametrize("name", DTYPES)
def test_top_k_equals_a_stable_sort(name):
    dtype = DTYPES[name]

    @FAST
    @given(bits(dtype), st.integers(0, N))
    def check(scores, k):
        with x64_for(dtype):
            got = selection.top_k_mask(jnp.asarray(scores), k)
            assert got.dtype == bool
            np.testing.assert_array_equal(got, oracle(scores, k))

    check()


@pytest.mark.parametrize("name", DTYPES)
def test_rows_equal_a_stable_sort(name):
    dtype = DTYPES[name]
    rows = jax.jit(selection.row_top_k_mask, static_argnames="k")

    @settings(FAST, max_examples=12)
    @given(bits(dtype), st.sampled_from([0, 1, 3, 6] if dtype is np.float32 else [2]))
    def check(scores, k):
        scores = scores.reshape(2, 2, 6)
        with x64_for(dtype):
            got = np.asarray(rows(jnp.asarray(scores), k=k))
        want = np.stack([oracle(row, k) for row in scores.reshape(-1, 6)]).reshape(scores.shape)
        np.testing.assert_array_equal(got, want)

    check()


@pytest.mark.parametrize("shape", [(N,), (4, 6), (2, 3, 4), (1, N), (N, 1)])
def test_ties_go_to_the_lowest_flat_index_in_every_shape(shape):
    scores = np.tile(np.array([1.0, 2.0, 1.0], np.float32), N // 3).reshape(shape)
    for k in range(N + 1):
        np.testing.assert_array_equal(selection.top_k_mask(jnp.asarray(scores), k), oracle(scores, k))


@FAST
@given(bits(np.float32), bits(np.float32, 6), bits(np.float32, 1), st.integers(0, N + 7))
def test_many_leaves_are_one_array(a, b, c, k):
    leaves = [a.reshape(4, 6), b.reshape(6), c.reshape(())]
    got = selection.top_k_masks([jnp.asarray(x) for x in leaves], k)
    assert [m.shape for m in got] == [x.shape for x in leaves]
    joined = np.concatenate([np.asarray(m).reshape(-1) for m in got])
    np.testing.assert_array_equal(joined, oracle(np.concatenate([a, b, c]), k))


def test_ties_between_leaves_go_to_the_earlier_leaf():
    leaves = [jnp.ones((2, 2)), jnp.ones(3), jnp.full((2,), 2.0)]
    for k, want in [(2, (0, 0, 2)), (3, (1, 0, 2)), (6, (4, 0, 2)), (7, (4, 1, 2)), (9, (4, 3, 2))]:
        masks = selection.top_k_masks(leaves, k)
        assert tuple(int(m.sum()) for m in masks) == want
        for mask in masks[:2]:
            flat = np.asarray(mask).reshape(-1)
            assert flat[: flat.sum()].all()


def test_mixed_dtypes_are_compared_in_the_widest():
    a = jnp.array([1.0, 3.0], jnp.bfloat16)
    b = jnp.array([1.0 + 2**-20, 2.0], jnp.float32)
    assert [m.tolist() for m in selection.top_k_masks([a, b], 3)] == [[False, True], [True, True]]


@FAST
@given(
    bits(np.float32),
    st.lists(st.booleans(), min_size=N, max_size=N),
    st.lists(st.booleans(), min_size=N, max_size=N),
    st.integers(0, N),
)
def test_among_and_first(scores, among, first, k):
    among, first = np.array(among), np.array(first)
    given_scores = jnp.asarray(scores)
    got = selection.top_k_mask(given_scores, k, among=jnp.asarray(among))
    np.testing.assert_array_equal(got, oracle(scores, k, among=among))
    got = selection.top_k_mask(given_scores, k, first=jnp.asarray(first))
    np.testing.assert_array_equal(got, oracle(scores, k, first=first))
    got = selection.top_k_mask(given_scores, k, among=jnp.asarray(among), first=jnp.asarray(first))
    np.testing.assert_array_equal(got, oracle(scores, k, among=among, first=first))


def test_traced_k_is_one_program():
    scores = np.random.default_rng(0).standard_normal((5, 7)).astype(np.float32)
    traces = []

    @jax.jit
    def choose(s, k):
        traces.append(k)
        return selection.top_k_mask(s, k)

    for k in (0, 1, 17, 34, 35):
        np.testing.assert_array_equal(choose(jnp.asarray(scores), jnp.asarray(k, jnp.int32)), oracle(scores, k))
    assert len(traces) == 1


def test_traced_k_of_rows_is_one_program():
    scores = np.random.default_rng(4).integers(-3, 4, (6, 9)).astype(np.float32)
    choose = jax.jit(selection.row_top_k_mask)
    for k in (0, 1, 4, 9):
        want = np.stack([oracle(row, k) for row in scores])
        np.testing.assert_array_equal(choose(jnp.asarray(scores), jnp.asarray(k, jnp.int32)), want)
        np.testing.assert_array_equal(selection.row_top_k_mask(jnp.asarray(scores), k), want)
    many = jax.vmap(selection.row_top_k_mask)(jnp.stack([scores, -scores]), jnp.array([2, 5], jnp.int32))
    np.testing.assert_array_equal(many.sum(-1), np.repeat([[2], [5]], 6, 1))


def test_vmap_over_scores_and_k():
    scores = np.random.default_rng(1).integers(-2, 3, (4, 12)).astype(np.float32)
    ks = np.array([0, 3, 7, 12], np.int32)
    got = jax.vmap(selection.top_k_mask)(jnp.asarray(scores), jnp.asarray(ks))
    np.testing.assert_array_equal(got, np.stack([oracle(s, k) for s, k in zip(scores, ks, strict=True)]))


@FAST
@given(bits(np.float32, 8), bits(np.float32, 6), st.integers(0, 8 * 3 + 6 * 4))
def test_weighted_entries_come_within_one_entry(a, b, k):
    weights = (3, 4)
    masks = selection.top_k_masks([jnp.asarray(a), jnp.asarray(b)], k, weights=weights)
    counts = [int(m.sum()) for m in masks]
    kept = sum(c * w for c, w in zip(counts, weights, strict=True))
    assert abs(kept - k) < max(weights)
    # Still a threshold: nothing pruned ranks above anything kept.
    joined, chosen = np.concatenate([a, b]), np.concatenate([np.asarray(m) for m in masks])
    value = np.where(np.isnan(joined), np.inf, joined)
    if chosen.any() and not chosen.all():
        assert value[chosen].min() >= value[~chosen].max()


def test_weights_of_one_are_no_weights():
    leaves = [jnp.array([1.0, 4.0, 4.0]), jnp.array([4.0, 0.0])]
    for k in range(6):
        plain, weighted = selection.top_k_masks(leaves, k), selection.top_k_masks(leaves, k, weights=[1, 1])
        assert [m.tolist() for m in plain] == [m.tolist() for m in weighted]


@pytest.mark.parametrize("kind", ["normal", "ties", "wide", "constant", "near"])
@pytest.mark.parametrize("shape", [(64, 96), (3, 3, 17, 40)])
def test_larger_arrays_of_many_distributions(kind, shape):
    rng = np.random.default_rng(2)
    x = rng.standard_normal(shape)
    made = {
        "normal": x,
        "ties": np.round(x),
        "wide": np.sign(x) * np.exp(30 * x),
        "constant": np.zeros(shape),
        "near": 1 + 2.0**-23 * np.round(3 * x),
    }
    scores = np.clip(made[kind], -3e38, 3e38).astype(np.float32)
    for k in (0, 1, scores.size // 10, scores.size // 2, scores.size - 1, scores.size):
        np.testing.assert_array_equal(selection.top_k_mask(jnp.asarray(scores), k), oracle(scores, k))


def test_order_keys_order_all_16_bit_floats():
    for dtype in (np.float16, ml_dtypes.bfloat16):
        everything = np.arange(2**16, dtype=np.uint16).view(dtype)
        keys = np.asarray(selection.order_keys(jnp.asarray(everything)))
        nan = (everything.view(np.uint16) & 0x7FFF) > np.array(np.inf, dtype).view(np.uint16)
        values = np.where(nan, np.array(0, dtype), everything).astype(np.float64)
        by_key = np.argsort(keys[~nan], kind="stable")
        ordered = values[~nan][by_key]
        assert (np.diff(ordered) >= 0).all()
        same = np.diff(ordered) == 0
        np.testing.assert_array_equal(np.diff(keys[~nan][by_key].astype(np.int64)) == 0, same)
        limits = np.iinfo(keys.dtype)
        assert (keys[nan] == limits.max - 1).all()
        assert keys[~nan].max() < limits.max - 1
        assert keys.min() > limits.min


def test_8_bit_floats_are_widened():
    scores = jnp.array([1.0, -2.0, 0.5], jnp.float8_e4m3fn)
    assert selection.order_keys(scores).dtype == jnp.int32
    assert selection.top_k_mask(scores, 2).tolist() == [True, False, True]


def test_scalars_and_empty_arrays():
    assert selection.top_k_mask(jnp.asarray(3.0), 1).tolist() is True
    assert selection.top_k_mask(jnp.asarray(3.0), 0).tolist() is False
    assert selection.top_k_mask(jnp.zeros((0, 3)), 0).shape == (0, 3)
    assert selection.row_top_k_mask(jnp.zeros((0, 3)), 2).shape == (0, 3)


@pytest.mark.parametrize("k", [-1, 7])
def test_k_out_of_range(k):
    with pytest.raises(ValueError, match=f"k={k} of 6 scores"):
        selection.top_k_mask(jnp.ones((2, 3)), k)
    with pytest.raises(ValueError, match=f"k={k} of rows of 3 scores"):
        selection.row_top_k_mask(jnp.ones((2, 3)), k)


def test_more_scores_than_an_int32_counts():
    leaf = jax.ShapeDtypeStruct((2**20, 2**11), jnp.float32)
    with pytest.raises(ValueError, match=f"{2**31} scores.*jax_enable_x64"):
        jax.eval_shape(lambda s: selection.top_k_mask(s, 5), leaf)


def test_integer_scores_are_no_scores():
    with pytest.raises(TypeError, match="int32"):
        selection.order_keys(jnp.arange(3))
