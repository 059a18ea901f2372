"""Cross-Gram matrices against products of the inputs of two models."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from jaxprune.calibration import capture_cross
from tests.draws import normal

PARAMS = {"a": normal(0, 4, 4), "stack": normal(1, 2, 4, 4), "again": normal(2, 4, 4), "experts": normal(3, 2, 4, 3)}
OTHER = jax.tree.map(lambda w: jnp.where(jnp.abs(w) > 0.5, w, 0), PARAMS)
X = normal(4, 6, 4)


def net(p, x):
    def step(y, w):
        return jnp.tanh(jnp.tanh(y @ w) @ p["again"]), None

    y = jax.lax.scan(step, jnp.tanh(x @ p["a"]) @ p["a"], p["stack"])[0]
    return jax.lax.ragged_dot(y, p["experts"], jnp.array([2, 4]))


def inputs(p) -> dict[str, list[jax.Array]]:
    hidden = jnp.tanh(X @ p["a"])
    first = hidden @ p["a"]
    second = jnp.tanh(jnp.tanh(first @ p["stack"][0]) @ p["again"])
    return {"a": [X, hidden], "stack": [first, second]}


@pytest.mark.parametrize("weights", [None, lambda x: jnp.arange(6) < 4])
def test_are_products_of_dense_with_pruned_inputs(weights) -> None:
    dense, pruned, mask = inputs(PARAMS), inputs(OTHER), np.arange(6) < (6 if weights is None else 4)
    found = jax.jit(capture_cross(net, weights=weights))(PARAMS, OTHER, X)
    products = {
        name: [np.asarray(d)[mask].T @ np.asarray(o)[mask] for d, o in zip(dense[name], pruned[name], strict=True)]
        for name in dense
    }
    assert found.names == ("a", "stack")  # rows of the others are summed by a loop, or sorted by a router
    np.testing.assert_allclose(found["a"], sum(products["a"]), rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found["stack"], products["stack"], rtol=1e-4, atol=1e-5)
    assert found.count("stack").tolist() == [mask.sum()] * 2


def test_of_a_model_with_itself_are_its_gram_matrices() -> None:
    found = capture_cross(net, where="a|stack")(PARAMS, PARAMS, X)
    _, grams = jp.capture(net, jp.stats.gram, where="a|stack")(PARAMS, X)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), found, grams)


def test_says_what_is_wrong() -> None:
    with pytest.raises(ValueError, match="no rows of two models pair up for again, experts"):
        capture_cross(net, where="again|experts")(PARAMS, OTHER, X)
    with pytest.raises(ValueError, match=r"other_params has another tree structure.*lacks experts"):
        capture_cross(net)(PARAMS, {name: OTHER[name] for name in ("a", "stack", "again")}, X)
