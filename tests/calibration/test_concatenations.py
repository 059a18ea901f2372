"""Parameters that are laid side by side before the product: each is seen as if it were multiplied by itself."""

import functools
from typing import Any

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from jaxprune.posttraining import sparsegpt, wanda
from tests.draws import normal
from tests.posttraining.layers import Grown


class Recurrent(nn.Module):
    cell: Any

    @nn.compact
    def __call__(self, x: jax.Array) -> jax.Array:
        return nn.Dense(2, name="head")(nn.RNN(self.cell(4, name="cell"))(x))


X = normal(0, 3, 5, 6)
PLAIN, FUSED = Recurrent(nn.LSTMCell), Recurrent(nn.OptimizedLSTMCell)  # with the same parameters, the same function
PARAMS = FUSED.init(jax.random.key(1), X)["params"]


def plain(params, x):
    return PLAIN.apply({"params": params}, x)


def fused(params, x):
    return FUSED.apply({"params": params}, x)


def assert_close(found, expected) -> None:
    jax.tree.map(functools.partial(np.testing.assert_allclose, rtol=1e-3, atol=1e-4), found, expected)


class TestLSTM:
    def test_statistics_are_those_of_the_cell_with_a_product_for_each_weight(self) -> None:
        coverage = jp.trace(fused, PARAMS, X).coverage()
        assert len(coverage.covered) == 9 and not coverage.missing
        found, expected = (jp.calibrate(apply, PARAMS, [X], jp.stats.gram) for apply in (fused, plain))
        assert len(found.values) == 3  # the data, the state and what the head reads
        for name in expected.names:
            np.testing.assert_allclose(found[name], expected[name], rtol=1e-4, atol=1e-5)

    def test_one_shot_is_that_of_the_cell_with_a_product_for_each_weight(self) -> None:
        found, expected = (jp.prune_one_shot(apply, PARAMS, [X], sparsegpt(), sparsity=0.5) for apply in (fused, plain))
        assert len(found.layers) == 9
        assert_close(found.params, expected.params)
        jax.tree.map(np.testing.assert_array_equal, found.masks, expected.masks)

    @pytest.mark.parametrize("kernels", ["h", "i"])  # the cells read data and state in another order
    def test_sequential_is_that_of_the_cell_with_a_product_for_each_weight(self, kernels) -> None:
        found, expected = (
            jp.prune_sequential(apply, PARAMS, [X], wanda(), sparsity=0.5, where=f"cell/{kernels}./kernel")
            for apply in (fused, plain)
        )
        assert len(found.layers) == 4
        assert_close(found.params, expected.params)


DATA = normal(2, 9, 7)
PARTS = {"a": normal(3, 2, 4), "b": normal(4, 1, 4), "c": normal(5, 4, 4)}
CONVOLUTION = functools.partial(
    jax.lax.conv_general_dilated, window_strides=(1, 1), padding="SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
)


@pytest.mark.parametrize(
    "together",
    [
        lambda w, x: x @ jnp.concatenate(w),
        lambda w, x: jnp.einsum("rk,ok->ro", x, jnp.concatenate([part.T for part in w], 1).astype(jnp.float32)),
        lambda w, x: x @ jnp.concatenate([jnp.concatenate(w[:2]), w[2]]),
        lambda w, x: jax.lax.scan(lambda x, w: (x @ w @ w.T, None), x, jnp.concatenate([part[None] for part in w], 1))[
            0
        ],
    ],
    ids=["along the contraction", "cast and transposed", "nested", "under a scan"],
)
def test_each_part_sees_its_stretch_of_the_data(together) -> None:
    _, stats = jp.capture(lambda p, x: together(list(p.values()), x), jp.stats.gram)(PARTS, DATA)
    for name, start, stop in (("a", 0, 2), ("b", 2, 3), ("c", 3, 7)):
        expected = DATA[:, start:stop].T @ DATA[:, start:stop]
        np.testing.assert_allclose(stats[name].reshape(expected.shape), expected, rtol=1e-4, atol=1e-5)


