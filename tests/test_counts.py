"""Kept counts: the same whether the sparsity is known when the program is traced or when it runs."""

import jax
import jax.numpy as jnp
import pytest

from jaxprune._counts import kept, scaled

LARGE = 3_000_000_000


@pytest.mark.parametrize("sparsity", [0.0, 0.25, 0.5, 0.75])
def test_a_traced_sparsity_keeps_as_many_as_a_static_one(sparsity):
    sizes = range(12)
    traced = jax.jit(lambda s: [kept(s, n) for n in sizes])(jnp.float32(sparsity))
    assert [int(k) for k in traced] == [kept(sparsity, n) for n in sizes]


def test_more_weights_than_an_int32_counts():
    half = jnp.float32(0.5)
    functions = (lambda s: kept(s, LARGE), lambda s: scaled(LARGE // 10, LARGE, s))
    for function, want in zip(functions, (LARGE // 2, LARGE - 9 * LARGE // 20), strict=True):
        with pytest.raises(ValueError, match=f"{LARGE} weights.*jax_enable_x64"):
            jax.jit(function)(half)
        with jax.enable_x64(True):
            assert int(jax.jit(function)(half)) == want
