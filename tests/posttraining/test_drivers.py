"""`prune_one_shot` and `prune_sequential` against loops that are written by hand for one model."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import jaxprune as jp
from jaxprune.calibration.statistics import gram
from jaxprune.posttraining import magnitude, sparsegpt, wanda
from jaxprune.posttraining.layer import correct
from jaxprune.posttraining.stages import Stages
from tests.draws import normal
from tests.posttraining.layers import Grown
from tests.zoo.models import ZOO

# All of one shape: each method compiles once.
PARAMS = {name: normal(k, 16, 16) for k, name in enumerate("abc")}
BATCHES = [normal(k, 32, 16) for k in range(3, 6)]


def net(params, x):
    return jnp.tanh(jnp.tanh(x @ params["a"]) @ params["b"]) @ params["c"]


@functools.partial(jax.jit, static_argnums=(0, 3, 4))
def prune(method, weights, total, sparsity, structure):
    return method(weights, total, sparsity, structure)[0]


def by_hand(method, order: str = "op", target: str = "self", structure=jp.Unstructured(), sparsity=0.5):
    xs, dense, out = BATCHES, BATCHES, {}
    for name in "abc":
        weights = PARAMS[name].T
        total = sum(gram(x) for x in (dense if order == "all" else xs))
        if target == "dense":
            cross = sum(jnp.einsum("rk,rl->kl", d, x, precision="highest") for d, x in zip(dense, xs, strict=True))
            weights = correct(weights, total, cross)
        out[name] = prune(method, weights, total, sparsity, structure).T
        xs = [jnp.tanh(x @ out[name]) for x in xs]
        dense = [jnp.tanh(x @ PARAMS[name]) for x in dense]
    return out


def assert_close(found, expected) -> None:
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), found, expected)


class TestSequential:
    @pytest.mark.parametrize("target", ["self", "dense"])
    @pytest.mark.parametrize("structure", [jp.Unstructured(), jp.NM(2, 4)], ids=str)
    def test_equals_a_loop_by_hand(self, target, structure) -> None:
        found = jp.prune_sequential(net, PARAMS, BATCHES, sparsegpt(), sparsity=0.5, structure=structure, target=target)
        assert_close(found.params, by_hand(sparsegpt(), target=target, structure=structure))
        for name in PARAMS:
            np.testing.assert_array_equal(found.params[name] != 0, found.masks[name])
            assert float(jp.sparsity(found.masks[name], found.params[name])) == 0.5

    def test_dense_target_ends_nearer_to_the_dense_model(self) -> None:
        def error(target):
            params = jp.prune_sequential(net, PARAMS, BATCHES, sparsegpt(), sparsity=0.5, target=target).params
            return sum(float(jnp.sum(jnp.square(net(params, x) - net(PARAMS, x)))) for x in BATCHES)

        assert error("dense") < error("self")

    def test_blocks_take_the_statistics_of_dense_weights(self) -> None:
        # One block of all: the statistics are those of one shot.
        found = jp.prune_sequential(net, PARAMS, BATCHES, sparsegpt(), sparsity=0.5, order="block", blocks=[""])
        assert_close(found.params, by_hand(sparsegpt(), order="all"))
        apart = jp.prune_sequential(net, PARAMS, BATCHES, sparsegpt(), sparsity=0.5, order="block")
        assert_close(apart.params, by_hand(sparsegpt()))

    def test_scanned_layers_are_those_of_an_unrolled_model(self) -> None:
        stacked = {"w": normal(0, 3, 16, 16), "b": jnp.ones((3, 16)), "shared": normal(1, 16, 16)}

        def layer(x, w, b, shared):
            return jnp.tanh(x @ w + b[None]) @ shared

        def scanned(p, x):
            half = p["w"].astype(jnp.float32).transpose(0, 2, 1)  # a view before the scan
            return jax.lax.scan(lambda x, wb: (layer(x, wb[0].T, wb[1], p["shared"]), None), x, (half, p["b"]))[0]

        def unrolled(p, x):
            for k in range(3):
                x = layer(x, p[f"w{k}"], p[f"b{k}"], p["shared"])
            return x

        flat = {f"{name}{k}": stacked[name][k] for name in "wb" for k in range(3)} | {"shared": stacked["shared"]}
        for options in ({}, {"order": "block"}):
            one = jp.prune_sequential(scanned, stacked, BATCHES, sparsegpt(), sparsity=0.5, where="w", **options)
            other = jp.prune_sequential(unrolled, flat, BATCHES, sparsegpt(), sparsity=0.5, where="w.", **options)
            for k in range(3):
                np.testing.assert_allclose(one.params["w"][k], other.params[f"w{k}"], rtol=1e-3, atol=1e-4)
            assert [layer.index for layer in one.layers] == [(0,), (1,), (2,)]
        # The shared weight is pruned first, once, from what all three layers give it.
        both = jp.prune_sequential(scanned, stacked, BATCHES, sparsegpt(), sparsity=0.5, where="w|shared")
        assert (both.layers[0].name, both.layers[0].rows) == ("shared", 3 * 96)

    def test_layers_of_different_sparsity(self) -> None:
        stacked = {"w": normal(0, 3, 16, 16)}

        def scanned(p, x):
            return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, p["w"])[0]

        wanted = {"w": np.array([0.25, 0.5, 0.75])}
        for prune in (jp.prune_sequential, jp.prune_one_shot):
            masks = prune(scanned, stacked, BATCHES, wanda(), sparsity=wanted).masks["w"]
            np.testing.assert_allclose(1 - masks.mean((1, 2)), wanted["w"])

    def test_repeated_layers_compile_once(self, monkeypatch) -> None:
        made = []
        start = Stages.__init__
        monkeypatch.setattr(Stages, "__init__", lambda self, *args: (start(self, *args), made.append(self))[0])

        def deep(p, x):
            for k in range(len(p)):
                x = x + jax.nn.gelu(x @ p[f"up{k}"])
            return x

        def count(depth: int) -> int:
            params = {f"up{k}": normal(k, 16, 16) for k in range(depth)}
            jp.prune_sequential(deep, params, BATCHES, sparsegpt(), sparsity=0.5)
            return len(made[-1].compiled)

        assert count(3) == count(7)

    def test_recurrent_cell_is_pruned_once_from_all_steps(self) -> None:
        zoo = ZOO["linen_gru"]()
        found = jp.prune_sequential(zoo.apply_fn, zoo.params, [zoo.args], wanda(), sparsity=0.5)
        rows = {layer.name: layer.rows for layer in found.layers}
        assert len(rows) == len(found.layers)
        batch, steps, _ = zoo.args[0].shape
        recurrent = {rows[f"params/GRUCell_{k}/{name}/kernel"] for k in range(2) for name in ("hr", "hz", "hn")}
        assert recurrent == {batch * steps}

    def test_tied_embedding_is_left_out_unless_asked_for(self) -> None:
        params = {"table": normal(0, 16, 16), "w": normal(1, 16, 16)}

        def lm(p, k):
            return jnp.tanh(p["table"][k] @ p["w"]) @ p["table"].T

        batch = jnp.arange(16)
        found = jp.prune_sequential(lm, params, [batch], wanda(), sparsity=0.5)
        assert [layer.name for layer in found.layers] == ["w"] and "an embedding" in found.skipped["table"]
        found = jp.prune_sequential(lm, params, [batch], wanda(), sparsity=0.5, where=".*")
        assert {layer.name for layer in found.layers} == {"w", "table"} and not found.skipped

    def test_host_memory_between_stages_changes_nothing(self) -> None:
        one, other = (
            jp.prune_sequential(net, PARAMS, BATCHES, sparsegpt(), sparsity=0.5, offload=offload) for offload in (0, 1)
        )
        jax.tree.map(np.testing.assert_array_equal, one.params, other.params)

    def test_padding_counts_for_nothing(self) -> None:
        padded = [jnp.concatenate([x, 100 * jnp.ones((4, 16))]) for x in BATCHES]
        found = jp.prune_sequential(
            net, PARAMS, padded, sparsegpt(), sparsity=0.5, weights=lambda x: jnp.arange(36) < 32
        )
        assert_close(found.params, by_hand(sparsegpt()))


class TestOneShot:
    def test_equals_a_loop_by_hand(self) -> None:
        found = jp.prune_one_shot(net, PARAMS, BATCHES, sparsegpt(), sparsity=0.5)
        assert_close(found.params, by_hand(sparsegpt(), order="all"))
        again = jp.prune_one_shot(
            net, PARAMS, BATCHES, sparsegpt(), sparsity=0.5, stats=jp.calibrate(net, PARAMS, BATCHES, jp.stats.gram)
        )
        jax.tree.map(np.testing.assert_array_equal, found.params, again.params)

    @pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16])
    def test_narrow_weights_keep_dtype_and_zeros(self, dtype) -> None:
        params = jax.tree.map(lambda w: w.astype(dtype), PARAMS)
        batches = [x.astype(dtype) for x in BATCHES]
        found = jp.prune_one_shot(net, params, batches, Grown(), sparsity=0.5)
        for name, mask in found.masks.items():
            grown = (1.1 * params[name].astype(jnp.float32)).astype(dtype)
            np.testing.assert_array_equal(found.params[name], np.where(mask, grown, 0))
            assert found.params[name].dtype == dtype and mask.mean() == 0.5

    @pytest.mark.parametrize("name", ["linen_scan_transformer", "moe_ragged"])
    def test_whole_models(self, name: str) -> None:
        zoo = ZOO[name]()
        found = jp.prune_one_shot(zoo.apply_fn, zoo.params, [zoo.args], wanda(), sparsity=0.5)
        assert found.layers and all(0 < layer.error < 1 for layer in found.layers)
        out = jax.jit(zoo.apply_fn)(found.params, *zoo.args)
        assert all(bool(jnp.isfinite(leaf).all()) for leaf in jax.tree.leaves(out))

    def test_masked_weights_are_repaired_and_scaled_ones_only_masked(self) -> None:
        mask = jnp.arange(256).reshape(16, 16) % 2 == 0
        params = {"masked": normal(0, 16, 16), "scaled": normal(1, 16, 16)}

        def two(p, x):
            scale = 1 / jnp.linalg.norm(p["scaled"])
            return x @ jnp.where(mask, p["masked"], 0), x @ (p["scaled"] * scale)

        found = jp.prune_one_shot(two, params, BATCHES, Grown(), sparsity=0.25)
        notes = {layer.name: layer.note for layer in found.layers}
        assert notes["masked"] == ""
        assert "masked only" in notes["scaled"]
        for name, factor in (("masked", np.float32(1.1)), ("scaled", 1)):
            expected = np.where(found.masks[name], factor * np.asarray(params[name]), 0)
            np.testing.assert_allclose(found.params[name], expected, rtol=1e-6)

    def test_blocks(self) -> None:
        found = jp.prune_one_shot(net, PARAMS, BATCHES, magnitude(), sparsity=0.5, structure=jp.Block((4, 2)))
        tiles = np.asarray(found.masks["b"]).reshape(4, 4, 8, 2)
        assert (tiles == tiles[:, :1, :, :1]).all()
        assert tiles.mean() == 0.5


def test_masks_go_on_in_training_and_lora_merges_without_losing_a_zero() -> None:
    pruned = jp.prune_one_shot(net, PARAMS, BATCHES, wanda(), sparsity=0.5)
    tx = optax.chain(optax.adam(1e-2), jp.keep_masks(pruned.masks))
    params, state = pruned.params, tx.init(pruned.params)
    gradient = jax.jit(jax.grad(lambda p, x: jnp.sum(jnp.square(net(p, x)))))
    for x in BATCHES:
        grads = gradient(params, x)
        with jax.numpy_dtype_promotion("standard"):  # Optax's Adam needs it
            updates, state = tx.update(grads, state, params)
        params = optax.apply_updates(params, updates)
    jp.check_masks(params, state)
    check_low_rank_merge(params, pruned.masks)


def check_low_rank_merge(params, masks) -> None:
    """The merge keeps the zeros, and computes what the adapters do when they are trained under the masks."""
    adapters = {name: (0.1 * normal(k, 16, 2), 0.1 * normal(0, 2, 16)) for k, name in enumerate(params)}

    def adapted(adapters):
        low_rank = {name: params[name] + a @ b for name, (a, b) in adapters.items()}
        return jp.apply_masks(low_rank, masks)

    def loss(adapters):
        return jnp.mean(jnp.square(net(adapted(adapters), BATCHES[0]) - net(PARAMS, BATCHES[0])))

    step = jax.jit(lambda x: jax.tree.map(lambda w, g: w - 1e-3 * g, x, jax.grad(loss)(x)))
    trained = step(step(adapters))
    assert loss(trained) < loss(adapters)
    merged = adapted(trained)
    assert all((merged[name] != params[name]).any() for name in params)
    assert float(jp.sparsity(jp.from_zeros(merged), merged)) == 0.5


def test_result_is_printed_and_plotted() -> None:
    pruned = jp.prune_one_shot(net, PARAMS, BATCHES, wanda(), sparsity=0.5)
    text = str(pruned)
    assert "16 x 16" in text and "~" in text
    rows = pruned.rows()
    assert [row["name"] for row in rows] == ["a", "b", "c"] and "facts" not in rows[0] and rows[0]["damping"] == 0
    axes = pruned.plot()
    assert len(axes.patches) == 3


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batches": []}, "there are no batches"),
        ({"sparsity": None}, "give a sparsity"),
        ({"sparsity": 1.5}, "0 <= sparsity < 1"),
        ({"sparsity": {"a": 0.5}}, "no sparsity for 'b'"),
        ({"sparsity": {"x": 0.5}}, "sparsity is given for x; to prune are a, b, c"),
        ({"sparsity": 0.3, "structure": jp.NM(2, 4)}, "pattern fixes it at 0.5"),
        ({"where": "nothing"}, "matches no floating parameter"),
        ({"weights": lambda x: jnp.zeros(len(x))}, "no rows"),
    ],
)
@pytest.mark.parametrize("prune", [jp.prune_one_shot, jp.prune_sequential])
def test_says_what_is_wrong(prune, options, message) -> None:
    arguments = {"batches": BATCHES, "sparsity": 0.5, **options}
    batches = arguments.pop("batches")
    with pytest.raises(ValueError, match=message):
        prune(net, PARAMS, batches, wanda(), **arguments)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"order": "layer"}, "order='layer'; it may be one of"),
        ({"target": "both"}, "target='both'; it may be one of"),
        ({"blocks": ["a"]}, 'has no meaning under order="op"'),
        ({"target": "dense"}, "takes Gram matrices"),
    ],
)
def test_sequential_says_what_is_wrong(options, message) -> None:
    with pytest.raises(ValueError, match=message):
        jp.prune_sequential(net, PARAMS, BATCHES, wanda(), sparsity=0.5, **options)


def test_batches_of_several_shapes_are_refused() -> None:
    with pytest.raises(ValueError, match="several shapes"):
        jp.prune_sequential(net, PARAMS, [BATCHES[0], BATCHES[1][:5]], wanda(), sparsity=0.5)
