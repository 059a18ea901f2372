"""Pruning where shapes coincide, data is missing, or the pruned model sends its data elsewhere."""

import contextlib
import weakref

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, NamedSharding, PartitionSpec

import jaxprune as jp
from jaxprune.calibration import inputs
from jaxprune.posttraining import admm, layer, magnitude, sequential, wanda
from jaxprune.posttraining.result import start_masks
from jaxprune.tracing.layers import read_layers
from tests.draws import normal
from tests.posttraining.layers import Grown

DRIVERS = [jp.prune_one_shot, jp.prune_sequential]


def test_norms_of_as_many_layers_as_features_are_no_gram_matrix() -> None:
    params, x = {"w": normal(0, 4, 4, 4)}, normal(1, 8, 4)

    def net(p, x):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, p["w"])[0]

    stats = jp.calibrate(net, params, [x], jp.stats.column_norms)
    (report,) = jp.prune_one_shot(net, params, [x], wanda(), sparsity=0.5, stats=stats).layers
    energy = np.square(params["w"]) * np.asarray(stats["w"])[:, :, None]
    smallest = np.sort(energy, 1)[:, :2]
    assert not report.exact_error
    assert report.error == pytest.approx(np.sqrt(smallest.sum() / energy.sum()), rel=1e-4)
    with pytest.raises(ValueError, match="takes Gram matrices"):
        layer._need_gram(stats["w"], params["w"])


def convolve(params, x):
    for name in ("a", "b"):
        x = jnp.tanh(jax.lax.conv_general_dilated(x, params[name], (1, 1), "SAME", dimension_numbers=NHWC))
    return x


NHWC = ("NHWC", "HWIO", "NHWC")


def test_rows_of_a_large_convolution_are_not_summed(monkeypatch) -> None:
    params, batches = {"a": normal(0, 3, 3, 2, 4), "b": normal(1, 3, 3, 4, 2)}, [normal(2, 4, 6, 6, 2)]
    options = {"sparsity": 0.5, "target": "dense"}
    whole = jp.prune_sequential(convolve, params, batches, Grown(), **options).params
    monkeypatch.setattr(inputs, "_MAX_PATCHES", 600)
    parts = jp.prune_sequential(convolve, params, batches, Grown(), **options).params
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), parts, whole)


def route(params, x):
    """Tokens are sorted by their expert, which depends on what a pruned layer gives."""
    x = jnp.tanh(x @ params["a"])
    expert = jnp.argmax(x[:, :3], 1)
    order = jnp.argsort(expert)
    sizes = jnp.sum(expert[:, None] == jnp.arange(3)[None], 0, dtype=jnp.int32)
    return jax.lax.ragged_dot(x[order], params["experts"], sizes)


def test_rows_that_routing_moves_have_no_dense_partner() -> None:
    params, batches = {"a": normal(0, 8, 8), "experts": normal(1, 3, 8, 8)}, [normal(2, 64, 8)]
    one, other = (
        jp.prune_sequential(route, params, batches, Grown(), sparsity=0.5, target=target)
        for target in ("dense", "self")
    )
    np.testing.assert_allclose(one.params["experts"], other.params["experts"], rtol=1e-5)


def test_experts_without_tokens_are_pruned_by_magnitude() -> None:
    params, x, sizes = {"w": normal(0, 3, 8, 6)}, normal(1, 7, 8), jnp.array([3, 0, 4])

    def apply_fn(p, x, n):
        return jax.lax.ragged_dot(x, p["w"], n)

    plain = jp.prune_one_shot(apply_fn, params, [(x, sizes)], magnitude(group="row"), sparsity=0.5)
    for method in (wanda(), Grown()):
        found = jp.prune_one_shot(apply_fn, params, [(x, sizes)], method, sparsity=0.5)
        assert "1 of 3 saw no rows" in found.layers[0].note
        assert (found.masks["w"][0] != plain.masks["w"][0]).any()
        np.testing.assert_array_equal(found.masks["w"][1], plain.masks["w"][1])
        assert 0 < found.layers[0].error < 1


