import jax
import jax.numpy as jnp
import numpy as np
import pytest

from jaxprune import pipeline
from tests.draws import normal

KEY = jax.random.key(3)
X = normal(0, 50, 40) * 2


def identity(params, inputs):
    return inputs


def test_noise_has_its_scale():
    noisy = pipeline.corrupted(identity, pipeline.noise(0.5), KEY)(None, X)
    assert float(jnp.std(noisy - X)) == pytest.approx(1.0, rel=0.05)


def test_missing_replaces_its_share():
    holed = pipeline.corrupted(identity, pipeline.missing(0.3), KEY)(None, X)
    gone = np.asarray(holed != X)
    assert gone.mean() == pytest.approx(0.3, abs=0.03)
    np.testing.assert_allclose(holed[gone], float(X.mean()), rtol=1e-5)


def test_batches_differ_and_calls_agree():
    noisy = pipeline.corrupted(identity, pipeline.noise(1.0), KEY)
    np.testing.assert_array_equal(noisy(None, X), noisy(None, X))
    assert not np.allclose(noisy(None, X) - X, noisy(None, X + 1) - (X + 1), atol=0.1)


def test_bfloat16_and_integers_keep_their_dtypes():
    inputs = {"x": X.astype(jnp.bfloat16), "length": jnp.arange(4)}
    made = pipeline.corrupted(identity, pipeline.noise(1.0), KEY)(None, inputs)
    assert made["x"].dtype == jnp.bfloat16
    np.testing.assert_array_equal(made["length"], np.arange(4))


def test_quality_by_corruption():
    def evaluate(apply_fn, params):
        return -float(jnp.mean(jnp.abs(apply_fn(params, X) - X)))

    made = pipeline.robustness(
        {"a": (identity, {})},
        evaluate,
        X,
        key=KEY,
        corruptions={"little": pipeline.noise(0.1), "much": pipeline.noise(1.0)},
    )
    assert 0 > made["little"]["a"] > made["much"]["a"]
    assert pipeline.robustness({"a": (identity, {})}, evaluate, jnp.arange(3), key=KEY) == {}
