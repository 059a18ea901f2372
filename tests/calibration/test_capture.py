"""Capture: statistics against what plain NumPy gives of the same inputs."""

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

import jaxprune as jp
from tests.draws import normal
from tests.frameworks.plans import line_of
from tests.zoo.models import ZOO


def gram(x) -> np.ndarray:
    x = np.asarray(x, np.float64).reshape(-1, x.shape[-1])
    return x.T @ x


def test_outputs_are_those_of_the_function() -> None:
    zoo = ZOO["linen_scan_transformer"]()
    out, _ = jax.jit(jp.capture(zoo.apply_fn, jp.stats.column_norms))(zoo.params, *zoo.args)
    expected = zoo.apply_fn(zoo.params, *zoo.args)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5), out, expected)


def test_scan_equals_unrolled() -> None:
    params, x = {"w": normal(0, 3, 4, 4)}, normal(1, 5, 4)

    def scanned(p, x):
        return jax.lax.scan(lambda x, w: (jnp.tanh(x @ w), None), x, p["w"])[0]

    def unrolled(p, x):
        for k in range(3):
            x = jnp.tanh(x @ p[f"w{k}"])
        return x

    _, stats = jp.capture(scanned, jp.stats.gram)(params, x)
    _, apart = jp.capture(unrolled, jp.stats.gram)({f"w{k}": params["w"][k] for k in range(3)}, x)
    for k in range(3):
        np.testing.assert_allclose(stats["w"][k], apart[f"w{k}"], rtol=1e-5)
    assert stats.count("w").tolist() == [5.0] * 3


def test_recurrent_weights_see_all_steps() -> None:
    params = {"w": normal(0, 6, 4)}
    x = normal(1, 7, 5, 2)  # time, batch, features

    def cell(h, x, w):
        return jnp.tanh(jnp.concatenate([h, x], -1) @ w)

    def net(p, x):
        return jax.lax.scan(lambda h, x: (cell(h, x, p["w"]), None), jnp.zeros((5, 4)), x)[0]

    _, stats = jp.capture(net, jp.stats.gram)(params, x)
    rows, h = [], jnp.zeros((5, 4))
    for k in range(7):
        rows.append(jnp.concatenate([h, x[k]], -1))
        h = cell(h, x[k], params["w"])
    np.testing.assert_allclose(stats["w"], gram(jnp.concatenate(rows)), rtol=1e-4)
    assert float(stats.count("w")) == 35


def test_layers_that_share_an_input_share_its_statistic() -> None:
    params = {name: normal(k, 4, 3) for k, name in enumerate("qkv")}

    def heads(p, x):  # each layer casts for itself, as Flax layers do
        return [x.astype(jnp.bfloat16) @ p[name].astype(jnp.bfloat16) for name in "qkv"]

    _, stats = jp.capture(heads, jp.stats.gram)(params, normal(5, 8, 4))
    assert len(stats.values) == 1
    assert stats.names == ("q", "k", "v")
    assert stats["v"].dtype == jnp.float32


def test_uses_of_one_weight_add_up_and_parts_of_one_are_apart() -> None:
    params = {"w": normal(0, 4, 4), "fused": normal(1, 4, 6)}

    def net(p, x):
        left, right = jnp.split(p["fused"].T, 2)
        y = jnp.tanh(x @ p["w"])
        return jnp.tanh(y @ p["w"]) @ left.T, x @ right.T

    x = normal(2, 5, 4)
    _, stats = jp.capture(net, jp.stats.gram)(params, x)
    first = jnp.tanh(x @ params["w"])
    np.testing.assert_allclose(stats["w"], gram(x) + gram(first), rtol=1e-5)
    np.testing.assert_allclose(stats["fused"], gram(jnp.tanh(first @ params["w"])), rtol=1e-4)
    np.testing.assert_allclose(stats["fused#1"], gram(x), rtol=1e-5)