def test_experts_that_see_zeros_only_are_pruned_by_magnitude() -> None:
    params, x = {"w": normal(0, 3, 8, 6)}, normal(1, 10, 8)

    def dispatch(p, x):  # every expert gets a row of each token, which is zero where it goes to another
        gates = jax.nn.one_hot(2 * (jnp.arange(10) % 2), 3)
        return jnp.einsum("etd,edf->etf", jnp.einsum("te,td->etd", gates, x), p["w"])

    plain = jp.prune_one_shot(dispatch, params, [x], magnitude(group="row"), sparsity=0.5)
    for prune in (jp.prune_one_shot, jp.prune_sequential):
        found = prune(dispatch, params, [x], Grown(), sparsity=0.5)
        assert "1 of 3 saw no rows but zeros" in found.layers[0].note
        np.testing.assert_array_equal(found.masks["w"][1], plain.masks["w"][1])


def test_fewer_rows_than_inputs_are_noted_where_it_matters() -> None:
    params, x = {"w": normal(0, 8, 6)}, normal(1, 5, 8)
    (report,) = jp.prune_one_shot(lambda p, x: x @ p["w"], params, [x], Grown(), sparsity=0.5).layers
    assert report.note.startswith("5 rows for 8 inputs")
    (report,) = jp.prune_one_shot(lambda p, x: x @ p["w"], params, [x], wanda(), sparsity=0.5).layers
    assert report.note == ""  # norms need no rank
    (report,) = jp.prune_one_shot(lambda p, x: x @ p["w"], params, [x, x], Grown(), sparsity=0.5).layers
    assert report.note == ""


def test_weights_without_a_dense_target_say_so() -> None:
    params, x = {"a": normal(0, 8, 8), "b": normal(1, 8, 8)}, normal(2, 20, 8)

    def net(p, x):  # `a` is used twice
        return jnp.tanh(jnp.tanh(x @ p["a"]) @ p["a"]) @ p["b"]

    for target in ("dense", "self"):
        found = jp.prune_sequential(net, params, [x], Grown(), sparsity=0.5, target=target)
        notes = {layer.name: layer.note for layer in found.layers}
        assert ("its own output" in notes["a"]) == (target == "dense") and notes["b"] == ""


def test_admm_keeps_the_block_of_the_larger_norm() -> None:
    weights = jnp.array([[3.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0]])  # of uncorrelated inputs: 9 against 4
    mask = jax.jit(lambda w, g: admm()(w, g, 0.5, jp.Block((4, 1)))[1])(weights, jnp.eye(8))
    assert mask.tolist() == [[True] * 4 + [False] * 4]


@pytest.mark.parametrize("prune", DRIVERS)
def test_what_is_asked_for_and_not_pruned_is_said(prune) -> None:
    params, x = {"a": normal(0, 8, 8), "gate": normal(1, 20, 8), "idle": normal(2, 8, 8)}, normal(3, 20, 8)

    def net(p, x):
        return x @ p["a"] * p["gate"]

    stats = {"stats": jp.calibrate(net, params, [x], jp.stats.column_norms)} if prune is jp.prune_one_shot else {}
    for where in (None, ["a", "gate", "idle"]):
        found = prune(net, params, [x], wanda(), sparsity=0.5, where=where)
        assert [layer.name for layer in found.layers] == ["a"] and list(found.skipped) == ["gate", "idle"]
        assert "not pruned: gate: it meets the data in an operation that is no product" in str(found)
        for given in ({}, stats):
            with pytest.raises(ValueError, match="idle: the function does not use it"):
                prune(net, params, [x], wanda(), sparsity=0.5, where=where, strict=True, **given)
    assert not prune(net, params, [x], wanda(), sparsity=0.5, where="a", strict=True).skipped


def test_progress_counts_every_layer_of_a_stack(monkeypatch) -> None:
    counts = []

    @contextlib.contextmanager
    def counter(show, total, description):
        advances = []
        yield advances.append
        counts.append((total, sum(advances)))

    def run(p, x):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, p["w"])[0]

    monkeypatch.setattr(sequential, "counter", counter)
    params = {"w": normal(0, 5, 8, 8), "b": normal(1, 8, 8)}
    for net in (lambda p, x: run(p, x) @ p["b"], lambda p, x: (run(p, x) * run(p, 2 * x)) @ p["b"]):
        jp.prune_sequential(net, params, [normal(2, 9, 8)], wanda(), sparsity=0.5)
    assert counts == [(6, 6)] * 2


