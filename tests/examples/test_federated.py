"""The federated example: messages to the byte, who holds what, and a short run on made digits."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from examples import federated
from examples.federation import clients, messages, rounds

PyTree = Any


pytestmark = pytest.mark.usefixtures("as_users_run_it")


def made(seed: int = 0) -> tuple[PyTree, PyTree, PyTree]:
    """Parameters, masks, and masks of which few positions of one leaf and many of another differ."""
    rng = np.random.default_rng(seed)
    params = {"a": rng.normal(size=(13, 31)), "b": rng.normal(size=(9, 5)), "bias": rng.normal(size=7)}
    params = jax.tree.map(lambda p: p.astype(np.float32), params)
    masks = {"a": rng.random((13, 31)) < 0.2, "b": rng.random((9, 5)) < 0.5, "bias": np.ones((), bool)}
    other = {"a": masks["a"].copy(), "b": ~masks["b"], "bias": masks["bias"]}
    other["a"][3, :4] ^= True
    return jp.apply_masks(params, masks), masks, other


def test_messages_arrive():
    params, masks, other = made()
    for known in (None, other, jax.tree.map(np.copy, masks)):
        message = messages.encode_masks(masks, known) + messages.encode_values(params, masks)
        got, rest = messages.decode_masks(message, known, masks)
        jax.tree.map(np.testing.assert_array_equal, got, masks)
        values, rest = messages.decode_values(rest, got, params)
        jax.tree.map(np.testing.assert_array_equal, values, jax.tree.map(np.asarray, params))
        assert rest == b""
    assert messages.encode_masks(masks, masks) == b""


def test_messages_have_the_bytes_of_the_formula():
    """One byte a leaf says how its mask is written, and four how many positions changed."""
    params, masks, other = made()
    values = len(messages.encode_values(params, masks))
    assert values == 4 * (int(masks["a"].sum()) + int(masks["b"].sum()) + 7)
    whole, delta = (len(messages.encode_masks(masks, known)) for known in (None, other))
    formula = {k: f.value or 0 for k, f in jp.measure.update_bytes(params, masks, other).items()}
    assert values + whole == formula["mask and values"] + 2
    assert whole == 1 + -(-13 * 31 // 8) + 1 + -(-45 // 8)
    assert values + delta == formula["mask delta and values"] + 2 + 4
    assert delta == (1 + 4 + 4 * 4) + (1 + 6)  # four positions of a, a bitmask of b
    assert values == jp.measure.update_bytes(params, masks, masks)["values only"].value


def test_extra_entries_are_the_largest_outside_the_masks():
    params, masks, _ = made()
    tree = jax.tree.map(lambda p: np.random.default_rng(1).normal(size=p.shape).astype(np.float32), params)
    counts = [5, 0, 0]
    message = messages.encode_extra(tree, masks, counts)
    assert len(message) == 8 * 5
    got = messages.decode_extra(message, counts, params)
    outside = np.sort(np.abs(tree["a"][~masks["a"]]))[-5:]
    np.testing.assert_array_equal(np.sort(np.abs(got["a"][got["a"] != 0])), outside)
    assert not got["a"][masks["a"]].any() and not got["b"].any() and not got["bias"].any()


@pytest.mark.parametrize("kind", ["iid", "shards"])
def test_no_image_is_at_two_clients(kind: Any):
    y = np.arange(103) % 10
    x = np.arange(103, dtype=np.uint8).reshape(-1, 1, 1, 1)
    shared = clients.partition(x, y, 5, kind, seed=0)
    pixels = np.round(shared.x * 255).astype(int).reshape(-1)
    assert shared.x.shape == (5, 20, 1) and len(set(pixels.tolist())) == 100
    np.testing.assert_array_equal(y[pixels], shared.y.reshape(-1))
    labels = [len(set(row.tolist())) for row in shared.y]
    assert max(labels) <= 4 if kind == "shards" else min(labels) > 4


def test_partition_refuses():
    x, y = np.zeros((6, 2, 2, 1), np.uint8), np.zeros(6, int)
    with pytest.raises(ValueError, match="clients=4"):
        clients.partition(x, y, 4, "iid", 0)
    with pytest.raises(ValueError, match="allowed are iid and shards"):
        clients.partition(x, y, 2, "other", 0)  # pyright: ignore[reportArgumentType]


def test_one_client_and_one_step_is_gradient_descent():
    """The server's SGD on the mean change gives the client's own parameters, under its masks."""
    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (8, 3, 3, 1)).astype(np.uint8)
    held = clients.partition(x, np.arange(8) % 3, 1, "iid", 0)
    network = clients.Network((6, 5), 3)
    functions = rounds.compiled(network, rounds.Settings(1, 1, 1, 8, 0.5))
    seen: list[PyTree] = []
    rounds.run(functions, held, "dense", 0.0, 0, lambda params: seen.append(params) or 0.0)
    start = network.init(jax.random.fold_in(jax.random.key(0), 0), held.x[0, :1])
    grads = jax.grad(lambda p: clients.loss_of(network, p, jnp.asarray(held.x[0]), jnp.asarray(held.y[0])))(start)
    expected = jax.tree.map(lambda p, g: p - 0.5 * g, start, grads)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, atol=1e-5), seen[0], expected)


def test_a_few_rounds(digits: Path, tmp_path: Path):
    argv = ["--dataset", "mnist", "--data-dir", str(digits), "--output-dir", str(tmp_path), "--clients", "3"]
    argv += ["--rounds", "4", "--every", "1", "--widths", "12", "8", "--batch-size", "8", "--sparsity", "0.75"]
    argv += ["--seed", "0", "--resume"]
    report = federated.main(argv)
    runs = {run["method"]: run for run in json.loads((tmp_path / "runs.json").read_text())["runs"]}
    assert list(runs) == list(rounds.NAMES)
    kernels, rest = (144 * 12, 12 * 8), 12 + 8 + 80 + 10
    kept = sum(round(0.25 * size) for size in kernels)
    whole, values = 4 * (sum(kernels) + rest), 4 * (kept + rest)
    bits = sum(1 + -(-size // 8) for size in kernels)
    assert runs["dense"]["up"][-1] == runs["dense"]["down"][-1] == 4 * 3 * whole
    assert runs["random"]["up"][-1] == 4 * 3 * values
    assert runs["random"]["down"][-1] == 3 * (4 * values + bits)
    # SNIP keeps 25 % of both kernels too, after a dense exchange.
    assert runs["snip"]["up"][-1] == 3 * (whole + 4 * values)
    assert runs["snip"]["down"][-1] == 3 * (whole + 4 * values + bits)
    exchanged = sum(min(int(np.ceil(0.3 * round(0.25 * s))), s - round(0.25 * s)) for s in kernels)
    assert (runs["rigl"]["up"][-1] - 4 * 3 * values) % (3 * 8 * exchanged) == 0
    assert runs["rigl"]["masks_up"] == runs["rigl"]["up"][-1] - 4 * 3 * values > 0
    assert runs["rigl"]["down"][-1] > runs["random"]["down"][-1]
    assert runs["random"]["up"][-1] < runs["gmp"]["up"][-1] < runs["dense"]["up"][-1]
    for method in ("random", "snip", "gmp", "rigl"):
        assert runs[method]["nonzero"] <= kept + rest
    assert report.costs["traffic"]["dense"].value == 2 * 4 * 3 * whole
    assert (tmp_path / "accuracy_by_bytes.png").stat().st_size > 0

    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "finished").glob("*-seed0.json")}
    assert len(before) == len(runs)
    assert federated.main(argv).rows() == report.rows()
    assert {path: path.stat().st_mtime_ns for path in before} == before


@pytest.mark.parametrize("argv", [["--sparsity", "1"], ["--rounds", "0"], ["--method", "unknown"]])
def test_the_command_line_refuses(argv: list[str]):
    with pytest.raises(SystemExit):
        federated.parse(argv)