def test_uses_in_several_types_are_uses_of_one_matrix() -> None:
    params, x = {"w": normal(0, 4, 4).astype(jnp.bfloat16)}, normal(1, 5, 4)

    def net(p, x):
        return x @ p["w"].astype(jnp.float32), (3 * x).astype(jnp.bfloat16) @ p["w"]

    _, stats = jp.capture(net, jp.stats.gram)(params, x)
    assert float(stats.count("w")) == 10
    np.testing.assert_allclose(stats["w"], gram(x) + gram((3 * x).astype(jnp.bfloat16)), rtol=1e-4)
    for prune in (jp.prune_one_shot, jp.prune_sequential):
        found = prune(net, params, [x], jp.posttraining.wanda(), sparsity=0.5)
        assert found.params["w"].dtype == jnp.bfloat16 and found.layers[0].rows == 10


def test_python_scalars_stay_weak_in_their_type() -> None:
    params, x = {"w": normal(0, 4, 4).astype(jnp.bfloat16)}, normal(1, 5, 4).astype(jnp.bfloat16)

    def net(p, x, scale):  # with a float32 scale the scan refuses its carry
        return jax.lax.scan(lambda x, _: (x @ p["w"] * scale, None), x, None, 2)[0]

    out, stats = jp.capture(net, jp.stats.column_norms)(params, x, 0.5)
    assert out.dtype == jp.trace(net, params, x, 0.5).outputs.dtype == jnp.bfloat16
    assert float(stats.count("w")) == 10


def test_uses_that_are_not_counted_are_named() -> None:
    params = {"w": normal(0, 4, 3), "other": normal(1, 4, 2)}

    def net(p, x):
        return jnp.tanh(x @ p["w"]) @ p["w"].T @ p["other"]

    model = jp.trace(net, params, normal(2, 5, 4))
    assert [len(matrix.other_uses) for matrix in model.layers.matrices] == [1, 0]
    line = line_of(__file__, 'return jnp.tanh(x @ p["w"]) @ p["w"].T @ p["other"]')
    assert str(model.coverage()).splitlines() == [
        "2 of 2 parameters are covered",
        f"  w: without the inputs of dot_general at {line} (test_uses_that_are_not_counted_are_named.<locals>.net), "
        "which sees it in another way (transposed, masked)",
    ]
    assert not model.coverage("other").other_uses


def test_experts_see_their_own_rows() -> None:
    params, x, sizes = {"w": normal(0, 3, 4, 2)}, normal(1, 7, 4), jnp.array([2, 0, 4])
    _, stats = jp.capture(lambda p, x, n: jax.lax.ragged_dot(x, p["w"], n), jp.stats.gram)(params, x, sizes)
    for k, part in enumerate((x[:2], x[2:2], x[2:6])):
        np.testing.assert_allclose(stats["w"][k], gram(part), rtol=1e-5)
    assert stats.count("w").tolist() == [2.0, 0.0, 4.0]


def test_loops_and_branches() -> None:
    params = {"loop": normal(0, 4, 4), "then": normal(1, 4, 4), "other": normal(2, 4, 4)}

    def net(p, x):
        x = jax.lax.while_loop(lambda s: s[0] < 3, lambda s: (s[0] + 1, jnp.tanh(s[1] @ p["loop"])), (0, x))[1]
        return jax.lax.cond(x[0, 0] < 9, lambda x: x @ p["then"], lambda x: x @ p["other"], x)

    x = normal(3, 5, 4)
    _, stats = jax.jit(jp.capture(net, jp.stats.gram))(params, x)
    steps = [x]
    for _ in range(3):
        steps.append(jnp.tanh(steps[-1] @ params["loop"]))
    np.testing.assert_allclose(stats["loop"], sum(map(gram, steps[:3])), rtol=1e-4)
    np.testing.assert_allclose(stats["then"], gram(steps[3]), rtol=1e-4)
    assert float(stats.count("other")) == 0


