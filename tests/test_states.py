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
