"""Applying, counting, combining and packing masks."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import jaxprune as jp
from jaxprune import masks as masks_

FAST = settings(max_examples=12, deadline=None, derandomize=True)


@pytest.mark.parametrize("shape", [(), (1,), (8,), (13,), (3, 17), (16, 3), (2, 3, 9), (3, 3, 4, 4), (0, 3)])
def test_pack_round_trip(shape):
    size = int(np.prod(shape))
    params = {"w": jnp.zeros(shape)}

    @jax.jit
    def both(mask):
        packed = jp.pack({"w": mask})
        return packed["w"], jp.unpack(packed, params)["w"]

    @FAST
    @given(st.lists(st.booleans(), min_size=size, max_size=size))
    def check(drawn):
        mask = np.array(drawn, bool).reshape(shape)
        packed, back = both(jnp.asarray(mask))
        assert packed.dtype == jnp.uint8 and packed.ndim == len(shape)
        np.testing.assert_array_equal(back, mask)
        if size:
            assert packed.size == min((size // n * -(-n // 8) for n in shape), default=1)
        if len(shape) == 1:
            np.testing.assert_array_equal(packed, np.packbits(mask, bitorder="little"))

    check()


def test_unpack_what_does_not_belong():
    packed = jp.pack({"a": {"w": jnp.ones((3, 17), bool)}})
    with pytest.raises(ValueError, match="packed mask of a/w"):
        jp.unpack(packed, {"a": {"w": jnp.zeros((3, 25))}})
    with pytest.raises(ValueError, match="packed mask of w is bool"):
        jp.unpack({"w": jnp.ones((8,), bool)}, {"w": jnp.zeros((64,))})
    with pytest.raises(ValueError, match=r"packed mask tree.*lacks b"):
        jp.unpack(packed, {"a": {"w": jnp.zeros((3, 17))}, "b": jnp.zeros(2)})


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16, jnp.float16, jnp.int32])
def test_apply_masks(dtype):
    params = {"w": jnp.arange(1, 7).reshape(2, 3).astype(dtype), "b": jnp.arange(1, 4).astype(dtype)}
    masks = {"w": jnp.array([[True, False, True]]), "b": True}
    got = jp.apply_masks(params, masks)
    assert got["w"].tolist() == [[1, 0, 3], [4, 0, 6]]
    assert got["b"].tolist() == [1, 2, 3]
    assert got["w"].dtype == got["b"].dtype == dtype


def test_apply_masks_clears_nan_and_infinity():
    got = jp.apply_masks({"w": jnp.array([jnp.nan, jnp.inf, -2.0])}, {"w": jnp.array([False, False, True])})
    assert got["w"].tolist() == [0, 0, -2]


def test_sparsity():
    params = {"w": jnp.ones((4, 5)), "b": jnp.ones(5), "none": jnp.ones((0, 3))}
    masks = {"w": jnp.array([[True], [False], [False], [False]]), "b": True, "none": True}
    assert jp.sparsity(masks, params) == 15 / 25
    assert jp.sparsity(masks, params, per_leaf=True) == {"w": 0.75, "b": 0.0, "none": 0.0}
    assert jp.sparsity(masks, jax.eval_shape(lambda: params)) == 15 / 25
    assert jp.sparsity({}, {}) == 0.0
    assert jp.sparsity({"w": False}, {"w": jnp.ones(3)}) == 1.0


@pytest.mark.parametrize("function", [jp.apply_masks, lambda p, m: jp.sparsity(m, p), jp.rewind, jp.summary])
def test_masks_that_do_not_fit(function):
    params = {"a": {"w": jnp.ones((4, 5)), "b": jnp.ones(5)}}
    good = jnp.ones((4, 5), bool)
    for masks, word in [
        ({"a": {"w": good}}, "lacks a/b"),
        ({"a": {"w": good, "b": True, "c": True}}, "it has a/c"),
        ({"a": {"w": jnp.ones((5, 4), bool), "b": True}}, r"a/w has shape \(5, 4\).*\(4, 5\)"),
        ({"a": {"w": jnp.ones((2, 4, 5), bool), "b": True}}, r"a/w has shape \(2, 4, 5\).*shard_map pass them"),
        ({"a": {"w": good.astype(jnp.float32), "b": True}}, "a/w has dtype float32"),
    ]:
        with pytest.raises(ValueError, match=word):
            function(params, masks)


def test_combine():
    a, b = {"w": jnp.array([[True], [False]])}, {"w": jnp.array([[True, False]])}
    assert jp.combine(a, b)["w"].tolist() == [[True, False], [False, False]]
    assert jp.combine(a, {"w": True})["w"].tolist() == [[True], [False]]
    assert jp.combine(a)["w"].tolist() == [[True], [False]]
    with pytest.raises(ValueError, match="no mask tree"):
        jp.combine()
    with pytest.raises(ValueError, match="lacks w"):
        jp.combine(a, {"v": True})


def test_from_zeros():
    params = {"w": jnp.array([[0.0, 2.0], [-0.0, jnp.nan]]), "b": jnp.zeros(2), "i": jnp.zeros((2, 2), jnp.int32)}
    masks = jp.from_zeros(params)
    assert masks["w"].tolist() == [[False, True], [False, True]]
    assert masks["b"].shape == masks["i"].shape == ()
    assert jp.from_zeros(params, where="b")["b"].tolist() == [False, False]
    with pytest.raises(ValueError, match=r"where='x'.*b, i, w"):
        jp.from_zeros(params, where="x")


def test_full_masks_have_the_shape_and_are_copies():
    params = {"w": jnp.ones((2, 3)), "b": jnp.ones(3)}
    mask = jnp.ones((2, 3), bool)
    full = masks_.full_masks({"w": mask, "b": True}, params)
    assert full["w"].shape == (2, 3) and full["b"].shape == (3,)
    full["w"].delete()
    assert bool(mask.all())
