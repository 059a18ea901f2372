"""`owl` against NumPy, and its promise about the sparsity of the whole model."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from jaxprune.posttraining.owl import _shifted, owl


def draw(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_t(3, size=shape).astype(np.float32)


PARAMS = {f"layer_{k}": {"up": draw(k, 8, 16 + 8 * k), "down": draw(k + 9, 16 + 8 * k, 8)} for k in range(3)}
X = draw(20, 40, 8)


def net(params, x):
    for layer in params.values():
        x = x + jnp.tanh(x @ layer["up"]) @ layer["down"]
    return x


def inputs() -> dict[str, np.ndarray]:
    found, x = {}, X
    for name, layer in PARAMS.items():
        hidden = np.tanh(x @ layer["up"])
        found |= {f"{name}/up": x, f"{name}/down": hidden}
        x = x + hidden @ layer["down"]
    return found


def by_hand(sparsity: float, threshold: float, spread: float) -> list[float]:
    shares, sizes, seen = [], [], inputs()
    for name, layer in PARAMS.items():
        products = [np.abs(w) * np.linalg.norm(seen[f"{name}/{key}"], axis=0)[:, None] for key, w in layer.items()]
        both = np.concatenate([p.reshape(-1) for p in products])
        shares.append(np.mean(both > threshold * both.mean()))
        sizes.append(both.size)
    scaled = (np.array(shares) - min(shares)) * 2 * spread / (max(shares) - min(shares))
    return list(1 - (scaled - np.average(scaled, weights=sizes) + 1 - sparsity))


MODEL = jp.trace(net, PARAMS, X)
NORMS = jp.calibrate(net, PARAMS, [X], jp.stats.column_norms)


def test_equals_the_formula_and_meets_the_target() -> None:
    found = owl(MODEL, PARAMS, NORMS, 0.6, threshold=3.0)
    for stat in (jp.stats.gram, jp.stats.moments):
        other = owl(MODEL, PARAMS, jp.calibrate(net, PARAMS, [X], stat), 0.6, threshold=3.0)
        assert other == {name: pytest.approx(share, abs=1e-6) for name, share in found.items()}
    expected = by_hand(0.6, 3.0, 0.08)
    for k, share in enumerate(expected):
        np.testing.assert_allclose([found[f"layer_{k}/up"], found[f"layer_{k}/down"]], share, atol=1e-6)
    assert max(expected) - min(expected) == pytest.approx(0.16)
    sizes = {f"{name}/{key}": leaf.size for name, layer in PARAMS.items() for key, leaf in layer.items()}
    assert sum(found[name] * size for name, size in sizes.items()) == pytest.approx(0.6 * sum(sizes.values()))


def test_layers_of_a_stack_are_blocks() -> None:
    def scanned(params, x):
        def step(x, p):
            return jnp.tanh(jnp.tanh(x @ p["up"]) @ p["down"]), None

        return jax.lax.scan(step, x, params)[0]

    params = {"up": draw(0, 3, 8, 9), "down": draw(1, 3, 9, 8)}
    stats = jp.calibrate(scanned, params, [X], jp.stats.column_norms)
    found = owl(jp.trace(scanned, params, X), params, stats, 0.5, threshold=2.0)
    np.testing.assert_array_equal(found["up"], found["down"])
    assert found["up"].shape == (3,) and np.ptp(found["up"]) == pytest.approx(0.16)
    assert np.mean(found["up"]) == pytest.approx(0.5)
    products = np.abs(params["up"]) * np.sqrt(np.asarray(stats["up"]))[..., None]
    other = np.abs(params["down"]) * np.sqrt(np.asarray(stats["down"]))[..., None]
    both = np.concatenate([products.reshape(3, -1), other.reshape(3, -1)], 1)
    shares = np.mean(both > 2 * both.mean(1, keepdims=True), 1)
    np.testing.assert_array_equal(np.argsort(-shares), np.argsort(found["up"]))


def test_equal_blocks_and_patterns() -> None:
    params = {"a": jnp.ones((4, 4)), "b": jnp.ones((4, 4))}
    model = jp.trace(lambda p, x: x @ p["a"] @ p["b"], params, X[:, :4])
    stats = jp.calibrate(model.apply_fn, params, [jnp.ones((8, 4))], jp.stats.column_norms)
    assert owl(model, params, stats, 0.3) == {"a": pytest.approx(0.3), "b": pytest.approx(0.3)}
    found = owl(MODEL, PARAMS, NORMS, 0.5, threshold=3.0, blocks=["layer_[01]", "layer_2"])
    assert found["layer_0/up"] == found["layer_0/down"] != found["layer_1/up"]


def test_shares_at_the_ends_are_made_up_for() -> None:
    sizes = np.array([100, 300, 50])
    kept = _shifted(np.array([0.0, 0.9, 0.5]), sizes, 0.1)
    assert np.average(kept, weights=sizes) == pytest.approx(0.1) and kept.min() > 0
    assert np.average(_shifted(np.array([0.0, 0.9, 0.5]), sizes, 0.97), weights=sizes) == pytest.approx(0.97)


def test_errors() -> None:
    some = dataclasses.replace(NORMS, inputs=tuple(pair for pair in NORMS.inputs if "layer_0" in pair[0]))
    with pytest.raises(ValueError, match=r"no statistics of layer_1/up"):
        owl(MODEL, PARAMS, some, 0.5)
    assert owl(MODEL, PARAMS, some, 0.5, where="layer_0/.*")["layer_0/up"] == pytest.approx(0.5)
    with pytest.raises(ValueError, match=r"spread=2"):
        owl(MODEL, PARAMS, NORMS, 0.5, spread=2)
    wrong = dataclasses.replace(NORMS, values={name: jnp.zeros(()) for name in NORMS.values})
    with pytest.raises(ValueError, match="hold no column norms"):
        owl(MODEL, PARAMS, wrong, 0.5)