def test_convolutions_of_parts() -> None:
    params, x = {"a": normal(0, 3, 3, 2, 4), "b": normal(1, 3, 3, 3, 4)}, normal(2, 2, 6, 6, 5)
    _, stats = jp.capture(lambda p, x: CONVOLUTION(x, jnp.concatenate([p["a"], p["b"]], 2)), jp.stats.gram)(params, x)
    _, apart = jp.capture(
        lambda p, x: (CONVOLUTION(x[..., :2], p["a"]), CONVOLUTION(x[..., 2:], p["b"])), jp.stats.gram
    )(params, x)
    for name in "ab":
        np.testing.assert_allclose(stats[name], apart[name], rtol=1e-4, atol=1e-4)


def test_batches_of_parts() -> None:
    params, x = {"a": normal(0, 1, 3, 4), "b": normal(1, 2, 3, 4)}, normal(2, 3, 5, 3)
    _, stats = jp.capture(lambda p, x: x @ jnp.concatenate([p["a"], p["b"]]), jp.stats.gram)(params, x)
    whole = jnp.einsum("brk,brl->bkl", x, x)
    np.testing.assert_allclose(stats["a"], whole[:1], rtol=1e-4)
    np.testing.assert_allclose(stats["b"], whole[1:], rtol=1e-4)


@pytest.mark.parametrize(
    ("axis", "equation"), [(0, "rk,tko->rto"), (2, "rk,kot->rto"), (1, "rtk,kto->rto")], ids=["first", "last", "batch"]
)
def test_stacked_parts(axis, equation) -> None:
    params = {"q": normal(0, 3, 4), "k": normal(1, 3, 4)}
    x = normal(2, 5, 2, 3) if "rtk" in equation else normal(2, 5, 3)

    def together(p, x):
        return jnp.einsum(equation, x, jnp.stack([p["q"], p["k"]], axis))

    def apart(p, x):
        left, right = (x[:, 0], x[:, 1]) if x.ndim == 3 else (x, x)
        return jnp.stack([left @ p["q"], right @ p["k"]], 1)

    model = jp.trace(together, params, x)
    assert model.roles == jp.trace(apart, params, x).roles
    found, expected = (jp.prune_one_shot(f, params, [x], sparsegpt(), sparsity=0.5) for f in (together, apart))
    assert [layer.error for layer in found.layers] == pytest.approx([layer.error for layer in expected.layers])
    assert_close(found.params, expected.params)


def test_repairs_land_in_their_part_and_the_function_has_them() -> None:
    def together(p, x):
        return jnp.tanh(x @ jnp.concatenate([p["a"], p["b"]])) @ jnp.concatenate([p["c"], p["d"]], 1)

    params = {"a": normal(3, 3, 4), "b": normal(4, 4, 4), "c": normal(5, 4, 2), "d": normal(6, 4, 3)}
    found = jp.prune_sequential(together, params, [DATA], Grown(), sparsity=0.5)
    assert [layer.name for layer in found.layers] == ["a", "b", "c", "d"]
    for name, mask in found.masks.items():
        np.testing.assert_allclose(found.params[name], np.where(mask, 1.1 * params[name], 0), rtol=1e-6)


def test_parts_of_one_shape_are_kept_apart() -> None:
    params, data = {"a": normal(3, 4, 4), "b": normal(4, 4, 4)}, normal(2, 9, 8)

    def together(p, x):
        return x @ jnp.concatenate([p["a"], p["b"]])

    def apart(p, x):
        return x[:, :4] @ p["a"] + x[:, 4:] @ p["b"]

    found, expected = (jp.prune_sequential(f, params, [data], sparsegpt(), sparsity=0.5) for f in (together, apart))
    assert_close(found.params, expected.params)


@pytest.mark.parametrize(("axis", "features", "groups"), [(0, 2, 1), (3, 4, 2)], ids=["window", "groups"])
def test_what_is_no_product_with_each_part_is_left_out_with_a_reason(axis, features, groups) -> None:
    params, x = {"a": normal(0, 1, 3, 2, 2), "b": normal(1, 1, 3, 2, 2)}, normal(2, 2, 6, 6, features)

    def apply(p, x):
        return CONVOLUTION(x, jnp.concatenate([p["a"], p["b"]], axis), feature_group_count=groups)

    coverage = jp.trace(apply, params, x).coverage()
    assert not coverage.covered
    assert all("no product with a matrix" in reason for reason in coverage.missing.values())
