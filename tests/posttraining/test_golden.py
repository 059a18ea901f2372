"""Against what the authors' PyTorch code of SparseGPT and Wanda made of the same layers (`golden/recipe.py`)."""

from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest

import jaxprune as jp
from jaxprune.calibration import statistics
from jaxprune.posttraining import sparsegpt, wanda
from tests.posttraining.layers import layer_error, make_layer, prune

GOLDEN = Path(__file__).parent / "golden"
LAYERS = {"small": (64, 96, 256, 0), "large": (128, 256, 512, 1)}
STRUCTURES = {"50": (0.5, jp.Unstructured()), "24": (0.5, jp.NM(2, 4))}


def load(name):
    weights, inputs = make_layer(*LAYERS[name])
    record = np.load(GOLDEN / f"{name}.npz")
    check = [np.abs(weights).sum(dtype=np.float64), np.abs(inputs).sum(dtype=np.float64)]
    np.testing.assert_allclose(record["check"], check, rtol=1e-9, err_msg="the layer is not the one of the record")
    return weights, inputs, record


@pytest.mark.parametrize(("name", "case"), [("large", "50"), ("small", "24")])
def test_wanda(name, case):
    weights, inputs, record = load(name)
    stat = statistics.column_norms(jnp.asarray(inputs))
    mask = prune(wanda(), weights, stat, *STRUCTURES[case])[1]
    want = np.unpackbits(record[f"wanda_{case}"], count=weights.size).reshape(weights.shape).astype(bool)
    np.testing.assert_array_equal(mask, want)


@pytest.mark.parametrize(("name", "case"), [("large", "50"), ("small", "24")])
def test_sparsegpt(name, case):
    weights, inputs, record = load(name)
    gram = statistics.gram(jnp.asarray(inputs))
    sparsity, structure = STRUCTURES[case]
    if case == "50":
        # Theirs prunes one weight more in every block of 128 columns; with the same count the masks are the same.
        sparsity += 1 / (len(weights) * min(weights.shape[1], 128))
    found, mask, _ = prune(sparsegpt(), weights, gram, sparsity, structure)
    want = record[f"sparsegpt_{case}"]
    same = mask == (want != 0)
    assert same.mean() >= 0.999
    rows = same.all(1)
    assert rows.mean() > 0.9
    assert np.linalg.norm(found[rows] - want[rows]) <= 1e-5 * np.linalg.norm(want[rows])
    assert layer_error(weights, found, gram) == pytest.approx(layer_error(weights, want, gram), rel=1e-4)