def test_the_test_of_a_loop() -> None:
    params = {"halt": normal(0, 4, 1), "w": normal(1, 4, 4), "both": normal(2, 4, 4)}

    def more(p, x):
        return jnp.sum(x @ p["both"] @ p["halt"]) > -1e9

    def net(p, x):
        def step(s):
            return s[0] + 1, jnp.tanh(s[1] @ p["w"] @ p["both"])

        return jax.lax.while_loop(lambda s: (s[0] < 3) & more(p, s[1]), step, (0, x))[1]

    x = normal(3, 5, 4)
    states = [x]
    for _ in range(3):
        states.append(jnp.tanh(states[-1] @ params["w"] @ params["both"]))
    out, stats = jax.jit(jp.capture(net, jp.stats.gram))(params, x)
    np.testing.assert_allclose(out, states[-1], rtol=1e-4)
    # The test runs once more than the body.
    np.testing.assert_allclose(stats["halt"], sum(gram(s @ params["both"]) for s in states), rtol=1e-4)
    np.testing.assert_allclose(stats["w"], sum(map(gram, states[:3])), rtol=1e-4)
    both = sum(map(gram, states)) + sum(gram(s @ params["w"]) for s in states[:3])
    np.testing.assert_allclose(stats["both"], both, rtol=1e-4)
    assert [float(stats.count(name)) for name in ("halt", "w", "both")] == [20, 15, 35]
    found = jp.prune_sequential(net, params, [x], jp.posttraining.wanda(), sparsity=0.5)
    assert {layer.name: layer.rows for layer in found.layers} == {"halt": 20, "w": 15, "both": 35}


def test_convolutions_in_parts_are_convolutions_at_once(monkeypatch) -> None:
    params, x = {"w": normal(0, 3, 3, 2, 4)}, normal(1, 6, 8, 8, 2)

    def net(p, x):
        return jax.lax.conv_general_dilated(x, p["w"], (2, 2), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))

    _, whole = jp.capture(net, jp.stats.gram)(params, x)
    monkeypatch.setattr("jaxprune.calibration.inputs._MAX_PATCHES", 600)
    _, parts = jp.capture(net, jp.stats.gram, weights=lambda x: jnp.ones(x.shape[0]))(params, x)
    np.testing.assert_allclose(whole["w"], parts["w"], rtol=1e-5, atol=1e-4)
    assert float(parts.count("w")) == 6 * 16


class TestWeights:
    def test_padding_counts_for_nothing(self) -> None:
        params, x = {"a": normal(0, 4, 4), "b": normal(1, 4, 2)}, normal(2, 3, 5, 4)
        mask = jnp.arange(5)[None] < jnp.array([5, 2, 0])[:, None]

        def net(p, x, mask):
            y = jnp.tanh(x @ p["a"])
            return y.reshape(-1, 4) @ p["b"]

        _, stats = jp.capture(net, jp.stats.moments, weights=lambda x, mask: mask)(params, x, mask)
        rows = np.asarray(x)[np.asarray(mask)]
        np.testing.assert_allclose(stats["a"].mean, rows.mean(0), rtol=1e-5)
        np.testing.assert_allclose(stats["b"].variance, np.tanh(rows @ params["a"]).var(0), rtol=1e-3, atol=1e-6)
        assert float(stats.count("b")) == 7

    def test_each_step_of_a_loop_has_its_own(self) -> None:
        params, x, mask = {"w": normal(0, 2, 3)}, normal(1, 4, 5, 2), jnp.arange(5)[None] < jnp.arange(4)[:, None]

        def net(p, x, mask):
            return jax.lax.scan(lambda h, x: (jnp.tanh(x @ p["w"]), None), jnp.zeros((4, 3)), x.swapaxes(0, 1))[0]

        _, stats = jp.capture(net, jp.stats.gram, weights=lambda x, mask: mask)(params, x, mask)
        np.testing.assert_allclose(stats["w"], gram(np.asarray(x)[np.asarray(mask)]), rtol=1e-5)

    @pytest.mark.parametrize("steps", [3, 5], ids=["as many as examples", "as many as positions"])
    def test_a_loop_over_the_whole_data_has_all_of_them_in_each_step(self, steps) -> None:
        params, x, mask = {"w": normal(0, 4, 4)}, normal(1, 3, 5, 4), jnp.arange(5)[None] < jnp.arange(3)[:, None]

        def net(p, x, mask):
            return jax.lax.scan(lambda x, _: (jnp.tanh(x @ p["w"]), None), x, None, steps)[0]

        _, stats = jp.capture(net, jp.stats.gram, weights=lambda x, mask: mask)(params, x, mask)
        rows, expected = np.asarray(x)[np.asarray(mask)], np.zeros((4, 4))
        for _ in range(steps):
            expected += gram(rows)
            rows = np.tanh(rows @ np.asarray(params["w"]))
        np.testing.assert_allclose(stats["w"], expected, rtol=1e-4)

    def test_weights_that_do_not_fit_are_named(self) -> None:
        tapped = jp.capture(lambda p, x: x @ p["w"], jp.stats.gram, weights=lambda x: jnp.ones(3))
        with pytest.raises(ValueError, match=r"weights of shape \(3,\) do not fit the rows of 'w'.*\(5,\)"):
            tapped({"w": normal(0, 2, 2)}, normal(1, 5, 2))