@pytest.mark.parametrize("prune", DRIVERS)
def test_masking_alone_changes_no_bit_of_wide_weights(prune) -> None:
    with jax.enable_x64(True):
        params = {"w": jax.random.normal(jax.random.key(0), (8, 8), jnp.float64) / 3}
        x = jax.random.normal(jax.random.key(1), (20, 8), jnp.float64)
        found = prune(lambda p, x: x @ p["w"], params, [x], wanda(), sparsity=0.5)
        np.testing.assert_array_equal(found.params["w"], jnp.where(found.masks["w"], params["w"], 0))


def test_one_shot_holds_no_batch_longer_than_it_needs() -> None:
    alive, most = [], [0]

    def batches():
        for k in range(6):
            x = normal(k, 20, 8)
            alive.append(weakref.ref(x))
            most[0] = max(most[0], sum(own() is not None for own in alive))
            yield x
            del x

    jp.prune_one_shot(lambda p, x: x @ p["w"], {"w": normal(0, 8, 8)}, batches(), wanda(), sparsity=0.5)
    assert len(alive) == 6 and most[0] <= 3  # the first, which was traced, and as many as calibrate has


@pytest.mark.parametrize("prune", DRIVERS)
def test_sharded_rows_are_pruned_as_on_one_device(prune) -> None:
    params, x = {"a": normal(0, 16, 16), "b": normal(1, 16, 16)}, normal(2, 64, 16)
    mesh = jax.make_mesh((8,), ("rows",), axis_types=(AxisType.Auto,))
    sharding = NamedSharding(mesh, PartitionSpec(None, "rows"))

    def net(p, x):
        return jnp.tanh(x @ p["a"]) @ p["b"]

    single = prune(net, params, [x], Grown(), sparsity=0.5)
    sharded = prune(net, jax.device_put(params, sharding), [x], Grown(), sparsity=0.5)
    for name in params:
        np.testing.assert_array_equal(sharded.masks[name], single.masks[name])
        np.testing.assert_allclose(sharded.params[name], single.params[name], rtol=1e-5, atol=1e-6)
        assert sharded.params[name].sharding.is_equivalent_to(sharding, 2)
    placed = jax.device_put(params, sharding)
    start = start_masks(jax.tree.leaves(placed), read_layers(net, placed, x).matrices)
    assert all(mask.sharding.is_equivalent_to(sharding, 2) for mask in start.values())


def test_sparsities_of_the_outer_of_two_loops() -> None:
    params, x = {"w": normal(0, 2, 3, 4, 4)}, normal(1, 8, 4)

    def net(p, x):
        def inner(x, ws):
            return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, ws)[0], None

        return jax.lax.scan(inner, x, p["w"])[0]

    for prune in (jp.prune_one_shot, jp.prune_sequential):
        masks = prune(net, params, [x], wanda(), sparsity={"w": np.array([0.25, 0.75])}).masks["w"]
        np.testing.assert_allclose(1 - masks.mean((2, 3)), [[0.25] * 3, [0.75] * 3])


def test_layers_of_different_sparsity_compile_once() -> None:
    params, x = {f"w{k}": normal(k, 5, 5) for k in range(4)}, normal(9, 8, 5)

    def net(p, x):
        for w in p.values():
            x = jnp.tanh(x @ w)
        return x

    shares = {f"w{k}": share for k, share in enumerate((0.0, 0.2, 0.4, 0.6))}
    size = layer._prune._cache_size  # pyright: ignore[reportAttributeAccessIssue]
    before = size()
    for prune in (jp.prune_one_shot, jp.prune_sequential):
        found = prune(net, params, [x], wanda(), sparsity=shares)
        assert [report.sparsity for report in found.layers] == pytest.approx(list(shares.values()))
    assert size() == before + 1
