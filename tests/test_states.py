"""Reading masks back: NNX variables, in the parameters as in the optimiser state."""

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx

import jaxprune as jp


@pytest.mark.parametrize("pack_masks", [False, True])
@pytest.mark.parametrize("pure", [False, True])
def test_masks_fit_nnx_parameters_as_variables_and_as_arrays(pure: bool, pack_masks: bool) -> None:
    params = nnx.state(nnx.Linear(4, 6, rngs=nnx.Rngs(0)), nnx.Param)
    params = nnx.as_pure(params) if pure else params
    tx = jp.sparsify(optax.sgd(0.1), jp.pruners.ste(0.5), pack_masks=pack_masks)
    state = tx.init(params)

    masks = jp.get_masks(state, params)
    sparse = jp.sparse_params(params, state)

    assert jax.tree.structure(masks) == jax.tree.structure(params) == jax.tree.structure(sparse)
    kernel = next(leaf for leaf in jax.tree.leaves(sparse) if leaf.ndim == 2)
    assert int(jnp.sum(kernel == 0)) == 12
    assert jp.summary(params, masks).pruned.sparsity == 0.5


def test_masks_of_other_parameters_are_refused() -> None:
    state = jp.keep_masks({"w": np.ones(2, bool)}).init({"w": jnp.ones(2)})
    with pytest.raises(ValueError, match="do not belong to these parameters"):
        jp.get_masks(state, {"v": jnp.ones(2), "u": jnp.ones(3)})


@pytest.mark.parametrize("how", ["keep_masks", "static"])
def test_masks_of_pure_nnx_parameters_serve_an_optimiser_of_variables(how: str) -> None:
    model = nnx.Linear(4, 6, rngs=nnx.Rngs(0))
    masks = jp.compute_masks(nnx.as_pure(nnx.state(model, nnx.Param)), 0.5)
    transformations = {
        "keep_masks": lambda: optax.chain(optax.sgd(0.1), jp.keep_masks(masks)),
        "static": lambda: jp.sparsify(optax.sgd(0.1), jp.pruners.static(masks=masks)),
    }
    optimizer = nnx.Optimizer(model, transformations[how](), wrt=nnx.Param)
    optimizer.update(model, nnx.state(model, nnx.Param))
    assert int((model.kernel[...] == 0).sum()) == 12


def test_masks_of_other_names_are_not_fitted_by_force() -> None:
    with pytest.raises(ValueError, match=r"lacks w; it has v"):
        jp.keep_masks({"v": np.ones(2, bool)}).init({"w": jnp.ones(2)})


@pytest.mark.parametrize("pack_masks", [False, True])
def test_packed_masks_around_others(pack_masks: bool) -> None:
    params = {"w": jnp.arange(64.0).reshape(8, 8)}
    inside = {"w": jnp.ones((8, 8), bool).at[7].set(False)}
    inner = optax.chain(optax.sgd(0.1), jp.keep_masks(inside))
    state = jp.sparsify(inner, jp.pruners.ste(0.5), pack_masks=pack_masks).init(params)
    assert int(jp.get_masks(state, params)["w"].sum()) == 32 - 8
    assert int((jp.sparse_params(params, state)["w"] != 0).sum()) == 32 - 8


@pytest.mark.parametrize("make", [jp.keep_masks, lambda m: jp.sparsify(optax.sgd(0.1), jp.pruners.static(masks=m))])
class TestDtypes:
    def test_complex_parameters_are_zeroed(self, make) -> None:
        params, masks = {"w": jnp.full((2, 2), 1 + 2j)}, {"w": jnp.eye(2, dtype=bool)}
        tx = make(masks)
        state = tx.init(params)
        updates, state = tx.update(jax.tree.map(jnp.ones_like, params), state, params)
        new = optax.apply_updates(params, updates)
        assert new["w"].dtype == params["w"].dtype
        np.testing.assert_array_equal(new["w"] != 0, masks["w"])
        jp.check_masks(new, state)

    def test_a_mask_that_prunes_integers_is_refused(self, make) -> None:
        params = {"w": jnp.ones((2, 2)), "ids": jnp.arange(3)}
        make({"w": jnp.eye(2, dtype=bool), "ids": True}).init(params)
        with pytest.raises(ValueError, match="mask of ids prunes a parameter of dtype int32"):
            make({"w": True, "ids": np.array([True, False, True])}).init(params)