def test_a_statistic_of_ones_own() -> None:
    def fourth_powers(x, weights):
        powers = x**4
        return {"powers": jnp.sum(powers if weights is None else powers * weights[..., None], -2)}

    x, params = normal(1, 5, 2), {"w": normal(0, 2, 2)}

    def net(p, x):
        return jnp.tanh(x @ p["w"]) @ p["w"]

    both = np.concatenate([x, np.tanh(x @ params["w"])])
    _, stats = jp.capture(net, fourth_powers)(params, x)
    np.testing.assert_allclose(stats["w"]["powers"], (both**4).sum(0), rtol=1e-4)
    parts = jp.calibrate(net, params, [x[:3], x[3:]], fourth_powers, weights=lambda x: 2 * jnp.ones(len(x)))
    np.testing.assert_allclose(parts["w"]["powers"], 2 * (both**4).sum(0), rtol=1e-4)


@pytest.mark.parametrize("name", ["linen_scan_transformer", "moe_ragged", "wavenet"])
def test_matrices_go_back_to_where_they_came_from(name: str) -> None:
    zoo = ZOO[name]()
    leaves = jax.tree.leaves(zoo.params)
    for matrix in jp.trace(zoo.apply_fn, zoo.params, *zoo.args).layers.matrices:
        leaf, arrangement = leaves[matrix.leaf], matrix.arrangement
        weights = arrangement.to_matrix(leaf)
        np.testing.assert_array_equal(arrangement.from_matrix(weights, leaf), leaf)
        changed = arrangement.from_matrix(weights + 1, leaf)
        np.testing.assert_array_equal(arrangement.to_matrix(changed), weights + 1)
        if arrangement.stacked:
            one = arrangement.to_matrix(leaf, (1,))
            np.testing.assert_array_equal(one, weights[1])
            moved = arrangement.from_matrix(one + 1, leaf, (1,))
            np.testing.assert_array_equal(arrangement.to_matrix(moved)[0], weights[0])


def test_coverage_gives_reasons() -> None:
    params = {"table": normal(0, 9, 4), "w": normal(1, 4, 4), "gate": normal(2, 5, 4), "idle": normal(3, 2, 2)}

    def net(p, k):
        return p["table"][k] @ p["w"] * p["gate"]

    model = jp.trace(net, params, jnp.arange(5))
    coverage = model.coverage()
    assert dict(coverage.covered) == {"w": ("w",)}
    assert "embedding" in coverage.missing["table"]
    assert "no product with a matrix: mul" in coverage.missing["gate"]
    assert coverage.missing["idle"] == "the function does not use it"
    with pytest.raises(ValueError, match=r"(?s)no statistics can be had.*gate.*idle.*table"):
        model.coverage(strict=True)


def everything(p, x):
    """Statistics of every kind: shared, stacked, of several uses, of experts, of groups, of a part."""
    y = jnp.tanh(x @ p["q"]) + jnp.tanh(x @ p["k"])
    y = jax.lax.scan(lambda y, w: (jnp.tanh(y @ w) @ p["k"], None), y, p["stack"])[0]
    y = jax.lax.ragged_dot(y, p["experts"], jnp.array([2, 3]))
    image = y.astype(jnp.bfloat16).reshape(1, 5, 1, 4)
    return jax.lax.conv_general_dilated(
        image, p["kernel"], (1, 1), "SAME", feature_group_count=2, dimension_numbers=("NHWC", "HWIO", "NHWC")
    )


