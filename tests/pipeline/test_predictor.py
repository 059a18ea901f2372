"""Features against NumPy on the masks, the ridge against a direct solve, and what validation says of known tables."""

import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import stats as scipy_stats

import jaxprune as jp
from jaxprune.pipeline.features import Features, group_features, weight_features
from jaxprune.pipeline.moments import gradient_moments
from jaxprune.pipeline.predictor import Predictor, fit_predictor
from jaxprune.pipeline.validation import RankCorrelation, rank_correlation, validate


def draw(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


PARAMS = {"conv": draw(0, 3, 3, 2, 4), "dense": draw(1, 64, 6), "out": draw(2, 6, 3)}
BATCHES = [(draw(3, 5, 4, 4, 2), draw(4, 5, 3)), (draw(5, 5, 4, 4, 2), draw(6, 5, 3))]


def apply_fn(params, x):
    x = jax.lax.conv_general_dilated(x, params["conv"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
    return jax.nn.relu(jax.nn.relu(x).reshape(x.shape[0], -1) @ params["dense"]) @ params["out"]


def loss_fn(outputs, targets):
    return jnp.mean((outputs - targets) ** 2)


MODEL = jp.trace(apply_fn, PARAMS, BATCHES[0][0])
MOMENTS = gradient_moments(apply_fn, PARAMS, loss_fn, BATCHES, model=MODEL, per_example=True)
STATS = jp.calibrate(apply_fn, PARAMS, [x for x, _ in BATCHES], jp.stats.column_norms)
GRADIENT = jax.jit(jax.grad(lambda params, x, y: loss_fn(apply_fn(params, x), y)))
EXAMPLES = [jax.device_get(GRADIENT(PARAMS, x[k : k + 1], y[k : k + 1])) for x, y in BATCHES for k in range(len(x))]


def test_moments_are_those_of_a_plain_loop() -> None:
    for path in PARAMS:
        each = np.stack([grads[path] for grads in EXAMPLES])
        np.testing.assert_allclose(MOMENTS.mean[path], each.mean(0), rtol=1e-4, atol=1e-6)
        np.testing.assert_allclose(MOMENTS.squares[path], np.square(each).mean(0), rtol=1e-4, atol=1e-8)
    # Channel c of the convolution is read by every fourth row of the dense layer.
    sums = np.stack([(grads["dense"] * PARAMS["dense"]).reshape(16, 4, 6).sum((0, 2)) for grads in EXAMPLES])
    np.testing.assert_allclose(MOMENTS.groups["conv:3"], np.square(sums).mean(0), rtol=1e-3, atol=1e-6)


def test_moments_over_batches() -> None:
    found = gradient_moments(apply_fn, PARAMS, loss_fn, BATCHES)
    each = np.stack([GRADIENT(PARAMS, x, y)["out"] for x, y in BATCHES])
    np.testing.assert_allclose(found.mean["out"], each.mean(0), rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(found.squares["out"], np.square(each).mean(0), rtol=1e-4, atol=1e-8)
    assert not found.groups


def test_weight_features_are_sums_over_the_mask() -> None:
    table = weight_features(MODEL, PARAMS, sparsities=(0.5, 0.9), moments=MOMENTS, stats=STATS)
    assert table.rows == tuple((path, share) for path in ("conv", "dense", "out") for share in (0.5, 0.9))
    norms = {"conv": None, "dense": np.asarray(STATS["dense"])[:, None], "out": np.asarray(STATS["out"])[:, None]}
    for row, (path, share) in enumerate(table.rows):
        gone = ~np.asarray(jp.compute_masks(PARAMS, share, where=path)[path])
        w, g, squares = PARAMS[path], np.asarray(MOMENTS.mean[path]), np.asarray(MOMENTS.squares[path])
        expected = {
            "energy": (w**2)[gone].sum() / (w**2).sum(),
            "first_order": abs((g * w)[gone].sum()),
            "absolute_first_order": abs(g * w)[gone].sum(),
            "fisher": 0.5 * (squares * w**2)[gone].sum(),
        }
        if norms[path] is not None:
            expected["activation"] = (w**2 * norms[path])[gone].sum() / (w**2 * norms[path]).sum()
        for name, value in expected.items():
            assert np.exp(table.column(name)[row]) == pytest.approx(value, rel=1e-3), (name, path)
    # Every tap and channel of the convolution by itself: what is left of its energy is that of its outputs.
    patches = jax.lax.conv_general_dilated_patches(
        np.concatenate([x for x, _ in BATCHES]), (3, 3), (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC")
    )
    squared = np.square(patches).sum((0, 1, 2)).reshape(2, 3, 3).transpose(1, 2, 0)[..., None] * PARAMS["conv"] ** 2
    gone = ~np.asarray(jp.compute_masks(PARAMS, 0.5, where="conv")["conv"])
    assert np.exp(table.column("activation")[0]) == pytest.approx(squared[gone].sum() / squared.sum(), rel=1e-3)


def test_structure_of_weights() -> None:
    table = weight_features(MODEL, PARAMS, sparsities=(0.5,))
    assert "fisher" not in table.names and "activation" not in table.names
    total = MODEL.cost().macs
    np.testing.assert_allclose(np.exp(table.column("weights")), [72, 384, 18])
    np.testing.assert_allclose(np.exp(table.column("fan_in")), [18, 64, 6])
    np.testing.assert_allclose(np.exp(table.column("fan_out")), [4, 6, 3])
    np.testing.assert_allclose(np.exp(table.column("macs"))[1:], [5 * 384 / total, 5 * 18 / total])
    assert table.column("depth").tolist() == [0, 0.5, 1] and table.column("convolution").tolist() == [1, 0, 0]
    assert "dense 0.5" in str(table)


def test_group_features_are_sums_over_what_reads_the_indices() -> None:
    table = group_features(MODEL, PARAMS, moments=MOMENTS, stats=STATS)
    assert table.rows == tuple([("conv:3", k) for k in range(4)] + [("dense:1", k) for k in range(6)])
    for k in range(4):
        gone = np.zeros((16, 4, 6), bool)
        gone[:, k] = True
        gone = gone.reshape(64, 6)
        w, g = PARAMS["dense"], np.asarray(MOMENTS.mean["dense"])
        assert np.exp(table.column("energy")[k]) == pytest.approx((w**2)[gone].sum() / (w**2).sum(), rel=1e-3)
        assert np.exp(table.column("first_order")[k]) == pytest.approx(abs((g * w)[gone].sum()), rel=1e-3)
        assert np.exp(table.column("index_fisher")[k]) == pytest.approx(
            float(0.5 * MOMENTS.groups["conv:3"][k]), rel=1e-3
        )
    shares = group_features(MODEL, PARAMS, shares=(0.5,))
    assert shares.rows == (("conv:3", 0.5), ("dense:1", 0.5))
    scores = np.asarray(jp.group_scores(MODEL, PARAMS)["dense:1"])
    kept = shares.plans[1].keep["dense:1"]
    assert kept.sum() == 3 and scores[kept].min() > scores[~kept].max()
    some = group_features(MODEL, PARAMS, per_group=2)
    extremes = {int(scores.argmin()), int(scores.argmax())}
    assert {index for name, index in some.rows if name == "dense:1"} == extremes


def made(layers: int, each: int, noise: float = 0.0) -> tuple[Features, np.ndarray]:
    generator = np.random.default_rng(0)
    rows = tuple((f"layer{k}", float(j)) for k in range(layers) for j in range(each))
    values = generator.normal(size=(len(rows), 3))
    target = values @ [1.5, -0.5, 0.0] + noise * generator.normal(size=len(rows)) - 4
    return Features(("energy", "depth", "nothing"), rows, values), np.exp(target)


def closed_form(table, changes, strength, anchor):
    """The augmented least squares of the ridge: standardised features, weights, intercept."""
    x = (table.values - table.values.mean(0)) / table.values.std(0)
    y = np.log(changes)
    each = np.array([min(strength, 1e-6) if name == anchor else strength for name in table.names])
    rows = np.concatenate([x, np.diag(np.sqrt(each * len(x)))])
    weights, *_ = np.linalg.lstsq(rows, np.concatenate([y - y.mean(), np.zeros(len(each))]), rcond=None)
    return x, weights, y.mean()


def test_ridge_is_the_closed_form() -> None:
    table, changes = made(4, 5, noise=0.3)
    found = fit_predictor(table, changes, regularisations=(50.0,))
    assert found.anchor == "energy"
    x, weights, intercept = closed_form(table, changes, 50.0, "energy")
    np.testing.assert_allclose(found.weights, weights, rtol=1e-7)
    np.testing.assert_allclose(np.log(found.predict(table)), x @ weights + intercept, rtol=1e-7)
    # So strong a ridge leaves a power of the anchor, and without one hardly anything.
    assert found.weights[0] > 50 * abs(found.weights[1])


def test_choices_are_the_best_for_layers_left_out() -> None:
    table, changes = made(4, 5, noise=0.3)
    choices = [(strength, anchor) for strength in (1e-3, 0.3, 100.0) for anchor in (None, "energy")]

    def error(choice) -> float:
        lost = 0.0
        for name in set(table.layers):
            mine = np.array(table.layers) == name
            rest = table.take(~mine)
            _, weights, intercept = closed_form(rest, changes[~mine], *choice)
            x = (table.values[mine] - rest.values.mean(0)) / rest.values.std(0)
            lost += np.square(x @ weights + intercept - np.log(changes[mine])).sum()
        return lost

    found = fit_predictor(table, changes, regularisations=(1e-3, 0.3, 100.0))
    assert (found.regularisation, found.anchor) == min(choices, key=error)
    # All noise: only the mean is worth keeping.
    found = fit_predictor(table, np.exp(np.random.default_rng(1).normal(size=20)), regularisations=(1e-6, 1e3))
    assert (found.regularisation, found.anchor) == (1e3, None)


def test_predictor_through_json_and_with_other_columns() -> None:
    table, changes = made(3, 4)
    found = fit_predictor(table, dict(zip(table.rows, changes, strict=True)))
    again = Predictor.from_dict(json.loads(json.dumps(found.to_dict())))
    turned = Features(table.names[::-1], table.rows, table.values[:, ::-1])
    np.testing.assert_array_equal(again.predict(turned), found.predict(table))


def test_decreases_count_as_the_floor() -> None:
    table, changes = made(3, 4)
    low, other = changes.copy(), changes.copy()
    low[0], other[0] = -1.0, 1e-9
    a, b = (fit_predictor(table, each, floor=1e-5) for each in (low, other))
    np.testing.assert_array_equal(a.weights, b.weights)
    low[0] = -1e-9
    assert fit_predictor(table, low).floor == pytest.approx(1e-3 * np.median(changes[1:]))
    middle = np.median(changes[2:])
    low[:2] = -0.4 * middle, -0.6 * middle
    assert fit_predictor(table, low).floor == pytest.approx(0.5 * middle)
    low[:2] = -9.0
    assert fit_predictor(table, low).floor == pytest.approx(middle)
    infinite = changes.copy()
    infinite[0] = np.inf
    assert np.isfinite(fit_predictor(table, infinite).weights).all()


def test_constant_feature_says_nothing_elsewhere() -> None:
    table, changes = made(3, 4)
    values = table.values.copy()
    values[:, 2] = 7.0
    found = fit_predictor(Features(table.names, table.rows, values), changes)
    moved = values.copy()
    moved[:, 2] = -100.0
    np.testing.assert_array_equal(
        found.predict(Features(table.names, table.rows, moved)),
        found.predict(Features(table.names, table.rows, values)),
    )


def test_rank_correlation_against_scipy() -> None:
    table, changes = made(3, 6)
    guess = np.round(np.random.default_rng(2).normal(size=18) + np.log(changes))  # with ties
    found = rank_correlation(table, guess, changes)

    def spearman(rows) -> Any:
        return scipy_stats.spearmanr(guess[rows], changes[rows])[0]

    assert found.overall == pytest.approx(spearman(slice(None)))
    assert found.within == pytest.approx(np.mean([spearman(slice(6 * k, 6 * k + 6)) for k in range(3)]))
    assert found.between == pytest.approx(np.mean([spearman(slice(k, None, 6)) for k in range(6)]))
    assert rank_correlation(table, np.zeros(18), changes) == RankCorrelation(0, 0, 0)


def test_validation_sees_only_other_layers() -> None:
    table, changes = made(5, 6, noise=0.1)
    found = validate(table, changes)
    assert found.correlations["predictor"].overall > 0.95
    # A feature that names the layer fits the layers it has seen, and helps with no other.
    rows = table.rows
    named = Features(("depth",), rows, np.repeat(np.arange(5.0), 6)[:, None])
    changes = np.exp(np.repeat(np.random.default_rng(3).permutation(5) * 1.0, 6))
    assert validate(named, changes).correlations["predictor"].overall < 0.5
    assert abs(found.correlations["random"].overall) < 0.1
    text = str(found)
    assert "30 removals of 5 layers" in text and all(name in text for name in ("predictor", "energy", "random"))


def test_errors() -> None:
    table, changes = made(3, 4)
    with pytest.raises(ValueError, match="changes has shape"):
        fit_predictor(table, changes[:-1])
    with pytest.raises(ValueError, match="no change is given"):
        fit_predictor(table, {table.rows[0]: 1.0})
    with pytest.raises(ValueError, match="positive numbers"):
        fit_predictor(table, changes, regularisations=(0.0,))
    with pytest.raises(ValueError, match="no removal raised the loss"):
        fit_predictor(table, -changes)
    with pytest.raises(ValueError, match="floor=-1"):
        fit_predictor(table, changes, floor=-1)
    with pytest.raises(ValueError, match="too few"):
        fit_predictor(table.take([0]), changes[:1])
    with pytest.raises(ValueError, match="the features lack"):
        fit_predictor(table, changes).predict(table.only(["depth"]))
    with pytest.raises(ValueError, match="no predictor"):
        Predictor.from_dict({"names": ["a"]})
    with pytest.raises(ValueError, match="leave one out"):
        validate(table.take(range(4)), changes[:4])
    with pytest.raises(ValueError, match="no group"):
        params = {"a": jnp.ones((2, 2))}
        group_features(jp.trace(lambda p, x: x @ p["a"], params, jnp.ones(2)), params)