EVERYTHING = {
    "q": normal(0, 4, 4),
    "k": normal(1, 4, 4),
    "stack": normal(2, 3, 4, 4),
    "experts": normal(3, 2, 4, 4),
    "kernel": normal(4, 3, 1, 2, 6).astype(jnp.bfloat16),
}


@pytest.mark.parametrize("stat", [jp.stats.gram, jp.stats.moments, lambda x, weights: x[..., :2, :]])
def test_coverage_says_what_a_calibration_will_hold(stat) -> None:
    x = normal(5, 5, 4)
    coverage = jp.trace(everything, EVERYTHING, x).coverage(stat=stat)
    _, stats = jax.eval_shape(jp.capture(everything, stat), EVERYTHING, x)
    assert len(coverage.covered) == 5
    assert coverage.statistics == stats.values
    assert f"{coverage.nbytes:,} bytes" in str(coverage)
    assert coverage.nbytes == sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(stats.values))


def test_nothing_to_calibrate_is_an_error() -> None:
    with pytest.raises(ValueError, match="where='b' has no parameter that data is multiplied with"):
        jp.capture(lambda p, x: x @ p["w"] + p["b"], jp.stats.gram, where="b")(
            {"w": normal(0, 2, 2), "b": normal(1, 1, 2)}, normal(1, 5, 2)
        )


def test_data_parallel_sums_over_devices_once() -> None:
    mesh = Mesh(np.array(jax.devices()), ("data",))
    params, x = {"a": normal(0, 4, 4), "b": normal(1, 4, 4)}, normal(2, 16, 4)
    step = jax.jit(jp.capture(lambda p, x: jnp.tanh(x @ p["a"]) @ p["b"], jp.stats.gram))
    _, single = step(params, x)
    placed = jax.device_put(x, NamedSharding(mesh, PartitionSpec("data")))
    whole = jax.device_put(params, NamedSharding(mesh, PartitionSpec()))
    _, sharded = step(whole, placed)
    for name in "ab":
        np.testing.assert_allclose(sharded[name], single[name], rtol=1e-5, atol=1e-5)
        assert sharded[name].is_fully_replicated
    compiled = step.lower(whole, placed).compile().as_text() or ""
    assert len(re.findall(r"all-reduce(?:-start)?\(", compiled)) == 1  # of both together


def test_an_explicit_mesh_changes_nothing() -> None:
    params = {"kernel": normal(0, 3, 3, 2, 4), "w": normal(1, 4, 4), "head": normal(2, 4, 3)}
    x, weights = normal(3, 8, 6, 6, 2), jnp.arange(8) < 7

    def net(p, x, weights):
        y = jax.lax.conv_general_dilated(x, p["kernel"], (1, 1), "SAME", dimension_numbers=("NHWC", "HWIO", "NHWC"))
        return jnp.tanh(jnp.tanh(y) @ p["w"]) @ p["head"]

    def results(params, x, weights):
        options = {"where": list(params), "weights": lambda x, weights: weights}
        stats = jp.calibrate(net, params, [(x, weights)], jp.stats.gram, **options)
        pruned = jp.prune_sequential(
            net, params, [(x, weights)], jp.posttraining.sparsegpt(), sparsity=0.5, target="dense", **options
        )
        return stats.values, pruned.params

    expected = results(params, x, weights)
    with jax.set_mesh(jax.make_mesh((4, 2), ("data", "model"), axis_types=(AxisType.Explicit,) * 2)):
        placed = [jax.device_put(array, PartitionSpec("data")) for array in (x, weights)]
        stats, pruned = results(jax.device_put(params, PartitionSpec()), *placed)
        assert all(value.is_fully_replicated for value in stats.values())
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4), (stats, pruned), expected)
